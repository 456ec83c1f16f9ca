use proptest::prelude::*;

use super::*;

fn address(text: &str) -> InterfaceAddress {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn setup() -> InterfaceSetup {
    InterfaceSetup {
        hardware_address: [2, 0, 0, 0, 0, 1],
        name: Some("eth0".parse().unwrap()),
        addresses: vec![address("172.16.0.2/30"), address("fd00::2/64")],
        gateways: vec![ip("172.16.0.1"), ip("fe80::1")],
        name_servers: vec![ip("172.16.0.1")],
        search_domains: vec!["example.org".parse().unwrap()],
    }
}

#[test]
fn an_address_says_how_much_of_it_is_its_network() {
    for text in ["172.16.0.2/30", "10.0.0.1/8", "10.0.0.1/32", "fd00::2/64", "fe80::1/64", "2001:db8::1/128"] {
        assert_eq!(address(text).to_string(), text);
    }
    for text in [
        "",
        "10.0.0.1",
        "10.0.0.1/",
        "10.0.0.1/0",
        "10.0.0.1/33",
        "fd00::1/129",
        "10.0.0.1/+8",
        "10.0.0.1/8/8",
        "10.0.0/8",
        "0.0.0.0/8",
        "::/64",
        "127.0.0.1/8",
        "::1/128",
        "224.0.0.1/4",
        "ff02::1/64",
        "255.255.255.255/8",
        "host/8",
        "10.0.0.1/256",
    ] {
        let error = text.parse::<InterfaceAddress>().unwrap_err();
        assert!(error.to_string().contains("172.16.0.2/30"), "{text}: {error}");
    }
    assert!(address("172.16.0.2/30").reaches(ip("172.16.0.1")));
    assert!(!address("172.16.0.2/30").reaches(ip("172.16.0.4")));
    assert!(address("fd00::2/64").reaches(ip("fd00::ffff")) && !address("fd00::2/64").reaches(ip("fd00:0:0:1::1")));
    assert!(!address("fd00::2/64").reaches(ip("172.16.0.1")));
}

#[test]
fn a_gateway_is_reached_without_a_gateway() {
    let check = |gateways: &[&str], addresses: &[&str]| {
        let gateways: Vec<_> = gateways.iter().map(|text| ip(text)).collect();
        let addresses: Vec<_> = addresses.iter().map(|text| address(text)).collect();
        check_gateways(&gateways, &addresses)
    };
    for (gateways, addresses) in [
        (&[][..], &[][..]),
        (&["172.16.0.1"], &["172.16.0.2/30"]),
        (&["172.16.0.1", "fd00::1"], &["172.16.0.2/30", "fd00::2/64"]),
        (&["fe80::1"], &[]),
        // Routed to by itself.
        (&["169.254.1.1"], &["10.1.2.3/32"]),
    ] {
        check(gateways, addresses).unwrap();
    }
    for (gateways, addresses) in [
        (&["172.16.0.1"][..], &[][..]),
        (&["172.16.0.5"], &["172.16.0.2/30"]),
        (&["172.16.0.2"], &["172.16.0.2/30"]),
        (&["fd00::1"], &["172.16.0.2/30"]),
        (&["fd00::1"], &["10.1.2.3/32"]),
        (&["0.0.0.0"], &["10.1.2.3/32"]),
    ] {
        assert_eq!(check(gateways, addresses), Err(ValueError::Gateway(ip(gateways[0]))));
    }
    let error = check(&["172.16.0.1", "172.16.0.3"], &["172.16.0.2/24"]).unwrap_err();
    assert!(error.to_string().contains("2 gateways of one family: more than 1"), "{error}");
}

#[test]
fn names_are_those_that_a_kernel_takes() {
    for name in ["eth0", "a", "net-1_b", "abcdefghijklmno"] {
        assert_eq!(name.parse::<InterfaceName>().unwrap().as_str(), name);
    }
    for name in ["", "abcdefghijklmnop", "a/b", "a b", "a.b", "lo", "all", "default", "eth%d", "\u{e9}"] {
        assert!(name.parse::<InterfaceName>().is_err(), "{name}");
    }
    for name in ["org", "example.org", "a-b.x_y", "example.org.", &format!("{}.org", "a".repeat(63))] {
        assert_eq!(name.parse::<SearchDomain>().unwrap().as_str(), name);
    }
    for name in ["", ".", "a..b", ".a", "a b", "a\nb", "a#", &"a".repeat(64), &"a.".repeat(127)] {
        assert!(name.parse::<SearchDomain>().is_err(), "{name}");
    }
}

#[test]
fn a_message_comes_back_as_it_was() {
    assert_eq!(parse_interfaces(&[setup().message()]), Ok(vec![setup()]));
    let unnamed = InterfaceSetup { name: None, hardware_address: [2, 0, 0, 0, 0, 2], ..setup() };
    assert_eq!(InterfaceSetup::parse(&unnamed.message()), Ok(unnamed));
}

#[test]
fn what_is_wrong_in_a_message_is_named() {
    let refused = |change: fn(&mut agent::NetworkInterface)| {
        let mut message = setup().message();
        change(&mut message);
        InterfaceSetup::parse(&message).unwrap_err().to_string()
    };
    assert!(refused(|message| message.hardware_address.push(0)).contains("7 bytes"));
    assert!(refused(|message| message.name = "a/b".into()).contains("a/b"));
    assert!(refused(|message| message.addresses[0] = "10.0.0.1".into()).contains("10.0.0.1"));
    assert!(refused(|message| message.gateways[0] = "10.0.0.1".into()).contains("10.0.0.1"));
    assert!(refused(|message| message.gateways[0] = "router".into()).contains("router"));
    assert!(refused(|message| message.name_servers[0] = "fe80::1".into()).contains("fe80::1"));
    assert!(
        refused(|message| message.name_servers = vec!["10.0.0.1".into(); 4]).contains("4 name servers: more than 3")
    );
    assert!(refused(|message| message.search_domains[0] = "a b".into()).contains("a b"));
    let other = InterfaceSetup { hardware_address: [2, 0, 0, 0, 0, 2], ..setup() };
    let error = parse_interfaces(&[setup().message(), other.message()]).unwrap_err();
    assert_eq!(error, ValueError::SameInterface("eth0".into()));
    let other = InterfaceSetup { name: None, ..setup() };
    assert!(parse_interfaces(&[setup().message(), other.message()]).is_err());
    assert!(parse_interfaces(&vec![setup().message(); 17]).unwrap_err().to_string().contains("17"));
}

#[test]
fn an_instances_own_addresses_are_those_of_hosts() {
    let setup = |addresses: &[&str]| OwnNetworkSetup {
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        hardware_address: Some([2, 0, 0, 0, 0, 7]),
        egress: vec!["10.0.0.0/8:443/tcp".parse().unwrap()],
        receive: PacketLimit::default(),
        transmit: PacketLimit::default(),
    };
    let good = setup(&["10.0.0.9", "fd00::9"]);
    assert_eq!(OwnNetworkSetup::parse(&good.message()), Ok(good.clone()));
    let unnamed = OwnNetworkSetup { hardware_address: None, ..good.clone() };
    assert_eq!(OwnNetworkSetup::parse(&unnamed.message()), Ok(unnamed));
    for bad in ["169.254.1.1", "fe80::1", "127.0.0.1", "0.0.0.0", "224.0.0.1"] {
        assert_eq!(setup(&["10.0.0.9", bad]).check(), Err(ValueError::OwnAddress(ip(bad))));
    }
    assert_eq!(setup(&["10.0.0.9", "10.0.0.9"]).check(), Err(ValueError::OwnAddress(ip("10.0.0.9"))));
    assert_eq!(setup(&[]).check(), Err(ValueError::NoAddress));
    let many = OwnNetworkSetup { egress: vec![good.egress[0]; 65], ..good.clone() };
    assert_eq!(many.check(), Err(ValueError::TooMany { what: "egress rules", count: 65, limit: 64 }));
    assert!(OwnNetworkSetup::parse(&many.message()).is_err());
    let message = agent::OwnNetwork { egress: vec!["everything".into()], ..good.message() };
    assert_eq!(OwnNetworkSetup::parse(&message), Err(ValueError::Egress("everything".into())));
    let message = agent::OwnNetwork { hardware_address: vec![2], ..good.message() };
    assert_eq!(OwnNetworkSetup::parse(&message), Err(ValueError::HardwareAddress(1)));
}

proptest! {
    #[test]
    fn any_text_is_looked_at(text in "[0-9a-f.:/]{0,24}") {
        if let Ok(address) = text.parse::<InterfaceAddress>() {
            prop_assert_eq!(address.to_string().parse(), Ok(address));
            prop_assert!(address.reaches(address.address()));
        }
    }
}
