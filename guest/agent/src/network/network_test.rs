//! On this machine's kernel, in a network namespace of the test's own. Needs root, and `ip`.

use std::path::Path;
use std::process::Command;

use bellows_protocol::egress::PacketLimit;
use bellows_protocol::network::OwnNetworkSetup;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use super::*;

/// Runs `test` with a folder where the kernel lists the interfaces of its namespace.
fn in_namespace(test: fn(&Path)) {
    let thread = std::thread::spawn(move || {
        let folder = tempfile::tempdir().unwrap();
        let none: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
        mount(Some("sysfs"), folder.path(), Some("sysfs"), MsFlags::empty(), none).unwrap();
        test(&folder.path().join("class/net"));
        nix::mount::umount(folder.path()).unwrap();
    });
    thread.join().unwrap();
}

fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn setup(name: &str, number: u8, addresses: &[&str], gateways: &[&str]) -> InterfaceSetup {
    InterfaceSetup {
        hardware_address: [2, 0, 0, 0, 0, number],
        name: Some(name.parse().unwrap()),
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        gateways: gateways.iter().map(|text| text.parse().unwrap()).collect(),
        name_servers: Vec::new(),
        search_domains: Vec::new(),
    }
}

#[test]
fn the_kernel_takes_names_addresses_and_routes() {
    in_namespace(|folder| {
        ip("link add name eth1 address 02:00:00:00:00:01 type veth peer name eth0 address 02:00:00:00:00:02");
        let setups = [
            setup("eth0", 1, &["172.16.0.2/30", "fd00::2/64"], &["172.16.0.1", "fe80::1"]),
            setup("net-1", 2, &["10.1.2.3/32"], &["169.254.1.1"]),
        ];
        for _ in 0..2 {
            configure(&Routing::open().unwrap(), &Link::all(folder).unwrap(), &setups).unwrap();
            let shown = ip("-o addr show");
            let has = |name: &str, text: &str| shown.lines().any(|line| line.contains(name) && line.contains(text));
            assert!(has("eth0", "172.16.0.2/30 brd 172.16.0.3") && has("net-1", "10.1.2.3/32"), "{shown}");
            assert!(has("eth0", "fd00::2/64") && !shown.contains("fd00::2/64 scope global tentative"), "{shown}");
            let routes = ip("route show default");
            assert_eq!(routes.lines().count(), 2, "{routes}");
            assert!(routes.contains("via 172.16.0.1 dev eth0 proto static metric 100"), "{routes}");
            assert!(routes.contains("via 169.254.1.1 dev net-1 proto static metric 101 onlink"), "{routes}");
            let routes = ip("-6 route show default");
            assert_eq!(routes.lines().count(), 1, "{routes}");
            assert!(routes.contains("via fe80::1 dev eth0 proto static metric 100"), "{routes}");
            let accepted = std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/accept_ra").unwrap();
            assert_eq!(accepted.trim_end(), "0");
            assert_eq!(ip("-o link show up").lines().count(), 2);
        }
        // Other names, while they are up.
        let other = [setup("net-1", 1, &["172.16.0.2/30"], &["172.16.0.1"]), setup("eth0", 2, &[], &[])];
        configure(&Routing::open().unwrap(), &Link::all(folder).unwrap(), &other).unwrap();
        let shown = ip("-o link show up");
        assert!(shown.lines().any(|line| line.contains("net-1") && line.contains("02:00:00:00:00:01")), "{shown}");
        assert!(shown.lines().any(|line| line.contains("eth0") && line.contains("02:00:00:00:00:02")), "{shown}");
    });
}

#[test]
fn an_error_names_the_interface_and_the_step() {
    in_namespace(|folder| {
        ip("link add name eth0 address 02:00:00:00:00:01 type veth peer name other");
        let refused = |setup| {
            let error = configure(&Routing::open().unwrap(), &Link::all(folder).unwrap(), &[setup]).unwrap_err();
            (error.code(), error.to_string())
        };
        let (code, text) = refused(setup("eth1", 9, &[], &[]));
        assert_eq!(code, ttrpc::Code::INTERNAL);
        assert!(text.contains("\"eth1\"") && text.contains("02:00:00:00:00:09"), "{text}");
        // The address of all of a network's hosts.
        let (_, text) = refused(setup("eth0", 1, &["172.16.0.2/30"], &["172.16.0.3"]));
        assert!(text.contains("\"eth0\": cannot route through 172.16.0.3: "), "{text}");
        assert!(text.contains("Nexthop has invalid gateway"), "the kernel's words: {text}");
    });
}

