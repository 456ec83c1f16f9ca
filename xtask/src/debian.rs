//! Debian's own cloud kernels: 6.12 for the lab and a guest, 6.1 for an older guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{Cache, Key};
use crate::error::{Error, Result};
use crate::progress::{self, Step};
use crate::run;

/// An unpacked kernel package.
#[derive(Debug, Clone)]
pub struct DebianKernel {
    /// The `bzImage`.
    pub image: PathBuf,
    /// `lib/modules/<release>`.
    pub modules: PathBuf,
}

/// A series of kernels that Debian has.
#[derive(Debug, Clone, Copy)]
pub enum Series {
    /// 6.1, the release's own, which cannot mount flat images.
    Linux6_1,
    /// 6.12, from its backports or a later release.
    Linux6_12,
}

/// Downloads and unpacks the newest one of a series, or finds it in the cache. Nothing is installed.
pub fn cloud_kernel(cache: &Cache, series: Series) -> Result<DebianKernel> {
    let package = newest(series)?;
    let policy = run::capture(Command::new("apt-cache").args(["show", "--no-all-versions", &package]))?;
    let version = policy.lines().find_map(|line| line.strip_prefix("Version: ")).unwrap_or_default();
    let key = Key::default().with("package", &package).with("version", version);
    let entry = cache.get("debian-kernel", &key, |place| {
        progress::step(&format!("download {package} {version}"), |step| unpack(step, place, &package))
    })?;
    let image = only_child(&entry.join("boot"), "vmlinuz-")?;
    let modules = only_child(&entry.join("lib/modules"), "")?;
    Ok(DebianKernel { image, modules })
}

fn newest(series: Series) -> Result<String> {
    let pattern = match series {
        Series::Linux6_1 => "^linux-image-6[.]1[.].*-cloud-amd64$",
        Series::Linux6_12 => "^linux-image-6[.]12[.].*-cloud-amd64$",
    };
    let found = run::capture(Command::new("apt-cache").args(["search", "--names-only", pattern]))?;
    let names = found.lines().filter_map(|line| line.split_whitespace().next());
    names
        .max_by_key(|name| numbers(name))
        .map(str::to_owned)
        .ok_or_else(|| Error::other(format!("apt has no package {pattern}: run apt-get update")))
}

/// The numbers in a package name, so that 6.12.100 sorts after 6.12.9.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|char: char| !char.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

fn unpack(step: &Step, place: &Path, package: &str) -> Result<()> {
    // The sandbox user of apt cannot write below a home directory.
    run::quiet(
        step,
        Command::new("apt-get").args(["download", "-o", "APT::Sandbox::User=root", package]).current_dir(place),
    )?;
    let archive = only_child(place, "linux-image")?;
    run::quiet(step, Command::new("dpkg-deb").arg("-x").arg(&archive).arg(place))?;
    fs::remove_file(&archive).map_err(Error::at(&archive))
}

fn only_child(directory: &Path, prefix: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(directory).map_err(Error::at(directory))? {
        let entry = entry.map_err(Error::at(directory))?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(entry.path());
        }
    }
    Err(Error::other(format!("{}: nothing named {prefix}*", directory.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_by_number() {
        assert!(numbers("linux-image-6.12.100+deb12") > numbers("linux-image-6.12.9+deb12"));
    }
}
