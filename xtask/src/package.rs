//! `cargo xtask package`: a Debian package with everything for `bellows run IMAGE CMD`, and a test of it in a clean Debian.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::cache::{Cache, Key};
use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::{dependencies, image, kernel, packages, progress, run, workspace};

/// The release that the package is made for and tested in.
const RELEASE: &str = "bookworm";
const MAINTAINER: &str = "The Bellows developers <maintainers@bellows.invalid>";
/// Takes a folder, the clean Debian, the package and the script to run there.
const CHROOT: &str = r#"set -e
mkdir "$1/root"
tar -x -f "$2" -C "$1/root"
cp "$3" "$1/root/bellows.deb"
mount -t proc proc "$1/root/proc"
code=0
chroot "$1/root" /bin/bash -c "$4" || code=$?
umount "$1/root/proc"
# Its files may belong to users of this namespace.
rm -rf "$1/root"
exit "$code""#;
const CHECK: &str = include_str!("package/check.sh");

/// Builds the package; returns its path.
pub fn build(install: bool) -> Result<PathBuf> {
    let guest = Guest::build(install)?;
    let (bellows, manual) = (workspace::bellows()?, workspace::manual()?);
    let folder = workspace::target_directory().join("package");
    let tree = Tree::create(folder.join("tree"))?;
    tree.program(&bellows)?;
    for (file, name) in guest.files() {
        tree.copy(file, &format!("usr/lib/bellows/{name}"))?;
    }
    tree.manual(&manual, &folder.join("manual"))?;
    tree.units()?;
    tree.documents()?;
    tree.kernel_source(&guest.kernel)?;
    tree.control()?;
    let package = folder.join(format!("bellows_{}_amd64.deb", version()));
    progress::step("pack the Debian package", |step| {
        let mut dpkg_deb = Command::new("dpkg-deb");
        // The same content gives the same bytes.
        dpkg_deb.env("SOURCE_DATE_EPOCH", commit_time()?).args(["--root-owner-group", "--build"]);
        run::quiet(step, dpkg_deb.arg(&tree.root).arg(&package))
    })?;
    Ok(package)
}

/// Builds the package, then installs, uses, upgrades and removes it in a clean Debian.
pub fn test(install: bool) -> Result<()> {
    let package = build(install)?;
    packages::ensure(&[packages::IMAGE], install)?;
    let clean = clean_debian(&Cache::open()?)?;
    progress::step("test the package in a clean Debian", |step| {
        let folder = tempfile::tempdir().map_err(Error::at("a temporary folder"))?;
        let mut namespaces = Command::new("unshare");
        namespaces.args(["--mount", "--pid", "--fork", "--kill-child"]);
        if !is_root()? {
            namespaces.args(["--map-root-user", "--map-auto"]);
        }
        namespaces.args(["sh", "-c", CHROOT, "sh"]).arg(folder.path()).args([&clean, &package]).arg(CHECK);
        run::quiet(step, &mut namespaces)
    })
}

/// The root file system of a minimal Debian, as an archive.
fn clean_debian(cache: &Cache) -> Result<PathBuf> {
    let key = Key::default().with("recipe", "1").with("release", RELEASE);
    let entry = cache.get("clean-debian", &key, |place| {
        progress::step("make a clean Debian", |step| {
            let mut mmdebstrap = Command::new("mmdebstrap");
            mmdebstrap.args(["--variant=essential", RELEASE]).arg(place.join("root.tar")).args(image::apt_sources());
            run::quiet(step, &mut mmdebstrap)
        })
    })?;
    Ok(entry.join("root.tar"))
}

/// The files that the package installs, below a folder.
struct Tree {
    root: PathBuf,
}

impl Tree {
    fn create(root: PathBuf) -> Result<Self> {
        if root.exists() {
            fs::remove_dir_all(&root).map_err(Error::at(&root))?;
        }
        fs::create_dir_all(&root).map_err(Error::at(&root))?;
        Ok(Self { root })
    }

    fn program(&self, bellows: &Path) -> Result<()> {
        let to = self.place("usr/bin/bellows")?;
        progress::step("strip bellows", |step| {
            run::quiet(step, Command::new("strip").arg("-o").arg(&to).arg(bellows))
        })?;
        set_mode(&to, 0o755)
    }

