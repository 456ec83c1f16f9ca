use super::*;

fn refused(method: &str, path: &str, body: &[u8]) -> String {
    match parse(method, path, body) {
        Err(fault) => {
            assert_eq!(fault.status, 400, "{fault}");
            fault.message
        }
        Ok(request) => panic!("{request:?}"),
    }
}

#[test]
fn each_path_has_its_verbs() {
    let machine = br#"{"vcpu_count": 1, "mem_size_mib": 128}"#;
    for (method, path, body, expected) in [
        ("GET", "/", &b""[..], Request::Read(Read::Instance)),
        ("GET", "/version", b"", Request::Read(Read::Version)),
        ("GET", "/machine-config", b"", Request::Read(Read::Machine)),
        ("GET", "/vm/config", b"", Request::Read(Read::VmConfig)),
        ("GET", "/balloon/statistics", b"", Request::Read(Read::BalloonStatistics)),
        ("GET", "/balloon/hinting/status?x=y", b"", Request::Read(Read::Hinting)),
        ("PUT", "/machine-config", machine, Request::Change(Change::Machine(json(machine).unwrap()))),
        ("GET", "/hotplug/memory", b"", Request::Read(Read::MemoryHotplug)),
        ("GET", "/mmds", b"", Request::Read(Read::Metadata)),
        ("PUT", "/mmds", b"[1]", Request::Change(Change::PutMetadata(serde_json::json!([1])))),
        ("PATCH", "/mmds", b"null", Request::Change(Change::PatchMetadata(Value::Null))),
        ("PATCH", "/vm", br#"{"state": "Paused"}"#, Request::Change(Change::Pause)),
        ("PATCH", "/vm", br#"{"state": "Resumed"}"#, Request::Change(Change::Resume)),
        ("PUT", "/actions", br#"{"action_type": "InstanceStart"}"#, Request::Change(Change::Start)),
        ("PUT", "/actions", br#"{"action_type": "FlushMetrics"}"#, Request::Change(Change::FlushMetrics)),
        ("PATCH", "/balloon", br#"{"amount_mib": 3}"#, Request::Change(Change::ResizeBalloon(3))),
        ("PATCH", "/balloon/hinting/start", b"", Request::Change(Change::StartHinting(true))),
        ("DELETE", "/drives/data_1", b"", Request::Change(Change::RemoveDrive("data_1".into()))),
        ("DELETE", "/pmem/p", b"", Request::Change(Change::RemovePmem("p".into()))),
    ] {
        assert_eq!(parse(method, path, body), Ok(expected), "{method} {path}");
    }
}

#[test]
fn what_is_no_request_is_refused() {
    for (method, path, body, part) in [
        ("GET", "/nothing", "", "`GET /nothing` is not a request of this API"),
        ("POST", "/actions", "{}", "`POST /actions`"),
        ("GET", "/vm", "", "`GET /vm`"),
        ("GET", "/version/1", "", "`GET /version/1`"),
        ("DELETE", "/drives", "", "`DELETE /drives`"),
        ("PUT", "/drives", "{}", "`PUT /drives`"),
        ("GET", "/", "{}", "has a body: expected none"),
        ("PUT", "/actions", "", "has no body: expected JSON"),
        ("PUT", "/actions", r#"{"action_type": "Dance"}"#, "unknown variant `Dance`"),
        ("PUT", "/actions", r#"{"action_type": "InstanceStart", "when": "now"}"#, "unknown field `when`"),
        ("PUT", "/actions", "{", "cannot understand the body: EOF"),
        ("PUT", "/hotplug/memory", "{}", "missing field `total_size_mib`"),
        ("PATCH", "/hotplug/memory", r#"{"requested_size_mib": -1}"#, "invalid value"),
        ("GET", "/hotplug", "", "`GET /hotplug` is not a request"),
        ("PUT", "/mmds/config", "{}", "missing field `network_interfaces`"),
        ("PUT", "/mmds/config", r#"{"network_interfaces": [], "version": "V3"}"#, "unknown variant `V3`"),
        ("PUT", "/mmds/config", r#"{"network_interfaces": [], "ipv4_address": "x"}"#, "invalid IPv4 address"),
        ("PUT", "/mmds/other", "{}", "`PUT /mmds/other` is not a request"),
        ("PUT", "/mmds", "", "has no body: expected JSON"),
        ("DELETE", "/mmds", "", "`DELETE /mmds` is not a request"),
        ("PATCH", "/vm", r#"{"state": "Running"}"#, "unknown variant `Running`"),
    ] {
        let message = refused(method, path, body.as_bytes());
        assert!(message.contains(part), "{message}");
    }
    assert!(refused("PUT", "/vsock", b"{\"uds_path\": \"\xff\"}").contains("cannot understand the body"));
}

#[test]
fn what_is_missing_is_refused_as_such() {
    for (method, path) in [("PUT", "/snapshot/create"), ("PUT", "/snapshot/load")] {
        let message = refused(method, path, b"{}");
        assert!(message.contains("not supported yet: Bellows does not have"), "{message}");
    }
}

#[test]
fn a_drive_has_one_name_of_plain_letters() {
    let body = br#"{"drive_id": "a", "is_root_device": false}"#;
    assert!(matches!(parse("PUT", "/drives/a", body), Ok(Request::Change(Change::Drive(_)))));
    assert!(refused("PUT", "/drives/b", body).contains("`drive_id` is `a`: expected `b`, as in the path"));
    let pmem = br#"{"id": "a", "path_on_host": "/a", "read_only": true}"#;
    assert!(matches!(parse("PUT", "/pmem/a", pmem), Ok(Request::Change(Change::Pmem(_)))));
    assert!(refused("PUT", "/pmem/b", pmem).contains("`id` is `a`: expected `b`"));
    assert!(refused("PATCH", "/pmem/a", b"{}").contains("no rate limits"));
    assert!(refused("PATCH", "/drives/b", br#"{"drive_id": "a"}"#).contains("expected `b`"));
    for id in ["a-b", "a%20b", &"a".repeat(MAX_ID + 1)] {
        assert!(refused("PUT", &format!("/drives/{id}"), body).contains("letters, digits and underscores"), "{id}");
    }
}

#[test]
fn a_network_interface_has_one_name_too() {
    let body = br#"{"iface_id": "eth0", "host_dev_name": "tap0"}"#;
    assert!(matches!(parse("PUT", "/network-interfaces/eth0", body), Ok(Request::Change(Change::Network(_)))));
    assert!(refused("PUT", "/network-interfaces/eth1", body).contains("`iface_id` is `eth0`: expected `eth1`"));
    let update = br#"{"iface_id": "eth0"}"#;
    let parsed = parse("PATCH", "/network-interfaces/eth0", update);
    assert!(matches!(parsed, Ok(Request::Change(Change::UpdateNetwork(_)))), "{parsed:?}");
    assert!(refused("PATCH", "/network-interfaces/a-b", update).contains("`iface_id` is `a-b`"));
    assert_eq!(
        parse("DELETE", "/network-interfaces/eth0", b""),
        Ok(Request::Change(Change::RemoveNetwork("eth0".into())))
    );
    assert!(refused("DELETE", "/network-interfaces/a-b", b"").contains("`iface_id` is `a-b`"));
}

/// Whatever a client sends is an answer, not a panic.
mod never_panics {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn on_any_request(method in "(GET|PUT|PATCH|DELETE|.{0,5})", path in ".{0,40}", body in any::<Vec<u8>>()) {
            let _ = parse(&method, &path, &body);
        }
    }
}
