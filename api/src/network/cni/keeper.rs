//! A process that has a network namespace, and tells the plugins when it ends: it outlives a monitor that is killed.

use std::ffi::OsString;
use std::io::{IoSlice, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use bellows_vmm::{GuestNetwork, MacAddress};
use clap::Args;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::{Deserialize, Serialize};

use super::super::INTERFACE;
use super::super::ports::Published;
use super::answer;
use super::attachment::Attachment;
use super::error::CniError;
use super::list::List;
use super::namespace::{Connected, Namespace};
use crate::error::{CliError, io_error, with_causes};
use crate::output::say;

/// Where networks are configured, as containerd, CRI-O and podman have it, and the variable for another place.
const CONFIGURATIONS: &str = "/etc/cni/net.d";
const CONFIGURATIONS_VARIABLE: &str = "NETCONFPATH";
/// Where programs of plugins are: upstream's place, and that of Debian.
const PLUGINS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];
const PLUGINS_VARIABLE: &str = "CNI_PATH";

/// What a keeper is told.
#[derive(Args, Debug)]
pub struct KeeperArgs {
    /// The network
    name: String,
    /// Ports of the host that lead to it
    published: Vec<Published>,
}

/// What a keeper answers, once.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kept {
    /// The VM's place is ready, and its TAP comes with this.
    Attached(Place),
    /// Why it is not.
    Refused(String),
}

/// The VM's place in the network.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Place {
    pub(super) mac: MacAddress,
    pub(super) mtu: u16,
    pub(super) guest: GuestNetwork,
}

/// Connects a VM to a network, and keeps it there until nobody has the other end of the stream that is standard input.
///
/// # Errors
/// There is no such stream, or nobody waits for the answer.
pub(crate) fn keep(args: &KeeperArgs) -> Result<u8, CliError> {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().map_err(io_error("take", "the stream of the network"))?;
    let stream = UnixStream::from(stdin);
    match keep_at(args, &stream) {
        Ok(answered) => answered,
        Err(error) => answer(&stream, &Kept::Refused(with_causes(&error)), None),
    }
}

/// The same at the `stream`, which is told of success only.
fn keep_at(args: &KeeperArgs, stream: &UnixStream) -> Result<Result<u8, CliError>, CniError> {
    let list = List::find(&args.name, &configurations(std::env::var_os(CONFIGURATIONS_VARIABLE)))?;
    let namespace = Namespace::new()?;
    let attachment = Attachment {
        list: &list,
        container: &container(),
        namespace: &namespace.path(),
        interface: INTERFACE,
        published: &args.published,
        folders: &plugins(std::env::var_os(PLUGINS_VARIABLE)),
    };
    let result = attachment.add()?;
    let placed = answer::network(&result, INTERFACE).and_then(|network| Ok((network, namespace.connect(INTERFACE)?)));
    let kept = placed.map(|(network, Connected { tap, mac, mtu })| {
        if !network.left_out.is_empty() {
            let (name, routes) = (&args.name, network.left_out.join(", "));
            say(format_args!(
                "the guest goes by its gateway to {routes}, for which the network `{name}` has other routes"
            ));
        }
        let answered = answer(stream, &Kept::Attached(Place { mac, mtu, guest: network.guest }), Some(tap));
        // Until all that have the other end are gone, in whatever way.
        let _ = (&*stream).read(&mut [0]);
        answered
    });
    for error in attachment.delete(Some(&result)) {
        say(format_args!("the network `{}` may keep something of this VM: {}", args.name, with_causes(&error)));
    }
    kept
}

fn configurations(chosen: Option<OsString>) -> PathBuf {
    chosen.filter(|chosen| !chosen.is_empty()).map_or_else(|| Path::new(CONFIGURATIONS).to_owned(), PathBuf::from)
}

fn plugins(chosen: Option<OsString>) -> Vec<PathBuf> {
    match chosen.filter(|chosen| !chosen.is_empty()) {
        Some(chosen) => std::env::split_paths(&chosen).collect(),
        None => PLUGINS.iter().map(PathBuf::from).collect(),
    }
}

/// A name that no other VM of this host has, or had.
fn container() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("bellows-{}-{:x}", std::process::id(), since.as_nanos())
}

fn answer(stream: &UnixStream, kept: &Kept, tap: Option<OwnedFd>) -> Result<u8, CliError> {
    let mut text = serde_json::to_vec(kept).map_err(|error| io_error("write", "the network's place")(error.into()))?;
    text.push(b'\n');
    let descriptors: Vec<_> = tap.iter().map(|tap| tap.as_raw_fd()).collect();
    let controls: Vec<_> = tap.iter().map(|_| ControlMessage::ScmRights(&descriptors)).collect();
    let sent = sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&text)], &controls, MsgFlags::MSG_NOSIGNAL, None);
    // Who does not wait any more has gone.
    sent.map(|_| 0).map_err(|error| io_error("send", "the network's place")(error.into()))
}

impl From<CniError> for CliError {
    fn from(error: CniError) -> Self {
        Self::Cni(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_the_usual_ones_unless_others_are_named() {
        assert_eq!(configurations(None), Path::new("/etc/cni/net.d"));
        assert_eq!(configurations(Some("/x".into())), Path::new("/x"));
        assert_eq!(plugins(Some("".into())), [Path::new("/opt/cni/bin"), Path::new("/usr/lib/cni")]);
        assert_eq!(plugins(Some("/a:/b".into())), [Path::new("/a"), Path::new("/b")]);
        assert_ne!(container(), container());
    }
}