#[test]
fn an_instance_has_a_network_of_its_own() {
    in_namespace(|folder| {
        ip("link add name eth0 address 02:00:00:00:00:01 mtu 1400 type veth peer name other mtu 1400");
        ip("link set lo up");
        ip("link set other up");
        let network = Network { links: folder.into(), ..Network::of_this_process().unwrap() };
        network.configure(&[setup("eth0", 1, &["172.16.0.2/24", "fd00::2/64"], &[])]).unwrap();
        // An interface forgets for whom it answers when its cable is found to be out.
        let begun = std::time::Instant::now();
        while !["eth0", "other"].iter().all(|name| ip(&format!("-o link show {name}")).contains("state UP")) {
            assert!(begun.elapsed().as_secs() < 60, "the interfaces stay down");
        }
        let own = |addresses: &[&str]| OwnNetworkSetup {
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            hardware_address: Some([2, 0, 0, 0, 0, 7]),
            egress: Vec::new(),
            receive: PacketLimit::default(),
            transmit: PacketLimit::default(),
        };
        let taken = network.connect(&own(&["172.16.0.2"])).unwrap_err().to_string();
        assert!(taken.contains("the address 172.16.0.2 is in use by the VM"), "{taken}");
        let connected = network.connect(&own(&["172.16.0.9", "fd00::9"])).unwrap();
        let taken = network.connect(&own(&["172.16.0.10", "fd00::9"])).unwrap_err().to_string();
        assert!(taken.contains("the address fd00::9 is in use by another instance"), "{taken}");
        assert!(!ip("route show").contains("172.16.0.10"), "nothing of it remains");

        let routes = ip("route show") + &ip("-6 route show");
        assert!(routes.contains("172.16.0.9 dev own") && routes.contains("fd00::9 dev own"), "{routes}");
        let answers = ip("-6 neigh show proxy");
        assert!(answers.contains("fd00::9 dev eth0"), "{answers}");
        for (path, value) in
            [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1"), ("ipv4/conf/eth0/proxy_arp", "1")]
        {
            assert_eq!(files::read(format!("/proc/sys/net/{path}")).unwrap(), value, "{path}");
        }
        let inside = || {
            setns(connected.namespace(), CloneFlags::CLONE_NEWNET).unwrap();
            (ip("-o addr show"), ip("-o link show eth0"), ip("route show") + &ip("-6 route show"))
        };
        let (addresses, link, routes) = std::thread::scope(|scope| scope.spawn(inside).join().unwrap());
        assert!(addresses.contains("172.16.0.9/32") && addresses.contains("fd00::9/128"), "{addresses}");
        assert!(link.contains("02:00:00:00:00:07") && link.contains("mtu 1400"), "{link}");
        assert!(
            routes.contains("default via 169.254.1.1 dev eth0") && routes.contains("via fe80::1 dev eth0"),
            "{routes}"
        );
        // The instance reaches the VM.
        let ping = || {
            setns(connected.namespace(), CloneFlags::CLONE_NEWNET).unwrap();
            Command::new("busybox").args(["nc", "-w", "5", "172.16.0.2", "1234"]).output().unwrap().stdout
        };
        let listener = std::net::TcpListener::bind("172.16.0.2:1234").unwrap();
        let answered = std::thread::scope(|scope| {
            let client = scope.spawn(ping);
            let (mut stream, peer) = listener.accept().unwrap();
            std::io::Write::write_all(&mut stream, peer.ip().to_string().as_bytes()).unwrap();
            drop(stream);
            client.join().unwrap()
        });
        assert_eq!(String::from_utf8_lossy(&answered), "172.16.0.9");

        network.disconnect(&connected);
        network.disconnect(&connected);
        assert!(!ip("-6 neigh show proxy").contains("fd00::9"));
        let again = network.connect(&own(&["172.16.0.9", "fd00::9"])).unwrap();
        network.disconnect(&again);
    });
}
