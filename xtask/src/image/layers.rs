//! Images for measuring layers: one that many VMs share, the same as an ext4 file system, and images of many layers.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use tar::{Builder, EntryType};

use crate::cache::{Cache, Key};
use crate::error::{Error, Result};
use crate::progress;
use crate::run;

use super::entries::add;
use super::layout::{self, Compression, LayerBlob, Layout};

/// Reads a part of a model and tells the guest's memory. It can be the guest's first process.
const ANSWER: &str = include_str!("answer.py");
/// Bytes of the model: with it the image is larger than 150 MiB.
const MODEL: u64 = 64 << 20;
/// Layers of the images that differ in that only.
pub const COUNTS: [usize; 3] = [1, 10, 40];
/// Changes when the way of making them does.
const RECIPE: &str = "1";

/// OCI image layouts, and a file system.
#[derive(Debug)]
pub struct Images {
    entry: PathBuf,
}

impl Images {
    /// Makes them from the layout `demo`, or finds them in the cache.
    pub fn make(cache: &Cache, demo: &Path) -> Result<Self> {
        let place = demo.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        let key = Key::default().with("recipe", RECIPE).with("demo", &*place).with("answer", ANSWER);
        let entry = cache.get("layer-images", &key, |entry| {
            progress::step("make images of many layers", |step| make(entry, demo, |line| step.line(line)))
        })?;
        Ok(Self { entry })
    }

    /// Names and layouts of all images.
    pub fn layouts(&self) -> impl Iterator<Item = (String, PathBuf)> {
        let names = COUNTS.map(|count| count.to_string());
        names.into_iter().chain(["shared".to_owned()]).map(|name| (name.clone(), self.entry.join(name)))
    }

    /// The files of `shared` as an ext4 file system.
    pub fn root(&self) -> PathBuf {
        self.entry.join("root.ext4")
    }
}

fn make(entry: &Path, demo: &Path, mut tell: impl FnMut(&str)) -> Result<()> {
    let (root, archive) = (entry.join("root"), entry.join("root.tar"));
    fs::create_dir(&root).map_err(Error::at(&root))?;
    let process = serde_json::json!({ "Cmd": ["/usr/bin/python3", "/bench/answer.py"], "User": "0:0" });

    tell("an image of four layers");
    let mut shared = Layout::create(&entry.join("shared"))?;
    for layer in unpacked(demo)? {
        unpack(&layer, &archive, &root)?;
        shared.add_layer(&layer, Compression::Zstd, "a layer of the demonstration's image")?;
    }
    let function = function().map_err(Error::at("the function's layer"))?;
    unpack(&function, &archive, &root)?;
    let base = pack(&root, &archive)?;
    let model = model().map_err(Error::at("the model's layer"))?;
    unpack(&model, &archive, &root)?;
    shared.add_layer(&function, Compression::Zstd, "function")?;
    shared.add_layer(&model, Compression::Zstd, "model")?;
    shared.finish(&process)?;

    for count in COUNTS {
        tell(&format!("an image of {count} layers"));
        let mut layout = Layout::create(&entry.join(count.to_string()))?;
        layout.add_layer(&base, Compression::Zstd, "all files")?;
        for number in 1..count {
            let layer = module(number).map_err(Error::at("a small layer"))?;
            layout.add_layer(&layer, Compression::Zstd, "one more module")?;
        }
        layout.finish(&process)?;
    }

    tell("a file system");
    file_system(&root, &entry.join("root.ext4"))?;
    fs::remove_file(&archive).map_err(Error::at(&archive))?;
    fs::remove_dir_all(&root).map_err(Error::at(&root))
}

/// The layers of an image layout with one image, uncompressed, lowest first.
pub fn unpacked(root: &Path) -> Result<Vec<Vec<u8>>> {
    let unpack = |blob: LayerBlob| {
        let packed = fs::read(&blob.path).map_err(Error::at(&blob.path))?;
        let mut layer = Vec::new();
        let unpacked = match blob.media_type.ends_with("+gzip") {
            true => flate2::read::GzDecoder::new(&*packed).read_to_end(&mut layer).map(drop),
            false => zstd::stream::copy_decode(&*packed, &mut layer),
        };
        unpacked.map_err(Error::at(&blob.path))?;
        Ok(layer)
    };
    layout::layers(root)?.into_iter().map(unpack).collect()
}

/// Unpacks a layer over `root`, without devices, which an ordinary user cannot make, and without its whiteouts.
fn unpack(layer: &[u8], archive: &Path, root: &Path) -> Result<()> {
    fs::write(archive, layer).map_err(Error::at(archive))?;
    let mut tar = Command::new("tar");
    tar.args(["-x", "--no-same-owner", "--exclude=./dev/*", "--exclude=.wh.*", "-f"]).arg(archive).arg("-C").arg(root);
    run::capture(&mut tar).map(drop)
}

/// All files below `root` as an archive whose files are root's.
fn pack(root: &Path, archive: &Path) -> Result<Vec<u8>> {
    let mut tar = Command::new("tar");
    tar.args(["-c", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--format=pax", "-f"]).arg(archive);
    run::capture(tar.arg("-C").arg(root).arg("."))?;
    fs::read(archive).map_err(Error::at(archive))
}

fn function() -> io::Result<Vec<u8>> {
    let mut out = Builder::new(Vec::new());
    add(&mut out, "bench/", EntryType::Directory, 0o755, "")?;
    add(&mut out, "bench/answer.py", EntryType::Regular, 0o755, ANSWER)?;
    out.into_inner()
}

/// Numbers that look random, for a page that is like another could be found to be.
fn model() -> io::Result<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut words = std::iter::repeat_with(|| {
        // Xorshift: Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8 (2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    let bytes: Vec<u8> = words.by_ref().take(MODEL as usize / 8).flat_map(u64::to_le_bytes).collect();
    let mut out = Builder::new(Vec::new());
    add(&mut out, "bench/model", EntryType::Regular, 0o644, &bytes)?;
    out.into_inner()
}

fn module(number: usize) -> io::Result<Vec<u8>> {
    let mut out = Builder::new(Vec::new());
    let name = format!("usr/lib/python3/dist-packages/layer_{number}.py");
    add(&mut out, &name, EntryType::Regular, 0o644, format!("NUMBER = {number}\n"))?;
    out.into_inner()
}

/// Makes an ext4 image of all below `root`, with some room.
fn file_system(root: &Path, image: &Path) -> Result<()> {
    let used = run::capture(Command::new("du").args(["-s", "--block-size=1M"]).arg(root))?;
    let used: u64 = used.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or_default();
    File::create(image).map_err(Error::at(image))?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut make = Command::new("mkfs.ext4");
    make.env("PATH", format!("{path}:/usr/sbin:/sbin")).args(["-q", "-F", "-m", "0", "-E", "root_owner=0:0", "-d"]);
    run::capture(make.arg(root).arg(image).arg(format!("{}M", used + used / 8 + 16))).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_come_out_of_a_layout_as_they_went_in() {
        let directory = tempfile::tempdir().unwrap();
        let mut layout = Layout::create(directory.path()).unwrap();
        layout.add_layer(b"one", Compression::Gzip, "1").unwrap();
        layout.add_layer(b"two", Compression::Zstd, "2").unwrap();
        layout.finish(&serde_json::json!({})).unwrap();
        assert_eq!(unpacked(directory.path()).unwrap(), [b"one", b"two"]);
    }
}
