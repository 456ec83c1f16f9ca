//! `--config-file`: what requests would say, in one file.

use std::fs;

use serde_json::{Map, Value};

use super::fault::Fault;
use super::request::{Change, Request, parse};

/// Keys of the file and the paths of their requests, in the order in which they are carried out. A list is a request for each.
const KEYS: [(&str, &str, Kind); 14] = [
    ("logger", "/logger", Kind::One),
    ("metrics", "/metrics", Kind::One),
    ("machine-config", "/machine-config", Kind::One),
    ("cpu-config", "/cpu-config", Kind::File),
    ("boot-source", "/boot-source", Kind::One),
    ("drives", "/drives", Kind::Many("drive_id")),
    ("network-interfaces", "/network-interfaces", Kind::Many("iface_id")),
    ("partitions", "/partitions", Kind::Numbered),
    ("vsock", "/vsock", Kind::One),
    ("balloon", "/balloon", Kind::One),
    ("mmds-config", "/mmds/config", Kind::One),
    ("entropy", "/entropy", Kind::One),
    ("pmem", "/pmem", Kind::Many("id")),
    ("memory-hotplug", "/hotplug/memory", Kind::One),
];

#[derive(Clone, Copy)]
enum Kind {
    /// An object, or null.
    One,
    /// The path of a file with an object, or null.
    File,
    /// A list of objects, which have their names here.
    Many(&'static str),
    /// A list, whose elements are numbered from 1.
    Numbered,
}

/// The changes that a file asks for.
///
/// # Errors
/// It is not JSON, or one of its parts would be refused as a request.
pub(crate) fn changes(text: &str) -> Result<Vec<Change>, Fault> {
    let file: Map<String, Value> = serde_json::from_str(text).map_err(|error| Fault::new(error.to_string()))?;
    if let Some(key) = file.keys().find(|key| KEYS.iter().all(|(known, ..)| known != key)) {
        let known = KEYS.map(|(key, ..)| format!("`{key}`")).join(", ");
        return Err(Fault::new(format!("unknown key `{}`: expected {known}", key.escape_debug())));
    }
    let mut changes = Vec::new();
    for (key, path, kind) in KEYS {
        match (kind, file.get(key)) {
            (_, None | Some(Value::Null)) => {}
            (Kind::One, Some(body)) => changes.push(change(key, path, body)?),
            (Kind::File, Some(Value::String(file))) => changes.push(change(key, path, &read(key, file)?)?),
            (Kind::File, Some(other)) => return Err(Fault::value(key, other, "the path of a file")),
            (Kind::Many(name), Some(Value::Array(bodies))) => {
                for (index, body) in bodies.iter().enumerate() {
                    let id = body.get(name).and_then(Value::as_str).unwrap_or_default();
                    changes.push(change(&format!("{key}[{index}]"), &format!("{path}/{id}"), body)?);
                }
            }
            (Kind::Numbered, Some(Value::Array(bodies))) => {
                for (index, body) in bodies.iter().enumerate() {
                    changes.push(change(&format!("{key}[{index}]"), &format!("{path}/{}", index + 1), body)?);
                }
            }
            (Kind::Many(_) | Kind::Numbered, Some(other)) => return Err(Fault::value(key, other, "a list")),
        }
    }
    Ok(changes)
}

/// Reads a file that has a request's body.
fn read(key: &str, path: &str) -> Result<Value, Fault> {
    let wrong =
        |error: &dyn std::fmt::Display| Fault::value(key, format!("`{path}`"), format!("a file with JSON: {error}"));
    let text = fs::read_to_string(path).map_err(|error| wrong(&error))?;
    serde_json::from_str(&text).map_err(|error| wrong(&error))
}

fn change(key: &str, path: &str, body: &Value) -> Result<Change, Fault> {
    match parse("PUT", path, body.to_string().as_bytes()) {
        Ok(Request::Change(change)) => Ok(change),
        Ok(Request::Read(_) | Request::Document) => Err(Fault::new(format!("`{key}` changes nothing"))),
        Err(fault) => Err(Fault { message: format!("`{key}`: {fault}"), ..fault }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_as_many_requests() {
        let text = r#"{
            "drives": [
                { "drive_id": "a", "path_on_host": "a.img", "is_root_device": true },
                { "drive_id": "b", "path_on_host": "b.img", "is_root_device": false }
            ],
            "boot-source": { "kernel_image_path": "vmlinux", "boot_args": "quiet" },
            "machine-config": { "vcpu_count": 1, "mem_size_mib": 128 },
            "network-interfaces": [],
            "vsock": null
        }"#;
        let changes = changes(text).unwrap();
        assert!(
            matches!(
                changes.as_slice(),
                [Change::Machine(_), Change::BootSource(_), Change::Drive(a), Change::Drive(b)]
                    if a.drive_id == "a" && b.drive_id == "b"
            ),
            "{changes:?}"
        );
    }

    #[test]
    fn a_wrong_part_is_named() {
        for (text, part) in [
            ("[]", "invalid type"),
            (r#"{"boot_source": {}}"#, "unknown key `boot_source`: expected `logger`"),
            (r#"{"drives": {}}"#, "`drives` is {}: expected a list"),
            (r#"{"drives": [{"drive_id": "a", "is_root_device": 1}]}"#, "`drives[0]`: cannot understand"),
            (r#"{"drives": [{"is_root_device": true}]}"#, "`drives[0]`"),
            (
                r#"{"network-interfaces": [{"iface_id": "eth0"}]}"#,
                "`network-interfaces[0]`: cannot understand the body: missing field `host_dev_name`",
            ),
            (r#"{"cpu-config": {}}"#, "`cpu-config` is {}: expected the path of a file"),
            (r#"{"cpu-config": "/nowhere"}"#, "`cpu-config` is `/nowhere`: expected a file with JSON"),
            (r#"{"mmds-config": {}}"#, "`mmds-config`: cannot understand the body: missing field `network_interfaces`"),
        ] {
            let message = changes(text).unwrap_err().message;
            assert!(message.contains(part), "{message}");
        }
    }
}
