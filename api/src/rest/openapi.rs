//! The API in OpenAPI 3.1, made from the types that requests are read into.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::bodies as theirs;
use super::own::bodies as own;

/// A request of the API.
struct Operation {
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    body: Option<fn(&mut SchemaGenerator) -> Schema>,
    answer: Answer,
}

/// A good answer.
#[derive(Clone, Copy)]
enum Answer {
    /// Status 204.
    Nothing,
    Object,
    List,
    /// JSON of any kind.
    Any,
    /// Of this media type.
    Other(&'static str),
}

use Answer::{Any, List, Nothing, Object, Other};

/// All requests that can succeed.
fn operations() -> Vec<Operation> {
    let get = |path, summary, answer| Operation { method: "get", path, summary, body: None, answer };
    let delete = |path, summary, answer| Operation { method: "delete", path, summary, body: None, answer };
    vec![
        get("/", "The process and its VM.", Object),
        get("/version", "The version of Firecracker whose dialect this is.", Object),
        get("/openapi.json", "This document.", Object),
        get("/vm/config", "What was asked for.", Object),
        with::<theirs::VmUpdate>("patch", "/vm", "Pauses or resumes the VM.", Nothing),
        with::<theirs::Action>("put", "/actions", "Boots the VM, flushes metrics, or switches the guest off.", Nothing),
        get("/machine-config", "vCPUs and base memory.", Object),
        with::<theirs::Machine>("put", "/machine-config", "Sets vCPUs and base memory, before the VM boots.", Nothing),
        with::<theirs::MachineUpdate>("patch", "/machine-config", "Changes some of it, before the VM boots.", Nothing),
        with::<theirs::CpuConfig>(
            "put",
            "/cpu-config",
            "Sets what the guest sees of the CPU, before the VM boots.",
            Nothing,
        ),
        with::<theirs::BootSource>(
            "put",
            "/boot-source",
            "Sets what the guest boots from, before the VM boots.",
            Nothing,
        ),
        with::<theirs::Drive>("put", "/drives/{drive_id}", "Adds a drive.", Nothing),
        with::<theirs::DriveUpdate>("patch", "/drives/{drive_id}", "Changes a drive while the VM runs.", Nothing),
        delete("/drives/{drive_id}", "Takes a drive away while the VM runs.", Nothing),
        with::<theirs::Pmem>("put", "/pmem/{id}", "Adds a file as persistent memory, read-only.", Nothing),
        delete("/pmem/{id}", "Takes one away while the VM runs.", Nothing),
        get("/hotplug/memory", "The memory that may come and go.", Object),
        with::<theirs::MemoryHotplug>(
            "put",
            "/hotplug/memory",
            "Sets how much may come, before the VM boots.",
            Nothing,
        ),
        with::<theirs::MemoryHotplugUpdate>(
            "patch",
            "/hotplug/memory",
            "Has the guest take memory or give it back, while the VM runs.",
            Nothing,
        ),
        get("/mmds", "The metadata that guests read.", Any),
        with::<theirs::Metadata>("put", "/mmds", "Sets all metadata.", Nothing),
        with::<theirs::Metadata>("patch", "/mmds", "Changes metadata by a merge patch (RFC 7396).", Nothing),
        with::<theirs::Mmds>(
            "put",
            "/mmds/config",
            "Sets how the guest reaches its metadata, before the VM boots.",
            Nothing,
        ),
        with::<theirs::Network>("put", "/network-interfaces/{iface_id}", "Adds a network interface.", Nothing),
        with::<theirs::NetworkUpdate>(
            "patch",
            "/network-interfaces/{iface_id}",
            "Changes its rate limits while the VM runs.",
            Nothing,
        ),
        delete("/network-interfaces/{iface_id}", "Takes a network interface away while the VM runs.", Nothing),
        with::<theirs::Vsock>("put", "/vsock", "Sets the socket to and from the guest, before the VM boots.", Nothing),
        with::<theirs::Entropy>("put", "/entropy", "Asks for a source of entropy, which every VM has.", Nothing),
        get("/balloon", "The balloon's configuration.", Object),
        with::<theirs::Balloon>("put", "/balloon", "Adds a balloon, before the VM boots.", Nothing),
        with::<theirs::BalloonUpdate>("patch", "/balloon", "Sets its size while the VM runs.", Nothing),
        get("/balloon/statistics", "What the guest says of its memory.", Object),
        with::<theirs::BalloonStatisticsUpdate>("patch", "/balloon/statistics", "Sets how often it says so.", Nothing),
        get("/balloon/hinting/status", "How far free page hinting is.", Object),
        with::<theirs::StartHinting>("patch", "/balloon/hinting/start", "Starts a run of free page hinting.", Nothing),
        Operation { method: "patch", path: "/balloon/hinting/stop", summary: "Stops it.", body: None, answer: Nothing },
        with::<theirs::Serial>("put", "/serial", "Sets where the serial console goes, before the VM boots.", Nothing),
        with::<theirs::Logger>("put", "/logger", "Sets where the log goes, before the VM boots.", Nothing),
        with::<theirs::Metrics>("put", "/metrics", "Sets where metrics go, before the VM boots.", Nothing),
        with::<theirs::Partition>(
            "put",
            "/partitions/{partition}",
            "Sets a partition's window, before the VM boots.",
            Nothing,
        ),
        get("/partitions", "All partitions.", List),
        get("/partitions/{partition}", "A partition.", Object),
        with::<own::Resize>("patch", "/partitions/{partition}", "Plugs or shrinks a partition.", Object),
        delete("/partitions/{partition}", "Unplugs a partition that no instance has.", Object),
        get("/images", "The images that the VM has.", List),
        with::<own::NewImage>("put", "/images/{image}", "Attaches an image.", Object),
        delete("/images/{image}", "Takes an image out that no instance uses.", Nothing),
        get("/instances", "All instances.", List),
        get("/instances/{instance}", "An instance.", Object),
        with::<own::NewInstance>(
            "put",
            "/instances/{instance}",
            "Starts an instance, with its image and its partition. The same request again is one.",
            Object,
        ),
        with::<own::InstanceUpdate>("patch", "/instances/{instance}", "Freezes or thaws an instance.", Object),
        delete("/instances/{instance}", "Ends an instance and gives its partition back.", Object),
        get("/instances/{instance}/wait", "Answers when an instance has ended.", Object),
        get("/instances/{instance}/logs", "What an instance has written.", Other("application/octet-stream")),
        with::<own::Stop>(
            "post",
            "/instances/{instance}/stop",
            "Asks an instance to end, and kills it in time.",
            Object,
        ),
        with::<own::Signal>("put", "/instances/{instance}/signal", "Sends its first process a signal.", Nothing),
        get("/instances/{instance}/files", "What is at a path of an instance.", Object),
        get("/instances/{instance}/archive", "A tar archive of what is at a path.", Other("application/x-tar")),
        Operation {
            method: "put",
            path: "/instances/{instance}/archive",
            summary: "Unpacks a tar archive into a folder.",
            body: None,
            answer: Nothing,
        },
        with::<own::Exec>("post", "/instances/{instance}/exec", "Runs another process in an instance.", Object),
        get("/memory", "What the VM and its instances have of the host's memory.", Object),
        get("/events", "What happens, from now on.", Other("text/event-stream")),
        get("/metrics/prometheus", "The VM's figures.", Other("text/plain; version=0.0.4")),
    ]
}

fn with<T: JsonSchema>(method: &'static str, path: &'static str, summary: &'static str, answer: Answer) -> Operation {
    Operation { method, path, summary, body: Some(|generator| generator.subschema_for::<T>()), answer }
}

/// The whole document.
pub(crate) fn document() -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator();
    let mut paths: Map<String, Value> = Map::new();
    for operation in operations() {
        let methods =
            paths.entry(operation.path).or_insert_with(|| json!({ "parameters": parameters(operation.path) }));
        methods[operation.method] = operation.json(&mut generator);
    }
    let schemas = generator.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Bellows",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "A VM on a Unix socket: Firecracker's dialect, and Bellows' own requests for images, partitions and instances.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {
                "Fault": {
                    "description": "It was refused, and has changed nothing.",
                    "content": { "application/json": { "schema": {
                        "type": "object",
                        "properties": { "fault_message": { "type": "string" } },
                        "required": ["fault_message"],
                        "additionalProperties": false,
                    } } },
                },
            },
        },
    })
}

