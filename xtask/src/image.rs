//! Container images, real OCI image layouts.
//!
//! The demo's is Debian's root, python3 on it, and a function on that. The tests have more: busybox and musl, as Alpine's
//! images are, Node.js, and Java, with nothing of Debian but these packages.
//!
//! The layers of the demo's between them hold what an importer must get right: device nodes, hard links, set-uid files, extended
//! attributes, a whiteout, an opaque directory; two are compressed with gzip and one with zstd.

mod bare;
mod diff;
mod entries;
mod function;
pub mod layers;
mod layout;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{Cache, Key};
use crate::error::{Error, Result};
use crate::{packages, progress, run};

use self::layout::{Compression, Layout};

const RELEASE: &str = "bookworm";
/// Node.js of the one above looks for the memory that it may have where cgroup v2 has nothing.
const RUNTIMES_RELEASE: &str = "trixie";
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
        progress::step("make layer 1: Debian", |step| {
            run::quiet(step, &mut mmdebstrap("essential", RELEASE, &base, &[])?)
        })?;
        progress::step("make layer 2: python3", |step| {
            run::quiet(step, &mut mmdebstrap("essential", RELEASE, &full, &["python3"])?)
        })?;
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

/// The blob of the lowest layer in the image layout at `root`, which has one image.
pub fn lowest_layer(root: &Path) -> Result<PathBuf> {
    let lowest = layout::layers(root)?.into_iter().next();
    lowest.map(|blob| blob.path).ok_or_else(|| Error::other(format!("{}: an image without layers", root.display())))
}

/// Makes the image of busybox and musl, or finds it in the cache. Returns the directory of the OCI image layout.
pub fn alpine_like(cache: &Cache) -> Result<PathBuf> {
    let packages = ["busybox-static", "musl"];
    bare(cache, "alpine-like-image", (RELEASE, &packages), bare::applets, &["/bin/sh"])
}

/// Makes the image of Node.js, or finds it in the cache. Returns the directory of the OCI image layout.
pub fn node(cache: &Cache) -> Result<PathBuf> {
    let packages = ["base-files", "nodejs"];
    bare(cache, "node-image", (RUNTIMES_RELEASE, &packages), bare::script, &["/usr/bin/node", "/app/main.js"])
}

/// Makes the image of Java, or finds it in the cache. Returns the directory of the OCI image layout.
pub fn java(cache: &Cache) -> Result<PathBuf> {
    let packages = ["base-files", "openjdk-21-jre-headless"];
    bare(cache, "java-image", (RUNTIMES_RELEASE, &packages), bare::java, &["/bin/java", "-version"])
}

/// An image of two layers: packages of a release of Debian, unpacked with what they depend on and not configured, and `top`.
fn bare(
    cache: &Cache,
    name: &str,
    (release, packages): (&str, &[&str]),
    top: fn() -> std::io::Result<Vec<u8>>,
    command: &[&str],
) -> Result<PathBuf> {
    let top = top().map_err(Error::at(name))?;
    let mut key = Key::default().with("recipe", RECIPE).with("release", release).with("epoch", EPOCH);
    key = key.with("packages", packages.join(" ")).with("top", &top);
    if let Some(sources) = apt_sources() {
        key = key.with_file(sources)?;
    }
    let entry = cache.get(name, &key, |place| {
        let base = place.join("base.tar");
        progress::step(&format!("make the {name}"), |step| {
            run::quiet(step, &mut mmdebstrap("extract", release, &base, packages)?)?;
            let mut image = Layout::create(&place.join("layout"))?;
            image.add_layer(&fs::read(&base).map_err(Error::at(&base))?, Compression::Zstd, "packages")?;
            image.add_layer(&top, Compression::Gzip, "top")?;
            image.finish(&serde_json::json!({ "Cmd": command, "Env": ["PATH=/usr/bin:/bin"] }))
        })?;
        fs::remove_file(&base).map_err(Error::at(&base))
    })?;
    Ok(entry.join("layout"))
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
pub fn apt_sources() -> Option<&'static Path> {
    ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"].into_iter().map(Path::new).find(|path| {
        fs::read_to_string(path)
            .is_ok_and(|text| text.lines().any(|line| !line.starts_with('#') && line.contains(RELEASE)))
    })
}

fn mmdebstrap(variant: &str, release: &str, target: &Path, include: &[&str]) -> Result<Command> {
    let mut command = Command::new("mmdebstrap");
    command.env("SOURCE_DATE_EPOCH", EPOCH).arg(format!("--variant={variant}"));
    for pattern in EXCLUDED {
        command.arg(format!("--dpkgopt=path-exclude={pattern}"));
    }
    if !include.is_empty() {
        command.arg(format!("--include={}", include.join(",")));
    }
    command.arg(release).arg(target);
    // Without any sources mmdebstrap uses those that it knows.
    if let Some(sources) = apt_sources() {
        if release == RELEASE {
            command.arg(sources);
        } else {
            command.arg(format!("deb {} {release} main", packages::mirror()?.1));
        }
    }
    Ok(command)
}
