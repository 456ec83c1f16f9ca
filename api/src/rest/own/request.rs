//! From a method, a path and a body to what is to be done with images, partitions and instances: parsing alone.

use std::str::FromStr;

use bellows_vmm::{ImageId, InstanceId, PartitionId};

use super::bodies::{Exec, InstanceUpdate, NewImage, NewInstance, Resize, Signal, Stop};
use crate::rest::fault::Fault;
use crate::rest::request::{json, partition, unknown};

/// A request of Bellows' own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Own {
    Images,
    AttachImage(ImageId, NewImage),
    DetachImage(ImageId),
    Partitions,
    Partition(PartitionId),
    Resize(PartitionId, Resize),
    Unplug(PartitionId),
    Instances,
    Instance(InstanceId),
    Start(InstanceId, Box<NewInstance>),
    Update(InstanceId, InstanceUpdate),
    Remove(InstanceId),
    Signal(InstanceId, Signal),
    Stop(InstanceId, Stop),
    Exec(InstanceId, Box<Exec>),
    /// What is at a path.
    Look(InstanceId, String),
    /// An archive of it.
    Pack(InstanceId, String),
    /// An archive into it.
    Unpack(InstanceId, String),
    Wait(InstanceId),
    Logs(InstanceId, LogQuery),
    Memory,
    Events,
    Prometheus,
}

/// What of an instance's output is wanted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct LogQuery {
    /// The answer goes on until the instance has ended.
    pub(crate) follow: bool,
    /// One of the two; without it both, as they came.
    pub(crate) stream: Option<Output>,
}

/// A stream of output.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Output {
    Stdout,
    Stderr,
}

/// Reads a request; `None` if the path is not one of Bellows' own, or belongs to the configuration.
pub(crate) fn parse(method: &str, path: &str, body: &[u8]) -> Option<Result<Own, Fault>> {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let parts: Vec<&str> = path.trim_start_matches('/').split_terminator('/').collect();
    let own = match parts.as_slice() {
        ["images" | "instances" | "events" | "memory", ..] | ["metrics", "prometheus"] => true,
        // A window is configured before the VM boots.
        ["partitions", _] => method != "PUT",
        ["partitions", ..] => true,
        _ => false,
    };
    own.then(|| read(method, path, &parts, query, body))
}

fn read(method: &str, path: &str, parts: &[&str], query: &str, body: &[u8]) -> Result<Own, Fault> {
    let own = match (method, parts) {
        ("GET", ["images"]) => Ok(Own::Images),
        ("PUT", ["images", id]) => Ok(Own::AttachImage(named("image", id)?, json(body)?)),
        ("DELETE", ["images", id]) => named("image", id).map(Own::DetachImage),
        ("GET", ["partitions"]) => Ok(Own::Partitions),
        ("GET", ["partitions", id]) => partition(id).map(Own::Partition),
        ("PATCH", ["partitions", id]) => Ok(Own::Resize(partition(id)?, json(body)?)),
        ("DELETE", ["partitions", id]) => partition(id).map(Own::Unplug),
        ("GET", ["instances"]) => Ok(Own::Instances),
        ("GET", ["instances", id]) => named("instance", id).map(Own::Instance),
        ("PUT", ["instances", id]) => Ok(Own::Start(named("instance", id)?, Box::new(json(body)?))),
        ("PATCH", ["instances", id]) => Ok(Own::Update(named("instance", id)?, json(body)?)),
        ("DELETE", ["instances", id]) => named("instance", id).map(Own::Remove),
        ("PUT", ["instances", id, "signal"]) => Ok(Own::Signal(named("instance", id)?, json(body)?)),
        ("POST", ["instances", id, "stop"]) => {
            let stop = if body.is_empty() { b"{}" } else { body };
            Ok(Own::Stop(named("instance", id)?, json(stop)?))
        }
        ("POST", ["instances", id, "exec"]) => Ok(Own::Exec(named("instance", id)?, Box::new(json(body)?))),
        ("GET", ["instances", id, "files"]) => Ok(Own::Look(named("instance", id)?, path_query(query)?)),
        ("GET", ["instances", id, "archive"]) => Ok(Own::Pack(named("instance", id)?, path_query(query)?)),
        ("PUT", ["instances", id, "archive"]) => Ok(Own::Unpack(named("instance", id)?, path_query(query)?)),
        ("GET", ["instances", id, "wait"]) => named("instance", id).map(Own::Wait),
        ("GET", ["instances", id, "logs"]) => Ok(Own::Logs(named("instance", id)?, log_query(query)?)),
        ("GET", ["memory"]) => Ok(Own::Memory),
        ("GET", ["events"]) => Ok(Own::Events),
        ("GET", ["metrics", "prometheus"]) => Ok(Own::Prometheus),
        _ => return Err(not_here(parts, unknown(method, path))),
    };
    if matches!(method, "GET" | "DELETE") && !body.is_empty() {
        return Err(Fault::new(format!("`{method} {path}` has a body: expected none")));
    }
    if !query.is_empty() && !matches!(parts, ["instances", _, "logs" | "files" | "archive"]) {
        return Err(Fault::new(format!("`{method} {path}` has the query `{}`: expected none", query.escape_debug())));
    }
    own
}