impl Operation {
    fn json(&self, generator: &mut SchemaGenerator) -> Value {
        let schema = |schema: Value| json!({ "application/json": { "schema": schema } });
        let (status, content) = match self.answer {
            Nothing => ("204", None),
            Object => ("200", Some(schema(json!({ "type": "object" })))),
            List => ("200", Some(schema(json!({ "type": "array", "items": { "type": "object" } })))),
            Any => ("200", Some(schema(json!(true)))),
            Other(kind) => ("200", Some(json!({ kind: { "schema": { "type": "string" } } }))),
        };
        let mut good = json!({ "description": "Done." });
        if let Some(content) = content {
            good["content"] = content;
        }
        let mut said = json!({
            "summary": self.summary,
            "responses": { status: good, "default": { "$ref": "#/components/responses/Fault" } },
        });
        if let Some(body) = self.body {
            // It has defaults for all.
            let required = !matches!(self.path, "/balloon/hinting/start" | "/instances/{instance}/stop");
            said["requestBody"] = json!({ "required": required, "content": schema(json!(body(generator))) });
        }
        if self.path.ends_with("/files") || self.path.ends_with("/archive") {
            let schema = json!({ "type": "string", "pattern": "^/", "default": "/" });
            said["parameters"] = json!([{ "name": "path", "in": "query", "schema": schema }]);
        }
        if self.method == "put" && self.path.ends_with("/archive") {
            let content = json!({ "application/x-tar": { "schema": { "type": "string", "format": "binary" } } });
            said["requestBody"] = json!({ "required": true, "content": content });
        }
        if self.path.ends_with("/logs") {
            said["parameters"] = json!([
                { "name": "follow", "in": "query", "schema": { "type": "boolean" } },
                { "name": "stream", "in": "query", "schema": { "enum": ["stdout", "stderr"] } },
            ]);
        }
        said
    }
}

