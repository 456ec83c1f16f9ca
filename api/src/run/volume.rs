//! The folders of `-v`, imported like layers.

use bellows_block::{ImageSource, ImportOptions, Store};
use bellows_vmm::{ImageConfig, ImageId, Volume};

use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::options::volume::VolumeArg;

/// Imports the folder into `store`, and adds it to the images of a VM that do not have it.
pub(super) fn add(
    volume: &VolumeArg,
    store: &Store,
    images: &mut Vec<ImageConfig>,
    interrupts: &Interrupts,
) -> Result<Volume, CliError> {
    if !volume.folder.is_dir() {
        let message = format!("-v {}: expected a folder", volume.folder.display());
        return Err(CliError::Conflict(message));
    }
    let image = interrupts.import(|cancel| {
        // Whatever it looks like.
        let source = ImageSource::RootFs(volume.folder.clone()).image(&bellows_block::oci::Platform::host(), None)?;
        Ok::<_, CliError>(store.import(&source, None, &ImportOptions { cancel, ..ImportOptions::default() })?)
    })?;
    let id: ImageId = image.digest.hex().parse()?;
    if images.iter().all(|image| image.id != id) {
        images.push(ImageConfig::stacked(id.clone(), &store.stack(&image)?));
    }
    Ok(Volume { image: id, path: volume.path.clone() })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_folder_is_imported_by_what_it_holds() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("store")).unwrap();
        let mut images = Vec::new();
        let mut add = |name: &str| {
            let text = format!("{}:/data:ro", directory.path().join(name).display());
            super::add(&text.parse().unwrap(), &store, &mut images, &Interrupts::default()).map(|added| added.image)
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
