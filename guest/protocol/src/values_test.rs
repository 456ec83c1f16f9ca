use super::*;

#[test]
fn identifiers_are_safe_as_names() {
    for good in ["a", "0", "resize-7", &"x".repeat(64)] {
        assert_eq!(good.parse::<InstanceId>().unwrap().as_str(), good);
        assert!(good.parse::<ImageId>().is_ok());
    }
    for bad in ["", "-a", "A", "a_b", "a/b", "..", "a\0", "ä", &"x".repeat(65)] {
        assert!(bad.parse::<InstanceId>().is_err(), "{bad:?}");
        assert!(bad.parse::<ImageId>().is_err(), "{bad:?}");
    }
}

#[test]
fn a_refusal_names_the_value_but_not_all_of_a_long_one() {
    let error = "a/b".parse::<InstanceId>().unwrap_err();
    assert!(error.to_string().contains("a/b"));
    let long = "x".repeat(100_000).parse::<InstanceId>().unwrap_err();
    assert!(long.to_string().len() < 300);
}

#[test]
fn pci_addresses_are_those_of_sysfs() {
    for good in ["0000:00:00.0", "0000:01:04.0", "ffff:ff:1f.7"] {
        assert_eq!(good.parse::<PciAddress>().unwrap().to_string(), good);
    }
    for bad in
        ["", "0000:00:20.0", "0000:00:00.8", "0000:00:0A.0", "00:00.0", "0000:00:00.0 ", "0000/00/00.0", "0000:00:+1.0"]
    {
        assert!(bad.parse::<PciAddress>().is_err(), "{bad:?}");
    }
}

#[test]
fn serials_fit_the_device_and_a_path() {
    for good in ["0123456789abcdef0123", "layer_1", "a.b-c"] {
        assert!(good.parse::<Serial>().is_ok());
    }
    for bad in ["", ".", "..", ".x", "a:b", "a,b", "a/b", "0123456789abcdef01234", "a b"] {
        assert!(bad.parse::<Serial>().is_err(), "{bad:?}");
    }
}

#[test]
fn nodes_are_bounded() {
    assert!(!Node::try_from(0).unwrap().is_partition());
    assert!(Node::try_from(MAX_NODES - 1).unwrap().is_partition());
    assert_eq!(Node::try_from(MAX_NODES), Err(ValueError::Node(MAX_NODES)));
}

#[test]
fn lists_are_bounded() {
    let texts = vec!["a".to_owned(), "b".to_owned()];
    assert_eq!(parse_all::<Serial>(&texts, "layers", 2).unwrap().len(), 2);
    let error = parse_all::<Serial>(&texts, "layers", 1).unwrap_err();
    assert_eq!(error, ValueError::TooMany { what: "layers", count: 2, limit: 1 });
}

#[test]
fn commands_fit_an_execve() {
    let strings = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    assert_eq!(check_command(&strings(&["sh"]), &strings(&["A=", "B=c=d"])), Ok(()));
    assert_eq!(check_command(&[], &[]), Err(ValueError::NoArguments));
    assert_eq!(check_command(&strings(&[""]), &[]), Err(ValueError::NoArguments));
    assert!(matches!(check_command(&strings(&["sh", "a\0b"]), &[]), Err(ValueError::Argument(_))));
    for bad in ["A", "=b", "A=\0"] {
        assert!(
            matches!(check_command(&strings(&["sh"]), &strings(&[bad])), Err(ValueError::Environment(_))),
            "{bad:?}"
        );
    }
    let long = "x".repeat(MAX_ARGUMENT_BYTES);
    assert!(matches!(check_command(&[long], &[]), Err(ValueError::TooMany { .. })));
}

#[test]
fn a_working_directory_is_absolute() {
    assert_eq!(check_working_directory(""), Ok("/"));
    assert_eq!(check_working_directory("/srv"), Ok("/srv"));
    assert!(check_working_directory("srv").is_err());
    assert!(check_working_directory("/a\0").is_err());
}