/// 405 where the path has other methods, which the answer then lists (RFC 9110, section 15.5.6), else 404.
fn not_here(parts: &[&str], fault: Fault) -> Fault {
    let methods = match parts {
        ["images" | "instances" | "partitions" | "events" | "memory"]
        | ["metrics", "prometheus"]
        | ["instances", _, "wait" | "logs" | "files"] => "GET",
        ["instances", _, "archive"] => "GET, PUT",
        ["images", _] => "PUT, DELETE",
        ["instances" | "partitions", _] => "GET, PUT, PATCH, DELETE",
        ["instances", _, "signal"] => "PUT",
        ["instances", _, "stop" | "exec"] => "POST",
        _ => return Fault { status: 404, ..fault },
    };
    Fault { status: 405, allow: Some(methods), ..fault }
}

fn named<T: FromStr>(what: &str, text: &str) -> Result<T, Fault> {
    let wrong = |_| {
        let value = format!("`{}`", text.escape_debug());
        Fault::value(what, value, "1 to 64 of a-z, 0-9 and `-`, not starting with `-`")
    };
    text.parse().map_err(wrong)
}

fn log_query(query: &str) -> Result<LogQuery, Fault> {
    let mut wanted = LogQuery::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair {
            "follow=true" => wanted.follow = true,
            "follow=false" => wanted.follow = false,
            "stream=stdout" => wanted.stream = Some(Output::Stdout),
            "stream=stderr" => wanted.stream = Some(Output::Stderr),
            _ => {
                let expected = "`follow=true`, `follow=false`, `stream=stdout`, `stream=stderr`";
                return Err(Fault::value("query", format!("`{}`", pair.escape_debug()), expected));
            }
        }
    }
    Ok(wanted)
}

/// A path of an instance; without one, its root.
fn path_query(query: &str) -> Result<String, Fault> {
    if query.is_empty() {
        return Ok("/".into());
    }
    let wrong = || Fault::value("query", format!("`{}`", query.escape_debug()), "`path=` and an absolute path");
    let path = query.strip_prefix("path=").and_then(decoded).ok_or_else(wrong)?;
    if !path.starts_with('/') || path.contains('\0') || path.len() >= 4096 {
        return Err(wrong());
    }
    Ok(path)
}

