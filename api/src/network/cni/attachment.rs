//! What the plugins of a network are asked: sections 2 to 4 of the specification.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Map, Value, json};

use super::error::CniError;
use super::list::{List, Plugin};
use crate::network::ports::Published;

/// A container, as CNI calls it, in a network.
#[derive(Debug)]
pub(super) struct Attachment<'a> {
    pub(super) list: &'a List,
    /// Its name among all of this host.
    pub(super) container: &'a str,
    /// The path of its network namespace.
    pub(super) namespace: &'a str,
    /// The name of the interface in there.
    pub(super) interface: &'a str,
    /// Ports of the host that lead to it.
    pub(super) published: &'a [Published],
    /// Where programs of plugins are.
    pub(super) folders: &'a [PathBuf],
}

impl Attachment<'_> {
    /// Has the plugins connect it, one after the other. Returns the last one's answer.
    ///
    /// # Errors
    /// One refused: then all have been told that it is gone.
    pub(super) fn add(&self) -> Result<Value, CniError> {
        if !self.published.is_empty() && !self.list.plugins.iter().any(|plugin| plugin.can("portMappings")) {
            return Err(CniError::NoPorts(self.list.name.clone()));
        }
        let mut result = None;
        for plugin in &self.list.plugins {
            match self.ask("ADD", plugin, result.as_ref()) {
                Ok(Some(answer)) => result = Some(answer),
                // It changes nothing.
                Ok(None) => {}
                Err(error) => {
                    // The first error says more than those of the way back.
                    self.delete(result.as_ref());
                    return Err(error);
                }
            }
        }
        result.ok_or_else(|| CniError::Answer("no plugin has given any: expected a result".into()))
    }

    /// Tells the plugins that it is gone, the last one first, each of them whatever others say. Returns what they refused.
    pub(super) fn delete(&self, result: Option<&Value>) -> Vec<CniError> {
        self.list.plugins.iter().rev().filter_map(|plugin| self.ask("DEL", plugin, result).err()).collect()
    }

    fn ask(&self, command: &'static str, plugin: &Plugin, previous: Option<&Value>) -> Result<Option<Value>, CniError> {
        let run = |source| CniError::Run { plugin: plugin.kind.clone(), source };
        let program = self.program(plugin)?;
        let output = self.run(Command::new(program), command, &self.request(plugin, previous)).map_err(run)?;
        if output.status.success() {
            return match output.stdout.trim_ascii() {
                [] => Ok(None),
                text => serde_json::from_slice(text)
                    .map(Some)
                    .map_err(|error| CniError::Answer(format!("`{}`: {error}: expected JSON", plugin.kind))),
            };
        }
        Err(CniError::Plugin { plugin: plugin.kind.clone(), command, message: words(&output) })
    }

    fn run(&self, mut program: Command, command: &str, request: &Value) -> io::Result<Output> {
        let folders = std::env::join_paths(self.folders).map_err(io::Error::other)?;
        program.env("CNI_COMMAND", command).env("CNI_CONTAINERID", self.container).env("CNI_NETNS", self.namespace);
        program.env("CNI_IFNAME", self.interface).env("CNI_PATH", folders).env_remove("CNI_ARGS");
        program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = program.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that has ended says why.
            let _ = stdin.write_all(request.to_string().as_bytes());
        }
        child.wait_with_output()
    }

    /// What a plugin reads.
    fn request(&self, plugin: &Plugin, previous: Option<&Value>) -> Value {
        let mut request = plugin.fields.clone();
        request.insert("name".into(), self.list.name.clone().into());
        request.insert("cniVersion".into(), self.list.version.clone().into());
        // What it can, it need not be told.
        request.remove("capabilities");
        let mut runtime = Map::new();
        if plugin.can("portMappings") && !self.published.is_empty() {
            runtime.insert("portMappings".into(), self.published.iter().map(mapping).collect());
        }
        if !runtime.is_empty() {
            request.insert("runtimeConfig".into(), runtime.into());
        }
        if let Some(previous) = previous {
            request.insert("prevResult".into(), previous.clone());
        }
        request.into()
    }

    fn program(&self, plugin: &Plugin) -> Result<PathBuf, CniError> {
        let found = self.folders.iter().map(|folder| folder.join(&plugin.kind)).find(|path| path.is_file());
        found.ok_or_else(|| CniError::NoPlugin {
            plugin: plugin.kind.clone(),
            folders: self.folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", "),
        })
    }
}

/// A published port, by the conventions of CNI.
fn mapping(published: &Published) -> Value {
    let Published { address, host, guest, protocol } = published;
    let mut mapping = json!({ "hostPort": host, "containerPort": guest, "protocol": protocol.to_string() });
    if let Some(address) = address {
        mapping["hostIP"] = address.to_string().into();
    }
    mapping
}

