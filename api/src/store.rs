//! The layer store of a command, and its images.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bellows_block::oci::{Platform, RegistryReference};
use bellows_block::{Digest, Image, ImageName, ImageSource, ImportOptions, Store, StoreError};

use bellows_vmm::{ImageConfig, ImageId, Shape};

use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::output::say;
use crate::places::data_home;
use crate::progress::ImportProgress;
use crate::registry;

/// Opens the store at `path`, or the user's own.
pub(crate) fn open(path: Option<&Path>) -> Result<Store, CliError> {
    Ok(Store::open(self::path(path)?)?)
}

/// The place of the store: `path`, or the user's own.
pub(crate) fn path(path: Option<&Path>) -> Result<PathBuf, CliError> {
    match path {
        Some(path) => Ok(path.to_owned()),
        None => Ok(data_home(|name| env::var_os(name).map(PathBuf::from))
            .ok_or(CliError::Missing("a place for the layer store", "--store, or set HOME"))?
            .join("bellows/store")),
    }
}

/// The choice among a source's images.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted<'a> {
    pub(crate) reference: Option<&'a str>,
    /// By default the host's.
    pub(crate) platform: Option<&'a Platform>,
    /// Of a registry.
    pub(crate) plain_http: bool,
    /// The folder of registries' folders, if not a usual one.
    pub(crate) hosts_folder: Option<&'a Path>,
}

/// Imports an image to the store, and shows progress.
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

/// The image that IMAGE means, as `docker run` takes it: a name in the store; else a name in a registry, where it is imported
/// from and known by afterwards. A text that begins with `/` or `.` is a path.
pub(crate) fn find_image(
    store: &Store,
    image: &str,
    reference: Option<&str>,
    interrupts: &Interrupts,
) -> Result<Image, CliError> {
    if image.starts_with(['/', '.']) {
        return import_file(store, Path::new(image), reference, interrupts);
    }
    if let Some(tag) = reference {
        return Err(CliError::Conflict(format!("--reference {tag} is for files with images, and `{image}` is a name")));
    }
    if let Some(reference) = registry::reference(Path::new(image))? {
        return pull(store, image, &reference, interrupts);
    }
    let name = known_name(store, image)?;
    match store.image(&name) {
        // A digest alone does not name a registry.
        Err(StoreError::NoImage { .. }) if image.parse::<Digest>().is_err() => {
            if Path::new(image).exists() {
                say(format_args!(
                    "`{image}` is a name, which is looked up in a registry: `./{image}` is the file or directory"
                ));
            }
            let reference: RegistryReference = image.parse()?;
            pull(store, &format!("{}{reference}", registry::SCHEME), &reference, interrupts)
        }
        found => Ok(found?),
    }
}

/// The name that the store knows an image by: `text` itself, or as Docker completes it (`busybox` is
/// `docker.io/library/busybox:latest`).
pub(crate) fn known_name(store: &Store, text: &str) -> Result<ImageName, CliError> {
    let name = parse_name(text)?;
    if !matches!(store.image(&name), Err(StoreError::NoImage { .. })) {
        return Ok(name);
    }
    let completed = text.parse().ok().and_then(|reference| registry::image_name(&reference));
    Ok(completed.filter(|completed| store.image(completed).is_ok()).unwrap_or(name))
}

/// A name of an image in a store.
pub(crate) fn parse_name(text: &str) -> Result<ImageName, CliError> {
    text.parse().map_err(|source| CliError::NoImage { image: text.into(), source: Some(source) })
}

