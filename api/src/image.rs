//! `bellows image`: what is in the layer store.

use std::collections::BTreeSet;
use std::path::Path;

use bellows_block::{Image, ImageName, LayerDigest, Store};
use serde::Serialize;

use crate::cli::{ImageCommand, StoreArgs};
use crate::error::{CliError, io_error};
use crate::interrupt::Interrupts;
use crate::store::{self, Wanted};

/// An image as `--json` prints it.
#[derive(Debug, Serialize)]
struct ImageReport {
    digest: LayerDigest,
    names: Vec<String>,
    layers: Vec<LayerReport>,
}

#[derive(Debug, Serialize)]
struct LayerReport {
    digest: LayerDigest,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Does what `command` says; returns the exit code.
///
/// # Errors
/// See [`CliError`].
pub fn run(command: &ImageCommand) -> Result<u8, CliError> {
    match command {
        ImageCommand::Import { source, reference, platform, name, store } => {
            let wanted = Wanted { reference: reference.as_deref(), platform: platform.as_ref() };
            import(source, wanted, name.as_deref(), store)
        }
        ImageCommand::Ls { store } => list(store),
        ImageCommand::Verify { images, store } => verify(images, store),
    }
}

fn import(source: &Path, wanted: Wanted<'_>, name: Option<&str>, args: &StoreArgs) -> Result<u8, CliError> {
    let interrupts = Interrupts::install().map_err(io_error("wait for", "signals"))?;
    let name = name.map(parse_name).transpose()?;
    let store = store::open(args.store.as_deref())?;
    let image = store::import(&store, source, wanted, name.as_ref(), &interrupts);
    let image = match (image, interrupts.received()) {
        // Nothing of it is left, but layers that were complete.
        (Err(_), Some(signal)) => return Err(CliError::Interrupted(signal)),
        (image, _) => image?,
    };
    let report = report(&store, &image, name.iter().map(ImageName::to_string).collect())?;
    if args.json {
        print_json(&report)
    } else {
        println!("{}", image.digest);
        print_layers(&report);
        Ok(0)
    }
}

fn list(args: &StoreArgs) -> Result<u8, CliError> {
    let store = store::open(args.store.as_deref())?;
    let listed = store::list(&store)?;
    let reports = listed.into_iter().map(|listed| report(&store, &listed.image, listed.names));
    let reports = reports.collect::<Result<Vec<_>, _>>()?;
    if args.json {
        return print_json(&reports);
    }
    for report in &reports {
        println!("{} {}", report.digest, report.names.join(" "));
        print_layers(report);
    }
    Ok(0)
}

fn verify(names: &[String], args: &StoreArgs) -> Result<u8, CliError> {
    let store = store::open(args.store.as_deref())?;
    let images = if names.is_empty() {
        store::list(&store)?.into_iter().map(|listed| listed.image).collect()
    } else {
        let image = |name: &String| Ok(store.image(&parse_name(name)?)?);
        names.iter().map(image).collect::<Result<Vec<_>, CliError>>()?
    };
    let digests: BTreeSet<_> = images.iter().flat_map(|image| &image.layers).copied().collect();
    let layers: Vec<_> = digests.iter().map(|digest| checked(&store, digest)).collect();
    if args.json {
        print_json(&layers)?;
    } else {
        for layer in &layers {
            println!("{} {}", layer.digest, layer.error.as_deref().unwrap_or("ok"));
        }
    }
    match layers.iter().filter(|layer| layer.error.is_some()).count() {
        0 => Ok(0),
        damaged => Err(CliError::Damaged { damaged, layers: layers.len() }),
    }
}

fn checked(store: &Store, digest: &LayerDigest) -> LayerReport {
    match store.verify(digest) {
        Ok(layer) => LayerReport { digest: *digest, bytes: layer.bytes, error: None },
        Err(error) => LayerReport { digest: *digest, bytes: 0, error: Some(CliError::from(error).chain()) },
    }
}

fn report(store: &Store, image: &Image, names: Vec<String>) -> Result<ImageReport, CliError> {
    let layers = store.layers(image)?;
    let layers = layers.iter().map(|layer| LayerReport { digest: layer.digest, bytes: layer.bytes, error: None });
    Ok(ImageReport { digest: image.digest, names, layers: layers.collect() })
}

fn parse_name(name: &str) -> Result<ImageName, CliError> {
    name.parse().map_err(|source| CliError::NoImage { image: name.into(), source: Some(source) })
}

fn print_layers(report: &ImageReport) {
    for layer in &report.layers {
        println!("  {} {:>12} bytes", layer.digest, layer.bytes);
    }
}

fn print_json(report: &impl Serialize) -> Result<u8, CliError> {
    let text = serde_json::to_string_pretty(report);
    println!("{}", text.map_err(|error| CliError::Unexpected(format!("cannot write the report: {error}")))?);
    Ok(0)
}
