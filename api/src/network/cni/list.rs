//! The configuration of a network: section 1 of the specification.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::error::CniError;

/// Versions of the specification whose answers are alike.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A network: its plugins, in the order in which they are asked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct List {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) plugins: Vec<Plugin>,
}

/// The configuration of one plugin.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plugin {
    /// The name of its program.
    pub(super) kind: String,
    pub(super) fields: Map<String, Value>,
}

impl Plugin {
    /// Whether it wants to know what is asked of it by the capability.
    pub(super) fn can(&self, capability: &str) -> bool {
        self.fields.get("capabilities").and_then(|all| all.get(capability)) == Some(&Value::Bool(true))
    }
}

impl List {
    /// The network `name` of those that are configured in `folder`.
    ///
    /// # Errors
    /// There is none, or its configuration is wrong.
    pub(super) fn find(name: &str, folder: &Path) -> Result<Self, CniError> {
        let mut found = Vec::new();
        let mut unread = None;
        for path in files(folder)? {
            let text = fs::read(&path).map_err(|source| CniError::Read { path: path.clone(), source })?;
            let named = serde_json::from_slice::<Value>(&text)
                .map_err(|error| format!("`{}` is not JSON: {error}", path.display()))
                .map(|value| value["name"].as_str().map(str::to_owned));
            match named {
                Ok(Some(found)) if found == name => {
                    let invalid = |what| CniError::Invalid { path: path.clone(), what };
                    return Self::parse(&text, path.extension()).map_err(invalid);
                }
                Ok(other) => found.extend(other),
                Err(error) => unread = unread.or(Some(error)),
            }
        }
        let found = if found.is_empty() { "none".into() } else { found.join(", ") };
        Err(CniError::NoNetwork { folder: folder.to_owned(), name: name.to_owned(), found, unread })
    }

    /// A list, or with another extension than `conflist` the configuration of a single plugin.
    fn parse(text: &[u8], extension: Option<&OsStr>) -> Result<Self, String> {
        let mut fields: Map<String, Value> =
            serde_json::from_slice(text).map_err(|error| format!("{error}: expected an object"))?;
        let name = word(&fields, "name")?;
        let version = word(&fields, "cniVersion")?;
        if !VERSIONS.contains(&version.as_str()) {
            return Err(format!("`cniVersion` is {version}: expected one of {}", VERSIONS.join(", ")));
        }
        let plugins = if extension == Some(OsStr::new("conflist")) {
            match fields.remove("plugins") {
                Some(Value::Array(plugins)) if !plugins.is_empty() => plugins,
                _ => return Err("`plugins` is missing: expected a list of at least one plugin".into()),
            }
        } else {
            vec![Value::Object(fields)]
        };
        let plugins = plugins.into_iter().map(plugin).collect::<Result<_, _>>()?;
        Ok(Self { name, version, plugins })
    }
}

fn plugin(value: Value) -> Result<Plugin, String> {
    let Value::Object(fields) = value else { return Err(format!("a plugin is {value}: expected an object")) };
    let kind = word(&fields, "type")?;
    // The name of a program in one of the folders for plugins, and nowhere else.
    if kind.is_empty() || kind.contains('/') || kind == "." || kind == ".." {
        return Err(format!("`type` is `{kind}`: expected the name of a plugin's program"));
    }
    Ok(Plugin { kind, fields })
}

fn word(fields: &Map<String, Value>, name: &str) -> Result<String, String> {
    match fields.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!("`{name}` is {other}: expected a text")),
        None => Err(format!("`{name}` is missing")),
    }
}

/// The files that may be configurations, in the order of their names.
fn files(folder: &Path) -> Result<Vec<PathBuf>, CniError> {
    let read = |source| CniError::Read { path: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if path
            .extension()
            .is_some_and(|extension| ["conflist", "conf", "json"].iter().any(|known| extension == *known))
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "functions", "disableCheck": true, "plugins": [
        {"type": "bridge", "bridge": "cni0", "ipam": {"type": "host-local"}},
        {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;

    #[test]
    fn a_network_is_found_by_its_name_and_not_by_that_of_its_file() {
        let single = r#"{"cniVersion": "0.4.0", "name": "alone", "type": "ptp", "mtu": 1400}"#;
        let folder = folder(&[("10-a.conf", single), ("20-b.conflist", LIST), ("30-c.conflist", LIST), ("README", "")]);
        let list = List::find("functions", folder.path()).unwrap();
        let kinds: Vec<&str> = list.plugins.iter().map(|plugin| plugin.kind.as_str()).collect();
        assert_eq!((list.version.as_str(), kinds), ("1.0.0", vec!["bridge", "portmap"]));
        assert!(list.plugins[1].can("portMappings") && !list.plugins[0].can("portMappings"));
        let alone = List::find("alone", folder.path()).unwrap();
        assert_eq!((alone.plugins.len(), &alone.plugins[0].fields["mtu"]), (1, &1400.into()));
    }

    #[test]
    fn a_network_that_is_not_there_is_refused_with_those_that_are() {
        let folder = folder(&[("a.conflist", LIST), ("b.conflist", "{")]);
        let error = List::find("other", folder.path()).unwrap_err().to_string();
        assert!(error.contains("no network `other`") && error.contains("it has functions"), "{error}");
        assert!(error.contains("b.conflist` is not JSON"), "{error}");
        let error = List::find("other", &folder.path().join("nothing")).unwrap_err().to_string();
        assert!(error.contains("cannot read") && error.contains("nothing"), "{error}");
    }

    #[test]
    fn a_wrong_configuration_is_refused_with_its_file_and_the_field() {
        for (from, to, expected) in [
            ("1.0.0", "0.2.0", "`cniVersion` is 0.2.0: expected one of 0.3.0"),
            ("\"cniVersion\": \"1.0.0\", ", "", "`cniVersion` is missing"),
            ("\"bridge\", \"bridge\"", "\"../bridge\", \"bridge\"", "`type` is `../bridge`"),
            ("\"type\": \"portmap\"", "\"type\": 5", "`type` is 5: expected a text"),
            ("\"plugins\"", "\"plugin\"", "`plugins` is missing"),
        ] {
            let folder = folder(&[("x.conflist", &LIST.replacen(from, to, 1))]);
            let error = List::find("functions", folder.path()).unwrap_err().to_string();
            assert!(error.contains("x.conflist") && error.contains(expected), "{error}");
        }
    }
}
