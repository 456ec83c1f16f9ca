//! `bellows image`: manages the layer store.

mod mount;
mod users;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bellows_block::model::{ImageReport, LayerReport, LayerUsage, MountReport, RemovedReport};
use bellows_block::page_cache::resident;
use bellows_block::{Digest, Image, ImageName, NamedImage, Store};
use serde::Serialize;

use self::mount::HostMount;
use self::users::users;
use crate::cli::{ImageCommand, ImagesArgs, StoreArgs};
use crate::error::{CliError, io_error};
use crate::interrupt::Interrupts;
use crate::output::print;
use crate::registry;
use crate::report::print_json;
use crate::store::{self, Wanted, known_name, parse_name};

/// Runs `command`; returns the exit code.
///
/// # Errors
/// See [`CliError`].
pub fn run(command: &ImageCommand) -> Result<u8, CliError> {
    match command {
        ImageCommand::Import { source, reference, platform, plain_http, hosts_dir, name, store } => {
            let (reference, platform) = (reference.as_deref(), platform.as_ref());
            let wanted = Wanted { reference, platform, plain_http: *plain_http, hosts_folder: hosts_dir.as_deref() };
            import(source, wanted, name.as_deref(), store)
        }
        ImageCommand::Ls { store } => list(store),
        ImageCommand::Inspect(args) => inspect(args),
        ImageCommand::Stat(args) => stat(args),
        ImageCommand::Mount { image, directory, store } => mount(image, directory, store),
        ImageCommand::Umount { directory } => mount::unmount(directory),
        ImageCommand::Rm { images, store } => remove(images, store),
        ImageCommand::Gc { store } => collect(store),
        ImageCommand::Verify(args) => verify(args),
    }
    .map(|()| 0)
}

fn import(source: &Path, wanted: Wanted<'_>, name: Option<&str>, args: &StoreArgs) -> Result<(), CliError> {
    let interrupts = Interrupts::install().map_err(io_error("wait for", "signals"))?;
    let name = match (name, registry::reference(source)?) {
        (Some(name), _) => Some(parse_name(name)?),
        (None, reference) => reference.as_ref().and_then(registry::image_name),
    };
    let store = store::open(args.store.as_deref())?;
    let image = store::import(&store, source, wanted, name.as_ref(), &interrupts);
    let image = match (image, interrupts.received()) {
        // Only complete layers of it remain.
        (Err(_), Some(signal)) => return Err(CliError::Interrupted(signal)),
        (image, _) => image?,
    };
    let named = NamedImage { image, names: name.into_iter().collect() };
    let report = report(&store, named, |digest| sizes(&store, digest))?;
    if args.json {
        print_json(&report)
    } else {
        print(report.digest)?;
        print_sizes(&report)
    }
}

fn list(args: &StoreArgs) -> Result<(), CliError> {
    let store = store::open(args.store.as_deref())?;
    print_reports(reports(&store, store.images()?, |digest| sizes(&store, digest))?, args.json, print_sizes)
}

fn inspect(args: &ImagesArgs) -> Result<(), CliError> {
    let store = store::open(args.store.store.as_deref())?;
    let images = chosen(&store, &args.images)?;
    let configs: Vec<_> = images.iter().map(|named| named.image.config.clone()).collect();
    let mut reports = reports(&store, images, |digest| Ok(store.inspect(digest)?))?;
    for (report, config) in reports.iter_mut().zip(configs) {
        report.config = Some(config);
    }
    // JSON is the only form with all data.
    print_json(&reports)
}

fn mount(image: &str, directory: &Path, args: &StoreArgs) -> Result<(), CliError> {
    let store = store::open(args.store.as_deref())?;
    let image = store.image(&known_name(&store, image)?)?;
    let cached_bytes = mount::mount(&store.flat(&image)?, directory)?;
    let report = MountReport { directory: directory.to_owned(), cached_bytes };
    if args.json {
        return print_json(&report);
    }
    print_mount(&report)
}

fn print_mount(mount: &MountReport) -> Result<(), CliError> {
    let MountReport { directory, cached_bytes } = mount;
    print(format_args!("  mounted on {}, which caches {cached_bytes} bytes of its own", directory.display()))
}

/// The mounts of an image on this host.
fn mounts(store: &Store, image: &Image) -> Result<Vec<MountReport>, CliError> {
    let report = |mount: HostMount| {
        let cached_bytes = mount.cached_bytes()?;
        Ok(MountReport { directory: mount.directory, cached_bytes })
    };
    HostMount::all_of(&store.flat_metadata(image))?.into_iter().map(report).collect()
}