/// The parameters in a path.
fn parameters(path: &str) -> Value {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let parameter = |name: &str| {
        let schema = match name {
            "partition" => {
                json!({ "type": "integer", "minimum": 1, "maximum": bellows_memory::layout::MAX_PARTITIONS })
            }
            "image" | "instance" => json!({ "type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,63}$" }),
            _ => json!({ "type": "string", "pattern": "^[A-Za-z0-9_]{1,64}$" }),
        };
        json!({ "name": name, "in": "path", "required": true, "schema": schema })
    };
    names.map(parameter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rest::{own, request};

    /// The committed document, for those who do not run a server.
    const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");

    /// `BELLOWS_WRITE=1 cargo test -p bellows --lib openapi` writes it anew.
    #[test]
    fn the_committed_document_is_that_of_the_code() {
        let text = format!("{:#}\n", document());
        if std::env::var_os("BELLOWS_WRITE").is_some() {
            std::fs::write(COMMITTED, &text).unwrap();
        }
        assert!(std::fs::read_to_string(COMMITTED).unwrap() == text, "docs/openapi.json is old: see this test");
    }

    #[test]
    fn every_request_is_one_of_the_api_and_its_body_forbids_what_is_unknown() {
        let document = document();
        for operation in operations() {
            let path = operation.path.replace("{partition}", "1").replace(['{', '}'], "").replace('_', "");
            let method = operation.method.to_uppercase();
            let body: &[u8] = if operation.body.is_some() { br#"{"?": 0}"# } else { b"" };
            let fault = match own::parse(&method, &path, body) {
                Some(parsed) => parsed.err(),
                None => request::parse(&method, &path, body).err(),
            };
            let fault = fault.map(|fault| fault.message);
            match (operation.body, fault) {
                // Metadata is any JSON.
                (Some(_), None) if path == "/mmds" => {}
                (None, None) => {}
                (Some(_), Some(fault)) => assert!(fault.contains("unknown field `?`"), "{method} {path}: {fault}"),
                (_, fault) => panic!("{method} {path}: {fault:?}"),
            }
        }
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            if schema["type"] == "object" {
                assert_eq!(schema["additionalProperties"], false, "{name}");
            }
        }
    }
}