/// Why a plugin refused: the message of its error, with details, or whatever it has said.
fn words(output: &Output) -> String {
    let error: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let said = [error["msg"].as_str(), error["details"].as_str()];
    let said: Vec<&str> = said.into_iter().flatten().filter(|text| !text.is_empty()).collect();
    match said[..] {
        [] => format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()),
        _ => said.join(": "),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;

    /// Plugins that note what they are asked, and answer what stands in a file of their name, or fail with it.
    struct Plugins(tempfile::TempDir);

    impl Plugins {
        fn new(kinds: &[&str]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let plugins = Self(folder);
            for kind in kinds {
                let path = plugins.path().join(kind);
                let place = plugins.path().display();
                let script = format!(
                    "#!/bin/sh\nread -r request\n\
                     echo \"{kind} $CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $request\" >> {place}/asked\n\
                     [ -e {place}/{kind}.$CNI_COMMAND.fails ] && cat {place}/{kind}.$CNI_COMMAND.fails && exit 1\n\
                     [ $CNI_COMMAND = ADD ] && cat {place}/{kind}.answer\nexit 0\n"
                );
                fs::write(&path, script).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
                plugins.answer(kind, &format!(r#"{{"cniVersion": "1.0.0", "by": "{kind}"}}"#));
            }
            plugins
        }

        fn path(&self) -> &Path {
            self.0.path()
        }

        fn answer(&self, kind: &str, text: &str) {
            fs::write(self.path().join(format!("{kind}.answer")), text).unwrap();
        }

        fn fails(&self, kind: &str, command: &str, text: &str) {
            fs::write(self.path().join(format!("{kind}.{command}.fails")), text).unwrap();
        }

        /// What they were asked: plugin, command, and what they read.
        fn asked(&self) -> Vec<(String, Value)> {
            let text = fs::read_to_string(self.path().join("asked")).unwrap_or_default();
            let line = |line: &str| {
                let mut words = line.splitn(6, ' ');
                let mut next = || words.next().unwrap().to_owned();
                let who = format!("{} {}", next(), next());
                assert_eq!((next(), next(), next()), ("c1".into(), "/proc/7/fd/5".into(), "eth0".into()));
                (who, serde_json::from_str(&next()).unwrap())
            };
            text.lines().map(line).collect()
        }
    }

    fn list(kinds: &[&str]) -> List {
        let plugin = |kind: &&str| {
            let fields = json!({ "type": kind, "capabilities": { "portMappings": *kind == "portmap" } });
            Plugin { kind: (*kind).to_owned(), fields: fields.as_object().unwrap().clone() }
        };
        List { name: "net".into(), version: "1.0.0".into(), plugins: kinds.iter().map(plugin).collect() }
    }

    fn attachment<'a>(list: &'a List, published: &'a [Published], folders: &'a [PathBuf]) -> Attachment<'a> {
        Attachment { list, container: "c1", namespace: "/proc/7/fd/5", interface: "eth0", published, folders }
    }

    fn names(asked: &[(String, Value)]) -> Vec<&str> {
        asked.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn each_plugin_gets_the_answer_of_the_one_before_and_the_way_back_is_the_reverse() {
        let plugins = Plugins::new(&["bridge", "portmap"]);
        let folders = ["/nothing".into(), plugins.path().to_owned()];
        let ports = ["8080:80".parse().unwrap(), "127.0.0.1:53:5353/udp".parse().unwrap()];
        let list = list(&["bridge", "portmap"]);
        let attachment = attachment(&list, &ports, &folders);
        let result = attachment.add().unwrap();
        assert_eq!(result["by"], "portmap");
        assert!(attachment.delete(Some(&result)).is_empty());

        let asked = plugins.asked();
        assert_eq!(names(&asked), ["bridge ADD", "portmap ADD", "portmap DEL", "bridge DEL"]);
        let bridge = json!({ "type": "bridge", "name": "net", "cniVersion": "1.0.0" });
        assert_eq!(asked[0].1, bridge);
        assert_eq!(asked[1].1["prevResult"]["by"], "bridge");
        assert_eq!(
            asked[1].1["runtimeConfig"]["portMappings"],
            json!([
                { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
                { "hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "127.0.0.1" },
            ])
        );
        assert!(asked[2..].iter().all(|(_, request)| request["prevResult"] == result), "{asked:?}");
    }

    #[test]
    fn a_plugin_that_refuses_has_all_of_them_clean_up() {
        let plugins = Plugins::new(&["bridge", "tuning", "portmap"]);
        plugins.fails("tuning", "ADD", r#"{"code": 11, "msg": "try again", "details": "no room"}"#);
        plugins.fails("tuning", "DEL", "");
        let folders = [plugins.path().to_owned()];
        let list = list(&["bridge", "tuning", "portmap"]);
        let error = attachment(&list, &[], &folders).add().unwrap_err().to_string();
        assert_eq!(error, "the plugin `tuning` refused ADD: try again: no room");
        let asked = plugins.asked();
        assert_eq!(names(&asked), ["bridge ADD", "tuning ADD", "portmap DEL", "tuning DEL", "bridge DEL"]);
    }

    #[test]
    fn what_cannot_be_asked_or_understood_is_said() {
        let plugins = Plugins::new(&["bridge"]);
        let folders = [plugins.path().to_owned()];
        let list = list(&["bridge", "absent"]);
        let error = attachment(&list, &[], &folders).add().unwrap_err().to_string();
        assert!(error.contains("`absent` is in none of") && error.contains(folders[0].to_str().unwrap()), "{error}");
        let ports = ["80:80".parse().unwrap()];
        let error = attachment(&list, &ports, &folders).add().unwrap_err().to_string();
        assert!(error.contains("`net`") && error.contains("`portMappings`"), "{error}");

        let only = super::tests::list(&["bridge"]);
        plugins.answer("bridge", "no JSON");
        let error = attachment(&only, &[], &folders).add().unwrap_err().to_string();
        assert!(error.contains("`bridge`") && error.contains("expected JSON"), "{error}");
        plugins.answer("bridge", "");
        let error = attachment(&only, &[], &folders).add().unwrap_err().to_string();
        assert!(error.contains("no plugin has given any"), "{error}");
        fs::remove_file(plugins.path().join("bridge.answer")).unwrap();
        plugins.fails("bridge", "ADD", "not JSON either");
        let error = attachment(&only, &[], &folders).add().unwrap_err().to_string();
        assert!(error.contains("exit status: 1"), "{error}");
    }
}