    /// Manual pages and completions, which the program `manual` writes.
    fn manual(&self, manual: &Path, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).map_err(Error::at(folder))?;
        progress::step("write the manual", |step| run::quiet(step, Command::new(manual).arg(folder)))?;
        for path in files(folder)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            match &*name {
                "bellows.bash" => self.copy(&path, "usr/share/bash-completion/completions/bellows")?,
                "bellows.fish" => self.copy(&path, "usr/share/fish/vendor_completions.d/bellows.fish")?,
                "_bellows" => self.copy(&path, "usr/share/zsh/vendor-completions/_bellows")?,
                page => self.compress(&path, &format!("usr/share/man/man1/{page}.gz"))?,
            }
        }
        Ok(())
    }

    /// Units of users: each user has a store.
    fn units(&self) -> Result<()> {
        ["bellows-gc.service", "bellows-gc.timer"]
            .into_iter()
            .try_for_each(|unit| self.copy(&packaging(unit), &format!("usr/lib/systemd/user/{unit}")))
    }

    fn documents(&self) -> Result<()> {
        let root = workspace::root();
        self.copy(&packaging("copyright"), "usr/share/doc/bellows/copyright")?;
        self.compress(&root.join("CHANGELOG.md"), "usr/share/doc/bellows/changelog.gz")?;
        self.write("usr/share/doc/bellows/third-party.gz", &gzip(dependencies::notices()?.as_bytes())?)?;
        for document in files(&root.join("docs"))? {
            let name = document.file_name().unwrap_or_default().to_string_lossy();
            self.copy(&document, &format!("usr/share/doc/bellows/docs/{name}"))?;
        }
        Ok(())
    }

    /// The kernel's build inputs, which its licence demands: the place of its source, the patches, the configuration.
    fn kernel_source(&self, kernel: &Path) -> Result<()> {
        let place = |name: &str| format!("usr/share/doc/bellows/kernel/{name}");
        let source = kernel::directory();
        let text = fs::read_to_string(packaging("kernel-source")).map_err(Error::at(packaging("kernel-source")))?;
        let kernel::Source { version, package, package_version } = kernel::source()?;
        let text = text.replace("@VERSION@", &version);
        let text = text.replace("@SOURCE@", &package).replace("@SOURCE_VERSION@", &package_version);
        self.write(&place("README"), text.as_bytes())?;
        self.compress(&source.join("COPYING"), &place("COPYING.gz"))?;
        self.compress(&source.join("bellows.config"), &place("bellows.config.gz"))?;
        self.compress(&kernel.with_file_name("config"), &place("config.gz"))?;
        for patch in files(&source.join("patches"))? {
            let name = patch.file_name().unwrap_or_default().to_string_lossy();
            self.compress(&patch, &place(&format!("patches/{name}.gz")))?;
        }
        Ok(())
    }

    fn control(&self) -> Result<()> {
        // The program needs the symbols that it was linked with.
        let libc = run::capture(Command::new("dpkg-query").args(["-W", "-f", "${source:Upstream-Version}", "libc6"]))?;
        let kib = size(&self.root)?.div_ceil(1024);
        let version = version();
        let control = format!(
            "Package: bellows\nVersion: {version}\nArchitecture: amd64\nMaintainer: {MAINTAINER}\n\
             Installed-Size: {kib}\nDepends: libc6 (>= {libc}), libgcc-s1\nRecommends: ca-certificates, passt\n\
             Section: admin\nPriority: optional\n\
             Description: microVMs for functions: shared layers, and memory that goes back\n \
             bellows runs commands of container images in microVMs. VMs on a host share\n \
             the image's layers in the page cache, and each function's memory goes back\n \
             to the host when the function ends. Needs KVM.\n"
        );
        self.write("DEBIAN/control", control.as_bytes())
    }

    fn place(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(Error::at(folder))?;
        }
        Ok(path)
    }

    fn copy(&self, from: &Path, name: &str) -> Result<()> {
        self.write(name, &fs::read(from).map_err(Error::at(from))?)
    }

    fn compress(&self, from: &Path, name: &str) -> Result<()> {
        self.write(name, &gzip(&fs::read(from).map_err(Error::at(from))?)?)
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.place(name)?;
        fs::write(&path, content).map_err(Error::at(&path))?;
        set_mode(&path, 0o644)
    }
}

fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

fn packaging(name: &str) -> PathBuf {
    workspace::root().join("packaging").join(name)
}

/// Seconds since the epoch of the last commit; 0 in a tree without history.
fn commit_time() -> Result<String> {
    let mut git = Command::new("git");
    git.current_dir(workspace::root()).args(["log", "-1", "--format=%ct"]);
    Ok(run::capture(&mut git).map_or_else(|_| "0".to_owned(), |time| time.trim().to_owned()))
}

fn is_root() -> Result<bool> {
    let own = "/proc/self";
    Ok(fs::metadata(own).map_err(Error::at(own))?.uid() == 0)
}

fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    let compress = || -> io::Result<Vec<u8>> {
        // Without a name and a time: the same content gives the same bytes.
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(content)?;
        encoder.finish()
    };
    compress().map_err(Error::at("gzip"))
}

/// The files in a folder, in the order of their names.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    let mut files: Vec<_> = entries.map_err(Error::at(folder))?.iter().map(fs::DirEntry::path).collect();
    files.retain(|path| path.is_file());
    files.sort();
    Ok(files)
}

/// Bytes of all files below a folder.
fn size(folder: &Path) -> Result<u64> {
    let entries = fs::read_dir(folder).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    entries.map_err(Error::at(folder))?.iter().map(fs::DirEntry::path).try_fold(0, |sum, path| {
        let metadata = fs::symlink_metadata(&path).map_err(Error::at(&path))?;
        Ok(sum + if metadata.is_dir() { size(&path)? } else { metadata.len() })
    })
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(Error::at(path))
}
