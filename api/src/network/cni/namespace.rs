//! A network namespace that plugins connect, and a TAP in it that takes the connection's place: what comes to the one leaves by the other
//! (`tc` with `mirred`, in both directions).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::thread;

use bellows_vmm::MacAddress;
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, new_connection};

use super::error::{CniError, namespace};
use super::tap;

/// The handle of a queueing discipline for what comes in (`TC_H_INGRESS`).
const INGRESS: u32 = 0xffff_0000;
/// All protocols, as the kernel keeps it: `ETH_P_ALL` in network byte order.
const ALL_PROTOCOLS: u16 = 3_u16.to_be();
/// The ranks of filters.
const PRIORITY: u16 = 1;

/// A network namespace, until this is dropped; its interfaces go with it.
#[derive(Debug)]
pub(super) struct Namespace(File);

/// A TAP at an interface of the namespace, which the guest's is to be like.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) tap: OwnedFd,
    pub(super) mac: MacAddress,
    pub(super) mtu: u16,
}

impl Namespace {
    /// Makes one. Nothing of this process is in it.
    ///
    /// # Errors
    /// This process may not.
    pub(super) fn new() -> Result<Self, CniError> {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
            File::open("/proc/thread-self/ns/net")
        };
        thread::scope(|scope| scope.spawn(make).join())
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
            .map(Self)
            .map_err(namespace("make a network namespace, which takes the rights of root"))
    }

    /// Its path, for others, as long as this process has it.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Puts a TAP in place of whatever would use the interface `name`.
    ///
    /// # Errors
    /// There is no such interface, or the host's kernel lacks TAPs or the redirection.
    pub(super) fn connect(&self, name: &str) -> Result<Connected, CniError> {
        let inside = || {
            setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET)
                .map_err(|error| namespace("enter the network namespace")(error.into()))?;
            let tap = tap::make().map_err(namespace("make a TAP in the network namespace"))?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
            let runtime = runtime.map_err(namespace("wait for the kernel's answers"))?;
            let (mac, mtu) = runtime.block_on(redirect(name))?;
            Ok(Connected { tap, mac, mtu })
        };
        let joined = thread::scope(|scope| scope.spawn(inside).join());
        joined.unwrap_or_else(|_| Err(namespace("join a thread")(io::Error::other("it panicked"))))
    }
}

/// Has all that comes to `name` leave by the TAP, and the other way round. Returns the address and the MTU of `name`.
async fn redirect(name: &str) -> Result<(MacAddress, u16), CniError> {
    let (connection, handle, _) = new_connection().map_err(namespace("ask the kernel about interfaces"))?;
    let connection = tokio::spawn(connection);
    let result = redirect_by(&handle, name).await;
    connection.abort();
    result
}

async fn redirect_by(handle: &Handle, name: &str) -> Result<(MacAddress, u16), CniError> {
    let (outer, attributes) = link(handle, name).await?;
    let (tap, _) = link(handle, tap::NAME).await?;
    let mut mac = None;
    let mut mtu = None;
    for attribute in attributes {
        match attribute {
            LinkAttribute::Address(bytes) => {
                mac = <[u8; 6]>::try_from(bytes).ok().and_then(|bytes| MacAddress::new(bytes).ok())
            }
            LinkAttribute::Mtu(value) => mtu = u16::try_from(value).ok(),
            _ => {}
        }
    }
    let wrong = |what: &str| CniError::Answer(format!("`{name}` has no {what} that a network card can have"));
    let mac = mac.ok_or_else(|| wrong("hardware address"))?;
    let mtu = mtu.ok_or_else(|| wrong("MTU"))?;
    let up = LinkMessageBuilder::<LinkUnspec>::new().index(tap).mtu(mtu.into()).up().build();
    handle.link().set(up).execute().await.map_err(failed("set the TAP up"))?;
    for (from, to) in [(outer, tap), (tap, outer)] {
        let index = i32::try_from(from).unwrap_or(i32::MAX);
        let discipline = handle.qdisc().add(index).ingress().execute().await;
        discipline.map_err(failed("look at what comes to an interface (sch_ingress)"))?;
        let filter = handle.traffic_filter(index).add().parent(INGRESS).priority(PRIORITY).protocol(ALL_PROTOCOLS);
        let filter = filter.redirect(to).map_err(failed("make a redirection"))?;
        filter.execute().await.map_err(failed("redirect what comes to an interface (cls_u32, act_mirred)"))?;
    }
    Ok((mac, mtu))
}

