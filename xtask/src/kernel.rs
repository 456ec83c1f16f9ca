//! The guest kernel: Debian's source of Linux 6.12 with our configuration and patches, as an ELF `vmlinux`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{Cache, Key};
use crate::error::{Error, Result};
use crate::progress::{self, Step};
use crate::{run, workspace};

const SOURCE: &str = "/usr/src/linux-source-6.12.tar.xz";
/// Lines that a build prints, to know how far it is.
const BUILD_LINES: u64 = 1990;
/// Changes when the way of building does.
const RECIPE: &str = "1";

/// Builds the guest kernel, or finds it in the cache.
pub fn guest(cache: &Cache) -> Result<PathBuf> {
    let directory = workspace::root().join("guest/kernel");
    let config = directory.join("bellows.config");
    let patches = patches(&directory.join("patches"))?;
    let version = run::capture(Command::new("dpkg-query").args(["-W", "-f", "${Version}", "linux-source-6.12"]))?;
    let mut key = Key::default().with("recipe", RECIPE).with("source", &version).with_file(&config)?;
    for patch in &patches {
        key = key.with_file(patch)?;
    }
    let entry = cache.get("guest-kernel", &key, |place| {
        progress::bar(&format!("build the guest kernel (Linux {version})"), BUILD_LINES, |step| {
            build(step, place, &config, &patches)
        })
    })?;
    Ok(entry.join("vmlinux"))
}

fn patches(directory: &Path) -> Result<Vec<PathBuf>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let mut patches = Vec::new();
    for entry in fs::read_dir(directory).map_err(Error::at(directory))? {
        let path = entry.map_err(Error::at(directory))?.path();
        if path.extension().is_some_and(|extension| extension == "patch") {
            patches.push(path);
        }
    }
    patches.sort();
    Ok(patches)
}

fn build(step: &Step, place: &Path, config: &Path, patches: &[PathBuf]) -> Result<()> {
    let (source, out) = (place.join("source"), place.join("out"));
    fs::create_dir(&source).map_err(Error::at(&source))?;
    step.line("unpack");
    run::quiet(step, Command::new("tar").args(["-x", "--strip-components=1", "-f", SOURCE, "-C"]).arg(&source))?;
    for patch in patches {
        run::quiet(step, Command::new("patch").args(["-p1", "--fuzz=0", "-d"]).arg(&source).arg("-i").arg(patch))?;
    }
    let make = |target: &str| {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let mut command = Command::new("nice");
        command
            .args(["make", "-C"])
            .arg(&source)
            .arg(format!("O={}", out.display()))
            .args(["ARCH=x86_64", &format!("-j{jobs}"), target])
            .env("KBUILD_BUILD_USER", "bellows")
            .env("KBUILD_BUILD_HOST", "bellows")
            .env("KBUILD_BUILD_TIMESTAMP", "1970-01-01")
            .env("KCONFIG_ALLCONFIG", config);
        command
    };
    run::quiet(step, &mut make("allnoconfig"))?;
    verify(config, &out.join(".config"))?;
    run::quiet(step, &mut make("vmlinux"))?;
    run::quiet(step, Command::new("strip").arg("-o").arg(place.join("vmlinux")).arg(out.join("vmlinux")))?;
    fs::copy(out.join(".config"), place.join("config")).map_err(Error::at(place))?;
    for directory in [source, out] {
        fs::remove_dir_all(&directory).map_err(Error::at(&directory))?;
    }
    Ok(())
}

/// Fails with a list if the resolved configuration is not what the fragment asked for.
fn verify(fragment: &Path, resolved: &Path) -> Result<()> {
    let read = |path: &Path| fs::read_to_string(path).map_err(Error::at(path));
    let wanted = read(fragment)?;
    let unmet = unmet(&wanted, &read(resolved)?);
    if unmet.is_empty() {
        return Ok(());
    }
    Err(Error::other(format!("options of {} that did not take effect:\n  {}", fragment.display(), unmet.join("\n  "))))
}

fn unmet<'a>(fragment: &'a str, resolved: &str) -> Vec<&'a str> {
    let takes_effect = |line: &str| match line.strip_prefix("# ").and_then(|line| line.strip_suffix(" is not set")) {
        // An option that isn't set may not be mentioned at all.
        Some(option) => !resolved.lines().any(|line| line.starts_with(&format!("{option}="))),
        None => resolved.lines().any(|resolved| resolved == line),
    };
    let is_option = |line: &&str| line.starts_with("CONFIG_") || line.starts_with("# CONFIG_");
    fragment.lines().filter(is_option).filter(|line| !takes_effect(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_options_that_did_not_take_effect() {
        let fragment = "# why\nCONFIG_A=y\nCONFIG_B=8\n# CONFIG_C is not set\n# CONFIG_D is not set\nCONFIG_E=y\n";
        let resolved = "CONFIG_A=y\nCONFIG_B=6\nCONFIG_C=y\n# CONFIG_E is not set\n";
        assert_eq!(unmet(fragment, resolved), ["CONFIG_B=8", "# CONFIG_C is not set", "CONFIG_E=y"]);
    }
}