fn stat(args: &ImagesArgs) -> Result<(), CliError> {
    let store = store::open(args.store.store.as_deref())?;
    // Images share layers.
    let mut known = BTreeMap::new();
    let mut usage = |digest: &Digest| {
        if let Some(known) = known.get(digest) {
            return Ok(LayerUsage::clone(known));
        }
        let layer = store.layer(digest)?;
        let resident_bytes = resident(&layer.path).map_err(io_error("map", &layer.path))?.bytes();
        let users = users(&layer.path).map_err(io_error("find the users of", &layer.path))?;
        let report = LayerUsage { digest: *digest, bytes: layer.bytes, resident_bytes, users };
        known.insert(*digest, report.clone());
        Ok(report)
    };
    let images = chosen(&store, &args.images)?;
    let mounts = images.iter().map(|named| mounts(&store, &named.image)).collect::<Result<Vec<_>, _>>()?;
    let mut reports = reports(&store, images, &mut usage)?;
    for (report, mounts) in reports.iter_mut().zip(mounts) {
        report.mounts = Some(mounts);
    }
    print_reports(reports, args.store.json, |report| {
        for layer in &report.layers {
            let users: Vec<_> = layer.users.iter().map(u32::to_string).collect();
            let users = if users.is_empty() { "no VM".to_owned() } else { format!("VMs {}", users.join(" ")) };
            let LayerUsage { digest, bytes, resident_bytes, .. } = layer;
            print(format_args!("  {digest} {bytes:>12} bytes {resident_bytes:>12} cached, {users}"))?;
        }
        report.mounts.iter().flatten().try_for_each(print_mount)
    })
}

fn remove(names: &[String], args: &StoreArgs) -> Result<(), CliError> {
    let store = store::open(args.store.as_deref())?;
    let names = names.iter().map(|name| known_name(&store, name)).collect::<Result<Vec<_>, _>>()?;
    let mut removed = Vec::new();
    for name in names {
        let image_removed = store.remove(&name)?;
        if !args.json {
            print(format_args!("{name}: {}", if image_removed { "image removed" } else { "name removed" }))?;
        }
        removed.push(RemovedReport { name, image_removed });
    }
    if args.json { print_json(&removed) } else { Ok(()) }
}

fn collect(args: &StoreArgs) -> Result<(), CliError> {
    let store = store::open(args.store.as_deref())?;
    let collected = store.collect()?;
    if args.json {
        return print_json(&collected);
    }
    for digest in &collected.layers {
        print(format_args!("{digest} removed"))?;
    }
    for digest in &collected.in_use {
        print(format_args!("{digest} is in use"))?;
    }
    print(format_args!("{} bytes freed", collected.bytes))
}

fn verify(args: &ImagesArgs) -> Result<(), CliError> {
    let store = store::open(args.store.store.as_deref())?;
    let images = chosen(&store, &args.images)?;
    let mut digests: BTreeSet<_> = images.iter().flat_map(|named| &named.image.layers).copied().collect();
    for named in &images {
        digests.extend(store.fixup(&named.image)?.map(|fixup| fixup.digest));
    }
    let layers: Vec<_> = digests.iter().map(|digest| checked(&store, digest)).collect();
    if args.store.json {
        print_json(&layers)?;
    } else {
        for layer in &layers {
            print(format_args!("{} {}", layer.digest, layer.error.as_deref().unwrap_or("ok")))?;
        }
    }
    match layers.iter().filter(|layer| layer.error.is_some()).count() {
        0 => Ok(()),
        damaged => Err(CliError::Damaged { damaged, layers: layers.len() }),
    }
}

fn checked(store: &Store, digest: &Digest) -> LayerReport {
    match store.verify(digest) {
        Ok(layer) => LayerReport { digest: *digest, bytes: layer.bytes, error: None },
        Err(error) => LayerReport { digest: *digest, bytes: 0, error: Some(CliError::from(error).chain()) },
    }
}

/// The images of these names, or all images.
fn chosen(store: &Store, names: &[String]) -> Result<Vec<NamedImage>, CliError> {
    let all = store.images()?;
    if names.is_empty() {
        return Ok(all);
    }
    let digests = names.iter().map(|name| Ok(store.image(&known_name(store, name)?)?.digest));
    let digests = digests.collect::<Result<BTreeSet<_>, CliError>>()?;
    Ok(all.into_iter().filter(|named| digests.contains(&named.image.digest)).collect())
}

fn sizes(store: &Store, digest: &Digest) -> Result<LayerReport, CliError> {
    let layer = store.layer(digest)?;
    Ok(LayerReport { digest: layer.digest, bytes: layer.bytes, error: None })
}

fn reports<L>(
    store: &Store,
    images: Vec<NamedImage>,
    mut layer: impl FnMut(&Digest) -> Result<L, CliError>,
) -> Result<Vec<ImageReport<L>>, CliError> {
    images.into_iter().map(|named| report(store, named, &mut layer)).collect()
}

fn report<L>(
    store: &Store,
    named: NamedImage,
    layer: impl FnMut(&Digest) -> Result<L, CliError>,
) -> Result<ImageReport<L>, CliError> {
    let fixup = store.fixup(&named.image)?.map(|fixup| fixup.digest);
    let layers = named.image.layers.iter().chain(&fixup).map(layer).collect::<Result<_, _>>()?;
    Ok(ImageReport { digest: named.image.digest, names: named.names, config: None, layers, fixup, mounts: None })
}

fn print_reports<L: Serialize>(
    reports: Vec<ImageReport<L>>,
    json: bool,
    print_layers: impl Fn(&ImageReport<L>) -> Result<(), CliError>,
) -> Result<(), CliError> {
    if json {
        return print_json(&reports);
    }
    for report in &reports {
        let names: Vec<_> = report.names.iter().map(ImageName::to_string).collect();
        print(format_args!("{} {}", report.digest, names.join(" ")))?;
        print_layers(report)?;
    }
    Ok(())
}

fn print_sizes(report: &ImageReport<LayerReport>) -> Result<(), CliError> {
    report.layers.iter().try_for_each(|layer| print(format_args!("  {} {:>12} bytes", layer.digest, layer.bytes)))
}