/// The index of an interface, and what the kernel tells of it.
async fn link(handle: &Handle, name: &str) -> Result<(u32, Vec<LinkAttribute>), CniError> {
    use futures_util::TryStreamExt as _;

    let found = handle.link().get().match_name(name).execute().try_next().await;
    let found = found.map_err(failed("find an interface of the network namespace"))?;
    let found = found.ok_or_else(|| CniError::Answer(format!("the namespace has no interface `{name}`")))?;
    Ok((found.header.index, found.attributes))
}

fn failed(what: &'static str) -> impl FnOnce(rtnetlink::Error) -> CniError {
    move |error| namespace(what)(io::Error::other(error))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    /// Needs root, and a kernel with veth, u32 and mirred: without, there is nothing to test.
    #[test]
    fn what_comes_to_the_interface_leaves_by_the_tap_and_back() {
        let Ok(namespace) = Namespace::new() else { return };
        let path = namespace.path();
        let in_namespace = |line: &str| {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={path}")).args(line.split(' ')).output().unwrap()
        };
        if !in_namespace("ip link add eth0 type veth peer name peer0").status.success() {
            return;
        }
        in_namespace("ip link set eth0 address 02:00:00:00:00:07 mtu 1400 up");
        in_namespace("ip link set peer0 mtu 1400 up");
        let error = namespace.connect("eth7").unwrap_err().to_string();
        assert!(error.contains("find an interface") || error.contains("no interface `eth7`"), "{error}");
        let connected = match namespace.connect("eth0") {
            // The kernel lacks the redirection.
            Err(CniError::Namespace { what, .. }) if what.contains("sch_ingress") || what.contains("mirred") => return,
            other => other.unwrap(),
        };
        assert_eq!((connected.mac.to_string().as_str(), connected.mtu), ("02:00:00:00:00:07", 1400));

        // What the guest sends comes out at the other end of the veth.
        let mut tap = File::from(connected.tap);
        let frame = [&[0xff; 6], &[2, 0, 0, 0, 0, 7][..], &[0x88, 0xb5], &[0x5a; 46]].concat();
        let before = received(&path);
        tap.write_all(&[&[0; 10][..], &frame].concat()).unwrap();
        assert!(received(&path) > before, "the frame has not come out");
        // And what its peer sends comes to the guest, from the peer's address: what asks for that of another.
        in_namespace("ip link set peer0 address 02:00:00:00:00:09");
        in_namespace("ip address add 10.9.8.7/24 dev peer0");
        in_namespace("bash -c echo>/dev/udp/10.9.8.8/9");
        rustix::io::ioctl_fionbio(&tap, true).unwrap();
        let limit = Instant::now() + Duration::from_secs(10);
        let mut frame = [0; 2048];
        // A header of virtio-net, and the addresses of destination and source.
        while !matches!(tap.read(&mut frame), Ok(count) if count > 22 && frame[16..22] == [2, 0, 0, 0, 0, 9]) {
            assert!(Instant::now() < limit, "nothing has come from the peer");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Packets that the other end of the veth has received.
    fn received(path: &str) -> u64 {
        let mut command = Command::new("nsenter");
        let output =
            command.arg(format!("--net={path}")).args(["ip", "-s", "-j", "link", "show", "peer0"]).output().unwrap();
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        shown[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
    }
}
