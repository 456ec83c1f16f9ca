//! `-v DIR:PATH:ro`: a folder of this host that an instance finds at a path, read-only.

use std::path::PathBuf;
use std::str::FromStr;

use bellows_vmm::VolumePath;

/// A folder, and its place in the instance.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VolumeArg {
    pub(crate) folder: PathBuf,
    pub(crate) path: VolumePath,
}

impl FromStr for VolumeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A folder's name may have colons.
        let (rest, mode) = text.rsplit_once(':').unwrap_or((text, ""));
        match mode {
            "ro" => {}
            "rw" => return Err(not_writable("`rw` is refused")),
            mode if mode.starts_with('/') => return Err(not_writable("`:ro` is missing")),
            _ => return Err("expected DIR:PATH:ro, such as ./data:/data:ro".into()),
        }
        let (folder, path) =
            rest.rsplit_once(':').filter(|(folder, _)| !folder.is_empty()).ok_or("expected DIR:PATH:ro")?;
        let path = path.parse().map_err(|error: bellows_vmm::ValueError| error.to_string())?;
        Ok(Self { folder: folder.into(), path })
    }
}

fn not_writable(what: &str) -> String {
    format!(
        "{what}: a folder is mounted read-only, by DIR:PATH:ro; what an instance writes stays in its memory, or on its scratch disk \
         (--scratch)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_a_folder_and_a_path() {
        let parsed: VolumeArg = "./a:b:/data/x:ro".parse().unwrap();
        assert_eq!((parsed.folder, parsed.path.as_str()), (PathBuf::from("./a:b"), "/data/x"));
        for (text, part) in [
            ("/a:/b", "`:ro` is missing"),
            ("/a:/b:rw", "read-only"),
            ("/a:/b:rw", "--scratch"),
            ("/a:/b:", "expected DIR:PATH:ro"),
            ("/a", "expected DIR:PATH:ro"),
            (":/b:ro", "expected DIR:PATH:ro"),
            ("/b:ro", "expected DIR:PATH:ro"),
            ("/a:b:ro", "place for a volume"),
            ("/a:/:ro", "place for a volume"),
            ("/a:/proc/x:ro", "place for a volume"),
        ] {
            let refused = text.parse::<VolumeArg>().unwrap_err();
            assert!(refused.contains(part), "{text}: {refused}");
        }
    }
}
