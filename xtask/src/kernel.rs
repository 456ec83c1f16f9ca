//! The guest kernel: Debian's source of Linux 6.12 with our configuration and patches, as an ELF `vmlinux`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{Cache, Key};
use crate::error::{Error, Result};
use crate::progress::{self, Step};
use crate::{run, workspace};

const SOURCE: &str = "/usr/src/linux-source-6.12.tar.xz";
/// Lines that a build prints, for the progress bar.
const BUILD_LINES: u64 = 1990;
const SYMBOLS: &str = "System.map";
/// Changes when the way of building does.
const RECIPE: &str = "2";

/// The folder with the kernel's configuration, patches and tests.
pub fn directory() -> PathBuf {
    workspace::root().join("guest/kernel")
}

/// The source that the kernel is built from.
#[derive(Debug)]
pub struct Source {
    /// Version of the package `linux-source-6.12`.
    pub version: String,
    /// The source package that it was built from.
    pub package: String,
    /// Version of that.
    pub package_version: String,
}

/// The source on this machine.
pub fn source() -> Result<Source> {
    let fields = "${Version} ${source:Package} ${source:Version}";
    let text = run::capture(Command::new("dpkg-query").args(["-W", "-f", fields, "linux-source-6.12"]))?;
    let mut fields = text.split_whitespace().map(str::to_owned);
    match (fields.next(), fields.next(), fields.next()) {
        (Some(version), Some(package), Some(package_version)) => Ok(Source { version, package, package_version }),
        _ => Err(Error::other(format!("dpkg-query says `{text}` of linux-source-6.12: expected three words"))),
    }
}

/// A kernel to build.
struct Kernel {
    /// Its name for people.
    what: &'static str,
    entry: &'static str,
    /// Files that configure it; later ones win.
    configs: &'static [&'static str],
    /// The target of make, and its path.
    target: &'static str,
    image: &'static str,
}

const GUEST: Kernel = Kernel {
    what: "guest kernel",
    entry: "guest-kernel",
    configs: &["bellows.config"],
    target: "vmlinux",
    image: "vmlinux",
};

const DEBUG: Kernel = Kernel {
    what: "debug kernel",
    entry: "debug-kernel",
    configs: &["bellows.config", "debug.config"],
    target: "bzImage",
    image: "arch/x86/boot/bzImage",
};

/// Builds the guest kernel, or finds it in the cache.
pub fn guest(cache: &Cache) -> Result<PathBuf> {
    GUEST.make(cache)
}

/// The symbols of the `kernel` that [`guest`] built: `System.map`.
pub fn symbols(kernel: &Path) -> PathBuf {
    kernel.with_file_name(SYMBOLS)
}

/// The same with the kernel's own checks, as a `bzImage`.
pub fn debug(cache: &Cache) -> Result<PathBuf> {
    DEBUG.make(cache)
}

/// Builds Linux's selftests of memory management, or finds them in the cache: a folder of programs.
pub fn selftests(cache: &Cache) -> Result<PathBuf> {
    let program = directory().join("tests/selftests.py");
    let Source { version, .. } = source()?;
    let mut key = Key::default().with("source", &version);
    for file in [program.clone()].iter().chain(&patches(&directory().join("patches"))?) {
        key = key.with_file(file)?;
    }
    cache.get("mm-selftests", &key, |place| {
        progress::step("build Linux's selftests of memory management", |step| {
            let mut command = Command::new("nice");
            command.arg("python3").arg(&program).arg("build").arg(place).args(["--source", SOURCE]);
            run::quiet(step, &mut command)
        })
    })
}

impl Kernel {
    fn make(&self, cache: &Cache) -> Result<PathBuf> {
        let patches = patches(&directory().join("patches"))?;
        let Source { version, .. } = source()?;
        let mut key = Key::default().with("recipe", RECIPE).with("source", &version);
        let configs: Vec<PathBuf> = self.configs.iter().map(|config| directory().join(config)).collect();
        for file in configs.iter().chain(&patches) {
            key = key.with_file(file)?;
        }
        let entry = cache.get(self.entry, &key, |place| {
            progress::bar(&format!("build the {} (Linux {version})", self.what), BUILD_LINES, |step| {
                self.build(step, place, &configs, &patches)
            })
        })?;
        Ok(entry.join(self.target))
    }

