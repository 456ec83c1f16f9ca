//! The demo's container image, a real OCI image layout: Debian's root, python3 on it, and a function on that.
//!
//! The layers between them hold what an importer must get right: device nodes, hard links, set-uid files, extended
//! attributes, a whiteout, an opaque directory; two are compressed with gzip and one with zstd.

mod diff;
mod function;
pub mod layers;
mod layout;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{Cache, Key};
use crate::error::{Error, Result};
use crate::progress;
use crate::run;

use self::layout::{Compression, Layout};

const RELEASE: &str = "bookworm";
/// All times in the image: it's the same whenever it's made.
const EPOCH: &str = "1700000000";
/// Changes when the way of making the image does.
const RECIPE: &str = "1";
/// What a function does not need; what is left is smaller and quicker to make.
const EXCLUDED: &[&str] =
    &["/usr/share/man/*", "/usr/share/locale/*", "/usr/share/i18n/*", "/usr/share/info/*", "/usr/share/zoneinfo/*"];

/// Makes the image, or finds it in the cache. Returns the directory of the OCI image layout.
pub fn demo(cache: &Cache) -> Result<PathBuf> {
    let mut key = Key::default().with("recipe", RECIPE).with("release", RELEASE).with("epoch", EPOCH);
    key = key.with("function", function::SOURCE);
    if let Some(sources) = apt_sources() {
        key = key.with_file(sources)?;
    }
    let entry = cache.get("demo-image", &key, |place| {
        let (base, full) = (place.join("base.tar"), place.join("full.tar"));
        progress::step("make layer 1: Debian", |step| run::quiet(step, &mut mmdebstrap(&base, &[])))?;
        progress::step("make layer 2: python3", |step| run::quiet(step, &mut mmdebstrap(&full, &["python3"])))?;
        progress::step("write the image layout", |step| {
            write(&place.join("layout"), &base, &full, |line| step.line(line))
        })?;
        for file in [base, full] {
            fs::remove_file(&file).map_err(Error::at(&file))?;
        }
        Ok(())
    })?;
    Ok(entry.join("layout"))
}

/// The blob of the lowest layer in the image layout at `layout`, which has one image.
pub fn lowest_layer(layout: &Path) -> Result<PathBuf> {
    let document = |path: &Path| -> Result<serde_json::Value> {
        let data = fs::read(path).map_err(Error::at(path))?;
        serde_json::from_slice(&data).map_err(|error| Error::other(format!("{}: {error}", path.display())))
    };
    let blob = |descriptor: &serde_json::Value| {
        let digest = descriptor["digest"].as_str().unwrap_or_default();
        layout.join("blobs").join(digest.replace(':', "/"))
    };
    let index = document(&layout.join("index.json"))?;
    let manifest = document(&blob(&index["manifests"][0]))?;
    Ok(blob(&manifest["layers"][0]))
}

fn write(layout: &Path, base: &Path, full: &Path, mut tell: impl FnMut(&str)) -> Result<()> {
    let mut image = Layout::create(layout)?;
    let read = |path: &Path| fs::read(path).map_err(Error::at(path));
    let (base, full) = (read(base)?, read(full)?);
    tell("compress layer 1");
    let upper = diff::layer(&base, &full).map_err(Error::at("layer 2"))?;
    image.add_layer(&base, Compression::Gzip, "Debian root file system")?;
    drop((base, full));
    tell("compress layer 2");
    image.add_layer(&upper, Compression::Zstd, "python3")?;
    tell("compress layer 3");
    image.add_layer(&function::layer().map_err(Error::at("layer 3"))?, Compression::Gzip, "function")?;
    image.finish(&function::process())
}

/// The machine's own sources of Debian packages, so that a mirror set up here is used.
fn apt_sources() -> Option<&'static Path> {
    ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"].into_iter().map(Path::new).find(|path| {
        fs::read_to_string(path)
            .is_ok_and(|text| text.lines().any(|line| !line.starts_with('#') && line.contains(RELEASE)))
    })
}

fn mmdebstrap(target: &Path, include: &[&str]) -> Command {
    let mut command = Command::new("mmdebstrap");
    command.env("SOURCE_DATE_EPOCH", EPOCH).arg("--variant=essential");
    for pattern in EXCLUDED {
        command.arg(format!("--dpkgopt=path-exclude={pattern}"));
    }
    if !include.is_empty() {
        command.arg(format!("--include={}", include.join(",")));
    }
    command.arg(RELEASE).arg(target);
    if let Some(sources) = apt_sources() {
        command.arg(sources);
    }
    command
}