/// Imports the image in a file or directory.
pub(crate) fn import_file(
    store: &Store,
    path: &Path,
    reference: Option<&str>,
    interrupts: &Interrupts,
) -> Result<Image, CliError> {
    if !path.is_dir() && !path.is_file() {
        return Err(CliError::NoImage { image: path.display().to_string(), source: None });
    }
    interrupts.import(|cancel| {
        let progress = Arc::<ImportProgress>::default();
        let options = ImportOptions { progress: &|step| progress.show(step), cancel, ..ImportOptions::default() };
        let wanted = Wanted { reference, ..Wanted::default() };
        let source = open_source(store, path, wanted, &options, &progress)?;
        if let ImageSource::RootFs(path) = &source {
            // Any directory could be one, so this needs an explicit command.
            return Err(CliError::RootFs { path: path.clone() });
        }
        import_source(store, &source, wanted, None, &options)
    })
}

fn pull(
    store: &Store,
    source: &str,
    reference: &RegistryReference,
    interrupts: &Interrupts,
) -> Result<Image, CliError> {
    let name = registry::image_name(reference);
    import(store, Path::new(source), Wanted::default(), name.as_ref(), interrupts)
}

/// An image of the store as the image `id` of a VM. Without a shape it is flat where that is possible.
pub(crate) fn of_store(
    store: &Store,
    image: &Image,
    id: ImageId,
    shape: Option<Shape>,
) -> Result<ImageConfig, CliError> {
    let stack = store.stack(image)?;
    // A stack needs no metadata, so none is made.
    let flat = if shape == Some(Shape::Layers) { None } else { Some(store.flat(image)) };
    Ok(match flat {
        None => ImageConfig::stacked(id, &stack),
        Some(Err(StoreError::NotFlat { .. })) if shape.is_none() => ImageConfig::stacked(id, &stack),
        Some(flat) => ImageConfig::flat(id, &flat?).fixup(stack.fixup.as_ref()),
    })
}

#[cfg(test)]
mod tests {
    use bellows_block::testing::{Compression, LayoutBuilder, RegistryServer};

    use super::*;

    #[test]
    fn an_error_names_a_file_without_an_image() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("store")).unwrap();
        let digest = Digest::of(b"x").to_string();
        for (image, code) in [
            ("/nowhere/image", 2),
            ("..", 2),
            ("./no/archive", 2),
            ("a b", 2),
            (&digest, 1),
            ("docker://A", 2),
            ("A", 2),
        ] {
            let error = find_image(&store, image, None, &Interrupts::default()).unwrap_err();
            assert_eq!(error.failure().exit_code(false), code, "{image}: {}", error.chain());
            assert!(error.chain().contains(image.trim_start_matches("docker://")), "{image}: {}", error.chain());
        }
        let error = find_image(&store, "busybox", Some("1"), &Interrupts::default()).unwrap_err();
        assert!(error.chain().contains("--reference 1"), "{}", error.chain());
        assert!(store.images().unwrap().is_empty());
    }

    /// As with `docker run`: the second time the registry is not asked.
    #[test]
    fn an_image_of_a_registry_is_imported_once_and_known_by_its_name() {
        let (server, digest) = registry();
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("store")).unwrap();
        let name = format!("{}/team/app", server.address());
        let find = |name: &str| find_image(&store, name, None, &Interrupts::default());
        assert_eq!(find(&name).unwrap().digest, digest);
        drop(server);
        assert_eq!(find(&name).unwrap().digest, digest);
        assert_eq!(find(&format!("{name}:latest")).unwrap().digest, digest);
        assert_eq!(known_name(&store, &name).unwrap().to_string(), format!("{name}:latest"));
        find(&format!("docker://{name}")).unwrap_err();
        find(&format!("{name}:other")).unwrap_err();
    }

    /// A registry with the image `team/app:latest`, and its digest.
    fn registry() -> (RegistryServer, Digest) {
        let mut layout = LayoutBuilder::new();
        // Two blocks of zeros end an archive.
        layout.layer(&[0; 1024], Compression::Gzip);
        let manifest = layout.manifest("amd64");
        let server = RegistryServer::start();
        server.push(&layout, "team/app", &[(&manifest, "latest")]);
        (server, manifest["digest"].as_str().unwrap().parse().unwrap())
    }
}
