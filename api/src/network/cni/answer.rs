//! What the plugins' answer means for the guest: section 5 of the specification.

use std::net::IpAddr;

use bellows_vmm::{GuestNetwork, InterfaceAddress, SearchDomain};
use serde::Deserialize;
use serde_json::Value;

use super::error::CniError;

/// Most of each that a guest takes.
const MAX_NAME_SERVERS: usize = 3;
const MAX_SEARCH_DOMAINS: usize = 6;

/// A successful answer to `ADD`, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    interfaces: Vec<Interface>,
    ips: Vec<Ip>,
    routes: Vec<Route>,
    dns: Dns,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Interface {
    name: String,
    sandbox: String,
}

#[derive(Debug, Deserialize)]
struct Ip {
    address: String,
    #[serde(default)]
    gateway: Option<IpAddr>,
    /// Of `interfaces`.
    #[serde(default)]
    interface: Option<usize>,
}

#[derive(Debug, Deserialize)]
struct Route {
    dst: String,
    #[serde(default)]
    gw: Option<IpAddr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Dns {
    nameservers: Vec<IpAddr>,
    domain: Option<String>,
    search: Vec<String>,
}

/// What the guest's agent sets up, and the destinations of routes that it cannot have.
#[derive(Debug, PartialEq)]
pub(super) struct Network {
    pub(super) guest: GuestNetwork,
    pub(super) left_out: Vec<String>,
}

/// Of the interface `name` in the namespace.
///
/// # Errors
/// The answer is malformed.
pub(super) fn network(answer: &Value, name: &str) -> Result<Network, CniError> {
    let wrong = |what: String| CniError::Answer(what);
    // A list of the fields' values would be read as well.
    if !answer.is_object() {
        return Err(wrong(format!("it is {answer}: expected an object")));
    }
    let answer = Answer::deserialize(answer).map_err(|error| wrong(error.to_string()))?;
    let mut guest = GuestNetwork::default();
    let mut own_gateways = Vec::new();
    for ip in &answer.ips {
        let interface = match ip.interface {
            Some(index) => Some(answer.interfaces.get(index).ok_or_else(|| {
                wrong(format!("{} is at interface {index}: expected less than {}", ip.address, answer.interfaces.len()))
            })?),
            None => None,
        };
        // Others are the host's, or another one's in the namespace.
        if interface.is_some_and(|interface| interface.name != name || interface.sandbox.is_empty()) {
            continue;
        }
        let address = ip.address.parse::<InterfaceAddress>().map_err(|error| wrong(error.to_string()))?;
        guest.addresses.push(address);
        own_gateways.extend(ip.gateway);
    }
    let mut left_out = Vec::new();
    for Route { dst, gw } in answer.routes {
        let is_ipv4 = match dst.as_str() {
            "0.0.0.0/0" => true,
            "::/0" => false,
            _ => {
                left_out.push(dst);
                continue;
            }
        };
        // Without one it is that of the address.
        let gateway = gw.or_else(|| own_gateways.iter().find(|gateway| gateway.is_ipv4() == is_ipv4).copied());
        let known = guest.gateways.iter().any(|known| known.is_ipv4() == is_ipv4);
        guest.gateways.extend(gateway.filter(|_| !known));
    }
    guest.name_servers = answer.dns.nameservers;
    guest.name_servers.truncate(MAX_NAME_SERVERS);
    let domains = answer.dns.search.into_iter().chain(answer.dns.domain);
    for domain in domains.filter_map(|name| name.parse::<SearchDomain>().ok()) {
        if guest.search_domains.len() < MAX_SEARCH_DOMAINS && !guest.search_domains.contains(&domain) {
            guest.search_domains.push(domain);
        }
    }
    Ok(Network { guest, left_out })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_guest_takes_the_place_of_the_namespace() {
        // As the specification's example of a bridge, with IPv6.
        let answer = json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                { "name": "cni0", "mac": "00:11:22:33:44:55" },
                { "name": "veth3243", "mac": "55:44:33:22:11:11" },
                { "name": "eth0", "mac": "99:88:77:66:55:44", "sandbox": "/proc/7/fd/5" },
            ],
            "ips": [
                { "address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 2 },
                { "address": "10.1.0.1/16", "interface": 0 },
                { "address": "fd00:1::5/64", "gateway": "fd00:1::1", "interface": 2 },
            ],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0", "gw": "fd00:1::2" }, { "dst": "10.9.0.0/16" }],
            "dns": { "nameservers": ["10.1.0.1"], "domain": "a.example", "search": ["b.example", "a.example"] },
        });
        let Network { guest, left_out } = network(&answer, "eth0").unwrap();
        assert_eq!(
            serde_json::to_value(guest).unwrap(),
            json!({
                "addresses": ["10.1.0.5/16", "fd00:1::5/64"],
                "gateways": ["10.1.0.1", "fd00:1::2"],
                "name_servers": ["10.1.0.1"],
                "search_domains": ["b.example", "a.example"],
            })
        );
        assert_eq!(left_out, ["10.9.0.0/16"]);
    }

    #[test]
    fn without_a_default_route_there_is_no_gateway() {
        let answer = json!({ "ips": [{ "version": "4", "address": "10.1.0.5/16", "gateway": "10.1.0.1" }] });
        let network = network(&answer, "eth0").unwrap();
        assert_eq!((network.guest.addresses.len(), network.guest.gateways.len()), (1, 0));
    }

    #[test]
    fn a_malformed_answer_is_refused_with_what_is_wrong() {
        for (answer, expected) in [
            (json!({ "ips": [{ "address": "10.1.0.5" }] }), "10.1.0.5"),
            (json!({ "ips": [{ "address": "10.1.0.5/16", "interface": 1 }], "interfaces": [{}] }), "less than 1"),
            (json!({ "routes": [{ "dst": "::/0", "gw": "nowhere" }] }), "invalid IP address"),
            (json!([]), "expected an object"),
        ] {
            let error = network(&answer, "eth0").unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