/// A value of a query (RFC 3986, section 2.1); `None` if it is none, or not UTF-8.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                bytes.push(u8::try_from(high << 4 | low).ok()?);
            }
            b'&' | b'=' | b'#' => return None,
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(method: &str, path: &str, body: &str) -> String {
        parse(method, path, body.as_bytes()).unwrap().unwrap_err().message
    }

    fn own(method: &str, path: &str, body: &str) -> Own {
        parse(method, path, body.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn names_and_numbers_are_read_from_the_path() {
        let a: InstanceId = "a-1".parse().unwrap();
        assert_eq!(own("GET", "/instances/a-1", ""), Own::Instance(a.clone()));
        assert_eq!(own("DELETE", "/partitions/3", ""), Own::Unplug(PartitionId::new(3).unwrap()));
        let both = LogQuery { follow: true, stream: Some(Output::Stderr) };
        assert_eq!(own("GET", "/instances/a-1/logs?follow=true&stream=stderr", ""), Own::Logs(a.clone(), both));
        assert_eq!(own("GET", "/instances/a-1/logs", ""), Own::Logs(a, LogQuery::default()));
        assert_eq!(own("GET", "/metrics/prometheus", ""), Own::Prometheus);
        let a: InstanceId = "a-1".parse().unwrap();
        let path = "/a b/\u{fc}?&%".to_owned();
        let query = "path=/a%20b/%C3%bc%3F%26%25";
        assert_eq!(own("GET", &format!("/instances/a-1/files?{query}"), ""), Own::Look(a.clone(), path.clone()));
        assert_eq!(own("PUT", &format!("/instances/a-1/archive?{query}"), ""), Own::Unpack(a.clone(), path));
        assert_eq!(own("GET", "/instances/a-1/archive", ""), Own::Pack(a, "/".into()));
    }

    #[test]
    fn what_belongs_to_firecracker_or_the_configuration_is_not_read_here() {
        for (method, path) in [("PUT", "/metrics"), ("GET", "/"), ("PUT", "/partitions/1"), ("GET", "/machine-config")]
        {
            assert!(parse(method, path, b"{}").is_none(), "{method} {path}");
        }
    }

    #[test]
    fn a_method_that_is_not_there_differs_from_a_path_that_is_not() {
        for (method, path, status) in [
            ("POST", "/instances/a", 405),
            ("PUT", "/events", 405),
            ("PUT", "/memory", 405),
            ("GET", "/memory/1", 404),
            ("POST", "/metrics/prometheus", 405),
            ("GET", "/instances/a/exec", 405),
            ("PUT", "/partitions", 405),
            ("GET", "/instances/a/b", 404),
            ("GET", "/images/a/b/c", 404),
        ] {
            let fault = parse(method, path, b"").unwrap().unwrap_err();
            assert_eq!((fault.status, fault.allow.is_some()), (status, status == 405), "{method} {path}: {fault}");
        }
    }

    #[test]
    fn a_wrong_method_is_said_before_a_wrong_body() {
        for (method, path) in [("GET", "/instances/a/stop"), ("DELETE", "/instances"), ("GET", "/instances/a/exec?x=1")]
        {
            assert_eq!(parse(method, path, b"{}").unwrap().unwrap_err().status, 405, "{method} {path}");
        }
    }

    /// By the document, which is written apart from the parser.
    #[test]
    fn the_methods_of_a_path_are_named() {
        let document = crate::rest::openapi::document();
        for (path, methods) in document["paths"].as_object().unwrap() {
            let path = path.replace("{partition}", "1").replace(['{', '}'], "");
            let Some(parsed) = parse("TRACE", &path, b"") else { continue };
            let allow = parsed.unwrap_err().allow.unwrap_or_else(|| panic!("{path}"));
            let mut allowed: Vec<_> = allow.split(", ").map(str::to_lowercase).collect();
            let mut said: Vec<_> = methods.as_object().unwrap().keys().filter(|key| *key != "parameters").collect();
            allowed.sort();
            said.sort();
            assert!(allowed.iter().eq(said), "{path}: {allow}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (method, path, body, part) in [
            ("GET", "/instances/A", "", "`A`"),
            ("GET", "/instances/-a", "", "`-a`"),
            ("GET", "/partitions/0", "", "`0`"),
            ("GET", "/partitions/01", "", "`01`"),
            ("GET", "/partitions/+1", "", "`+1`"),
            ("GET", "/partitions/70000", "", "`70000`"),
            ("GET", "/instances/a/logs?follow=yes", "", "`follow=yes`"),
            ("GET", "/instances?x=1", "", "`x=1`"),
            ("GET", "/instances/a/files?path=x", "", "absolute"),
            ("GET", "/instances/a/files?path=/%zz", "", "absolute"),
            ("GET", "/instances/a/files?path=/%00", "", "absolute"),
            ("GET", "/instances/a/files?path=/%ff", "", "absolute"),
            ("GET", "/instances/a/files?path=/a&b=c", "", "absolute"),
            ("GET", "/instances", "{}", "has a body"),
            ("POST", "/instances/a", "{}", "not a request"),
            ("PATCH", "/partitions/1", r#"{"size_mib": -1}"#, "-1"),
            ("PATCH", "/partitions/1", r#"{"size": 1}"#, "unknown field `size`"),
        ] {
            let message = message(method, path, body);
            assert!(message.contains(part), "{method} {path}: {message}");
        }
    }
}
