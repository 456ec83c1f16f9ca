//! The layer store that a command works on, and what it holds.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bellows_block::oci::Platform;
use bellows_block::{Image, ImageName, ImageSource, ImportOptions, Store};

use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::progress::ImportProgress;
use crate::registry;

/// Opens the store at `path`, or the user's own.
pub(crate) fn open(path: Option<&Path>) -> Result<Store, CliError> {
    let path = match path {
        Some(path) => path.to_owned(),
        None => default_path(env::var_os("XDG_DATA_HOME").map(PathBuf::from), env::var_os("HOME").map(PathBuf::from))?,
    };
    Ok(Store::open(path)?)
}

/// Where the user's own store is (XDG base directory specification: a path that is not absolute counts as none).
fn default_path(data_home: Option<PathBuf>, home: Option<PathBuf>) -> Result<PathBuf, CliError> {
    let data = data_home.filter(|path| path.is_absolute());
    let data = data.or_else(|| home.filter(|path| path.is_absolute()).map(|home| home.join(".local/share")));
    let data = data.ok_or(CliError::Missing("a place for the layer store", "--store, or set HOME"))?;
    Ok(data.join("bellows/store"))
}

/// Which of a source's images is meant.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted<'a> {
    pub(crate) reference: Option<&'a str>,
    /// The host's where it is left out.
    pub(crate) platform: Option<&'a Platform>,
    /// Of a registry.
    pub(crate) plain_http: bool,
    /// Where registries' folders are, if not in the usual places.
    pub(crate) hosts_folder: Option<&'a Path>,
}

/// Brings an image into the store, and shows how far that is.
pub(crate) fn import(
    store: &Store,
    path: &Path,
    wanted: Wanted<'_>,
    name: Option<&ImageName>,
    interrupts: &Interrupts,
) -> Result<Image, CliError> {
    interrupts.import(|cancel| {
        let progress = Arc::<ImportProgress>::default();
        let options = ImportOptions { progress: &|step| progress.show(step), cancel, ..ImportOptions::default() };
        let source = open_source(store, path, wanted, &options, &progress)?;
        import_source(store, &source, wanted, name, &options)
    })
}

fn open_source(
    store: &Store,
    path: &Path,
    wanted: Wanted<'_>,
    options: &ImportOptions<'_>,
    progress: &Arc<ImportProgress>,
) -> Result<ImageSource, CliError> {
    let Some(reference) = registry::reference(path)? else {
        return match wanted.plain_http {
            true => Err(CliError::Conflict(format!(
                "--plain-http is for registries, and `{}` is not in one",
                path.display()
            ))),
            false => Ok(store.open_source(path, options)?),
        };
    };
    if let Some(tag) = wanted.reference {
        return Err(CliError::Conflict(format!(
            "--reference is for files with images: give the tag as in docker://NAME:{tag}"
        )));
    }
    let screen = Arc::clone(progress);
    let registry = registry::options(wanted.plain_http, wanted.hosts_folder, move |retry| screen.retry(retry))?;
    Ok(ImageSource::registry(&reference, &registry, &options.cancel)?)
}

fn import_source(
    store: &Store,
    source: &ImageSource,
    wanted: Wanted<'_>,
    name: Option<&ImageName>,
    options: &ImportOptions<'_>,
) -> Result<Image, CliError> {
    let image = source.image(wanted.platform.unwrap_or(&Platform::host()), wanted.reference)?;
    Ok(store.import(&image, name, options)?)
}

/// The image that `--image` means: a file or directory with one or one in a registry, imported where it is not there yet, or one
/// in the store.
pub(crate) fn find_image(
    store: &Store,
    image: &Path,
    reference: Option<&str>,
    interrupts: &Interrupts,
) -> Result<Image, CliError> {
    if image.is_dir() || image.is_file() || registry::reference(image)?.is_some() {
        return interrupts.import(|cancel| {
            let progress = Arc::<ImportProgress>::default();
            let options = ImportOptions { progress: &|step| progress.show(step), cancel, ..ImportOptions::default() };
            let wanted = Wanted { reference, ..Wanted::default() };
            let source = open_source(store, image, wanted, &options, &progress)?;
            if let ImageSource::RootFs(path) = &source {
                // Any directory could be one: that has to be said.
                return Err(CliError::RootFs { path: path.clone() });
            }
            import_source(store, &source, wanted, None, &options)
        });
    }
    let no_image = |source| CliError::NoImage { image: image.to_owned(), source };
    let name: ImageName = image.to_str().ok_or_else(|| no_image(None))?.parse().map_err(|e| no_image(Some(e)))?;
    // What looks like a path was meant as one.
    if image.is_absolute() || image.exists() || image.starts_with("..") {
        return Err(no_image(None));
    }
    if reference.is_some() {
        return Err(CliError::Conflict(format!("--reference is for files with images, and `{name}` is not one")));
    }
    Ok(store.image(&name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_own_store_follows_the_specification() {
        let path = |data: Option<&str>, home: Option<&str>| default_path(data.map(Into::into), home.map(Into::into));
        assert_eq!(path(Some("/d"), Some("/h")).unwrap(), Path::new("/d/bellows/store"));
        assert_eq!(path(None, Some("/h")).unwrap(), Path::new("/h/.local/share/bellows/store"));
        assert_eq!(path(Some("rel"), Some("/h")).unwrap(), Path::new("/h/.local/share/bellows/store"));
        assert!(path(Some("rel"), None).unwrap_err().to_string().contains("--store"));
    }

    #[test]
    fn what_is_no_image_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("store")).unwrap();
        for (image, code) in [("/nowhere/image", 2), ("..", 2), ("a b", 2), ("missing:tag", 1), ("docker://A", 2)] {
            let error = find_image(&store, Path::new(image), None, &Interrupts::default()).unwrap_err();
            assert_eq!(error.exit_code(), code, "{image}: {}", error.chain());
            assert!(error.chain().contains(image.trim_start_matches("docker://")), "{image}: {}", error.chain());
        }
        assert!(store.images().unwrap().is_empty());
    }
}
