//! Guests read the metadata of their VM.

use bellows_vmm::{GuestNetwork, InstanceNetwork, InstanceSpec, MmdsConfig, NetConfig, OwnNetwork, Tap};
use serde_json::json;

use crate::api_instances::{IMAGE, body, booted_with, end, send, stream};
use crate::fixture::{Guest, image_id};
use crate::network::HostTap;

/// Asks the service without a token, with a wrong one, and with one of its own; waits until the metadata has changed, and asks again.
const SESSION: &str = "
import sys, time, urllib.error, urllib.request
def ask(path, method='GET', **headers):
    headers = {name.replace('_', '-'): value for name, value in headers.items()}
    request = urllib.request.Request('http://169.254.170.2' + path, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=250) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
print(ask('/latest/meta-data/ami-id'))
print(ask('/latest/meta-data/ami-id', X_metadata_token='wrong'))
status, token = ask('/latest/api/token', 'PUT', X_aws_ec2_metadata_token_ttl_seconds='600')
print(status, len(token))
print(ask('/latest/meta-data', X_aws_ec2_metadata_token=token))
print(ask('/latest/meta-data', X_metadata_token=token, Accept='application/json'))
print(ask('/none', X_metadata_token=token), flush=True)
while ask('/latest/meta-data/ami-id', X_metadata_token=token) == (200, 'ami-1'):
    time.sleep(0.05)
print(ask('/latest/meta-data/ami-id', X_metadata_token=token), flush=True)
";

const SESSION_SAYS: [&str; 7] = [
    "(401, 'No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` header to specify the session token.')",
    "(401, 'MMDS token not valid.')",
    "200 48",
    r"(200, 'ami-id\nnetwork/')",
    r#"(200, '{"ami-id":"ami-1","network":{"mtu":1500}}')"#,
    "(404, 'Resource not found: /none.')",
    "(200, 'ami-2')",
];

#[test]
fn metadata_that_requests_set_is_read_with_a_token() {
    let tap = HostTap::new("bls");
    let api = booted_with(&[], &[], |api| {
        // The host is nobody's gateway: the service has this interface's address of its network.
        let guest = json!({ "addresses": ["169.254.1.2/16"] });
        let interface = json!({ "iface_id": "eth0", "host_dev_name": tap.name(), "guest": guest });
        api.put("/network-interfaces/eth0", interface);
        let mmds = json!({ "network_interfaces": ["eth0"], "version": "V2", "ipv4_address": "169.254.170.2" });
        api.put("/mmds/config", mmds);
        api.put("/mmds", json!({ "latest": { "meta-data": { "ami-id": "ami-1", "network": { "mtu": 1500 } } } }));
    });
    let late = api.refused("PUT", "/mmds/config", r#"{"network_interfaces": ["eth0"]}"#);
    assert!(late.contains("before `InstanceStart`"), "{late}");
    let session = json!({ "image": IMAGE, "argv": ["python3", "-c", SESSION], "memory_mib": 0, "network": "vm" });
    body(send(&api, "PUT", "/instances/a", &session), 200);
    let mut lines = stream(&api, "/instances/a/logs?follow=true").skip(1);
    for expected in &SESSION_SAYS[..6] {
        assert!(lines.any(|line| line == *expected), "{expected}: {:?}", api.get("/instances/a"));
    }
    api.patch("/mmds", json!({ "latest": { "meta-data": { "ami-id": "ami-2" } } }));
    assert!(lines.any(|line| line == SESSION_SAYS[6]));
    assert_eq!(api.get("/mmds")["latest"]["meta-data"], json!({ "ami-id": "ami-2", "network": { "mtu": 1500 } }));
    assert_eq!(api.get("/instances/a/wait")["ended"]["exit_code"], 0);
    end(api);
}

/// Asks over one connection until the answer changes.
const TWICE: &str = "
import http.client, time
connection = http.client.HTTPConnection('169.254.169.254', timeout=250)
def ask(path):
    connection.request('GET', path)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()
print(*ask('/name'), flush=True)
while ask('/name') == (200, 'one'):
    time.sleep(0.05)
print(*ask('/name'))
status, large = ask('/large')
print(status, len(large), set(large), flush=True)
";

#[test]
fn metadata_is_read_without_a_token_past_a_pause_and_from_a_network_behind_the_guests() {
    let tap = HostTap::at("blm", &["172.16.9.1/24"]);
    let network = GuestNetwork {
        addresses: vec!["172.16.9.2/24".parse().unwrap()],
        gateways: vec!["172.16.9.1".parse().unwrap()],
        ..GuestNetwork::default()
    };
    let interface = NetConfig { guest: Some(network), ..NetConfig::new("eth0", Tap::Name(tap.name().to_owned())) };
    let mmds = MmdsConfig { interfaces: vec!["eth0".into()], ..MmdsConfig::default() };
    let guest = Guest::ours().network(interface).mmds(mmds).boot();
    guest.vm.metadata().put(json!({ "name": "one", "large": "x".repeat(40_000) })).unwrap();
    let python = |id: &str, network| {
        InstanceSpec::new(id.parse().unwrap(), image_id(), ["python3", "-c", TWICE]).on_network(network)
    };
    let egress = vec!["169.254.169.254:80/tcp".parse().unwrap()];
    let own = OwnNetwork { egress, ..OwnNetwork::new(vec!["172.16.9.9".parse().unwrap()]) };
    let jobs = [("vm", InstanceNetwork::Vm), ("own", InstanceNetwork::Own(own))]
        .map(|(id, network)| guest.start_spec(&python(id, network)));
    for job in &jobs {
        job.wait_for("200 one");
    }
    guest.vm.pause().unwrap();
    guest.vm.metadata().patch(json!({ "name": "two" })).unwrap();
    guest.vm.resume().unwrap();
    for job in jobs {
        let (status, output) = job.finish();
        assert_eq!(output, "200 one\n200 two\n200 40000 {'x'}\n");
        assert_eq!(status.code, 0);
    }
    let traffic = guest.vm.network_statistics("eth0").unwrap();
    assert_eq!((traffic.received.malformed, traffic.transmitted.malformed), (0, 0), "{traffic:?}");
    guest.shutdown();
}
