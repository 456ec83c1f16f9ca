//! A path that the user allows, as Cloud Hypervisor's `--landlock-rules` has it.

use std::path::PathBuf;
use std::str::FromStr;

/// A path, and what may be done with it, and with all below it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PathRule {
    pub(super) path: PathBuf,
    pub(super) read: bool,
    pub(super) write: bool,
}

impl FromStr for PathRule {
    type Err = String;

    /// Reads `path=PATH,access=r`, with `w` or `rw` instead.
    fn from_str(text: &str) -> Result<Self, String> {
        // A path may have commas.
        let parts = text.strip_prefix("path=").and_then(|rest| rest.rsplit_once(",access="));
        let (path, access) =
            parts.ok_or_else(|| format!("{text:?}: expected path=PATH,access=r, with w or rw instead"))?;
        let (read, write) = match access {
            "r" => (true, false),
            "w" => (false, true),
            "rw" | "wr" => (true, true),
            _ => return Err(format!("the access of `{path}` is {access:?}: expected r, w or rw")),
        };
        if path.is_empty() {
            return Err("the path is empty: expected that of a file or folder".into());
        }
        Ok(Self { path: path.into(), read, write })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_those_of_cloud_hypervisor() {
        let rule = |path: &str, read, write| PathRule { path: path.into(), read, write };
        for (text, expected) in [
            ("path=/a/b,access=rw", rule("/a/b", true, true)),
            ("path=a,b,access=r", rule("a,b", true, false)),
            ("path=/,access=w", rule("/", false, true)),
        ] {
            assert_eq!(text.parse(), Ok(expected));
        }
        for text in ["/a", "path=/a", "path=/a,access=x", "path=,access=r", "access=r,path=/a", "path=/a,access="] {
            let error = text.parse::<PathRule>().unwrap_err();
            assert!(error.contains("expected"), "{text}: {error}");
        }
    }
}