    fn build(&self, step: &Step, place: &Path, configs: &[PathBuf], patches: &[PathBuf]) -> Result<()> {
        let (source, out, wanted) = (place.join("source"), place.join("out"), place.join("wanted"));
        fs::create_dir(&source).map_err(Error::at(&source))?;
        step.line("unpack");
        run::quiet(step, Command::new("tar").args(["-x", "--strip-components=1", "-f", SOURCE, "-C"]).arg(&source))?;
        for patch in patches {
            run::quiet(step, Command::new("patch").args(["-p1", "--fuzz=0", "-d"]).arg(&source).arg("-i").arg(patch))?;
        }
        let read = |path: &Path| fs::read_to_string(path).map_err(Error::at(path));
        let fragment = configs.iter().map(|config| read(config)).collect::<Result<String>>()?;
        fs::write(&wanted, &fragment).map_err(Error::at(&wanted))?;
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
                .env("KCONFIG_ALLCONFIG", &wanted);
            command
        };
        run::quiet(step, &mut make("allnoconfig"))?;
        let unmet = unmet(&fragment, &read(&out.join(".config"))?);
        if !unmet.is_empty() {
            let (files, unmet) = (self.configs.join(", "), unmet.join("\n  "));
            return Err(Error::other(format!("options of {files} that did not take effect:\n  {unmet}")));
        }
        run::quiet(step, &mut make(self.target))?;
        let (image, kept) = (out.join(self.image), place.join(self.target));
        match self.target {
            "vmlinux" => run::quiet(step, Command::new("strip").arg("-o").arg(&kept).arg(&image))?,
            _ => fs::copy(&image, &kept).map(drop).map_err(Error::at(&image))?,
        }
        for (built, kept) in [(".config", "config"), (SYMBOLS, SYMBOLS)] {
            fs::copy(out.join(built), place.join(kept)).map_err(Error::at(place))?;
        }
        for directory in [source, out] {
            fs::remove_dir_all(&directory).map_err(Error::at(&directory))?;
        }
        fs::remove_file(&wanted).map_err(Error::at(&wanted))
    }
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

/// Options of a fragment that the resolved configuration lacks. If the fragment names an option twice, the last line counts.
fn unmet<'a>(fragment: &'a str, resolved: &str) -> Vec<&'a str> {
    let option = |line: &'a str| {
        let name = line.strip_prefix("# ").map_or(line.split('=').next(), |rest| rest.strip_suffix(" is not set"));
        name.filter(|name| name.starts_with("CONFIG_"))
    };
    let takes_effect = |line: &str| match line.strip_prefix("# ").and_then(|line| line.strip_suffix(" is not set")) {
        // An option that is not set may be absent.
        Some(option) => !resolved.lines().any(|line| line.starts_with(&format!("{option}="))),
        None => resolved.lines().any(|resolved| resolved == line),
    };
    let lines: Vec<(&str, &str)> = fragment.lines().filter_map(|line| Some((option(line)?, line))).collect();
    let counts = |at: usize| lines[at + 1..].iter().all(|(later, _)| *later != lines[at].0);
    (0..lines.len()).filter(|at| counts(*at)).map(|at| lines[at].1).filter(|line| !takes_effect(line)).collect()
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

    #[test]
    fn later_lines_win() {
        assert!(
            unmet("# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_A=y\n# CONFIG_B is not set\n", "CONFIG_A=y\n").is_empty()
        );
        assert_eq!(unmet("CONFIG_A=y\nCONFIG_A=m\n", "CONFIG_A=y\n"), ["CONFIG_A=m"]);
    }
}
