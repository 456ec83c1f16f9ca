//! `-v DIR:PATH:ro`: a folder of this host that an instance finds at a path, read-only. It is imported like a layer.

use std::path::PathBuf;
use std::str::FromStr;

use bellows_block::{ImageSource, ImportOptions, Store};
use bellows_vmm::{ImageConfig, ImageId, Volume, VolumePath};

use crate::error::CliError;
use crate::interrupt::Interrupts;

/// A folder, and its place in the instance.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VolumeArg {
    folder: PathBuf,
    path: VolumePath,
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
    format!("{what}: a folder is mounted read-only, by DIR:PATH:ro; --scratch is the disk for what an instance writes")
}

impl VolumeArg {
    /// Imports the folder into `store`, and adds it to the images of a VM that do not have it.
    pub(super) fn add(
        &self,
        store: &Store,
        images: &mut Vec<ImageConfig>,
        interrupts: &Interrupts,
    ) -> Result<Volume, CliError> {
        if !self.folder.is_dir() {
            let message = format!("-v {}: expected a folder", self.folder.display());
            return Err(CliError::Conflict(message));
        }
        let image = interrupts.import(|cancel| {
            // Whatever it looks like.
            let source = ImageSource::RootFs(self.folder.clone()).image(&bellows_block::oci::Platform::host(), None)?;
            Ok::<_, CliError>(store.import(&source, None, &ImportOptions { cancel, ..ImportOptions::default() })?)
        })?;
        let id: ImageId = image.digest.hex().parse()?;
        if images.iter().all(|image| image.id != id) {
            images.push(ImageConfig::stacked(id.clone(), &store.stack(&image)?));
        }
        Ok(Volume { image: id, path: self.path.clone() })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_volume_is_a_folder_and_a_path() {
        let parsed: VolumeArg = "./a:b:/data/x:ro".parse().unwrap();
        assert_eq!((parsed.folder, parsed.path.as_str()), (PathBuf::from("./a:b"), "/data/x"));
        for (text, part) in [
            ("/a:/b", "`:ro` is missing"),
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

    #[test]
    fn a_folder_is_imported_by_what_it_holds() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("store")).unwrap();
        let mut images = Vec::new();
        let mut add = |name: &str| {
            let text = format!("{}:/data:ro", directory.path().join(name).display());
            text.parse::<VolumeArg>().unwrap().add(&store, &mut images, &Interrupts::default()).map(|added| added.image)
        };
        for name in ["a", "b"] {
            fs::create_dir(directory.path().join(name)).unwrap();
            // It is not taken for an image, and the store does not have it as one by name.
            fs::write(directory.path().join(name).join("index.json"), "{}").unwrap();
            let made = fs::File::open(directory.path().join(name).join("index.json")).unwrap();
            made.set_modified(std::time::UNIX_EPOCH).unwrap();
            fs::File::open(directory.path().join(name)).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        }
        let first = add("a").unwrap();
        assert_eq!(add("b").unwrap(), first, "the same content is one layer");
        fs::write(directory.path().join("b/more"), "").unwrap();
        assert_ne!(add("b").unwrap(), first);
        fs::write(directory.path().join("file"), "").unwrap();
        for name in ["nowhere", "file"] {
            assert!(add(name).unwrap_err().chain().contains("expected a folder"));
        }
        assert_eq!(images.iter().map(|image| image.layers.len()).collect::<Vec<_>>(), [1, 1]);
    }
}
