//! Clients of third parties for the API, which take VMs through their lives in the end-to-end tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bellows_lab::{DISK, Host, LabBuilder};

use crate::cache::{Cache, Key};
use crate::error::{Error, Result};
use crate::packages::{self, package};
use crate::{initramfs, progress, run, workspace};

/// Begins the names of the tests that need clients of Firecracker's API.
const LIVES: &str = "clients::";
/// Begins the names of the tests that need schemathesis.
const CONTRACT: &str = "contract::";

const GO: &[packages::Package] = &[package("golang-go", "builds a client of Firecracker's API that is written in Go")];
/// The files of the program around the Go SDK, in `tests/clients/go`.
const GO_FILES: [&str; 3] = ["go.mod", "go.sum", "main.go"];

/// The program around fctools, and its folder's files.
const FCTOOLS: &str = "fctools-client";
const FCTOOLS_FILES: [&str; 3] = ["Cargo.toml", "Cargo.lock", "main.rs"];

const PYTHON: &[packages::Package] = &[package("python3-venv", "runs clients of the API that are written in Python")];
/// Debian's, whose files the lab gets too; another one need not be the same here and there.
const PYTHON_PROGRAM: &str = "/usr/bin/python3";
const PYTHON_IN_LAB: &str = "python";

/// Paths on this machine.
#[derive(Debug)]
pub struct Clients {
    files: Vec<ClientFile>,
    python: Option<Python>,
}

/// What tests find by a variable.
#[derive(Debug)]
struct ClientFile {
    variable: &'static str,
    /// On the lab's disk.
    name: &'static str,
    path: PathBuf,
}

/// The machine's Python, for the lab.
#[derive(Debug)]
struct Python {
    /// The folder of its library: `/usr/lib/python3.11`.
    library: PathBuf,
    /// Shared objects that it loads, whose libraries the lab needs.
    modules: Vec<PathBuf>,
}

impl Clients {
    /// Makes those that one of these tests needs, for guests with `agent`.
    pub fn build(cache: &Cache, agent: &Path, tests: &[&str], install: bool) -> Result<Self> {
        let mut clients = Self { files: Vec::new(), python: None };
        let needed = |prefix: &str| tests.iter().any(|test| test.starts_with(prefix));
        if needed(LIVES) {
            // Their guests have the agent, and an echo on vsock.
            let initramfs = initramfs::with_echo(cache, agent, &workspace::echo_init()?)?;
            clients.add("BELLOWS_ECHO_INITRAMFS", "echo-initramfs.cpio", initramfs);
            clients.add("BELLOWS_GO_CLIENT", "go-client", go(cache, install)?);
            clients.add("BELLOWS_FCTOOLS_CLIENT", FCTOOLS, fctools(cache)?);
            clients.add_python(cache, "firecracker_python", "BELLOWS_FIRECRACKER_PYTHON", install)?;
            let source = workspace::root().join("tests/clients/firecracker_python");
            clients.add("BELLOWS_PYTHON_CLIENT", "python-client", source);
        }
        if needed(CONTRACT) {
            clients.add_python(cache, "schemathesis", "BELLOWS_SCHEMATHESIS", install)?;
            let source = workspace::root().join("tests/clients/schemathesis");
            clients.add("BELLOWS_CONTRACT", "contract", source);
        }
        Ok(clients)
    }

    /// Adds the packages that a program in Python needs, as its folder's `requirements.txt` pins them.
    fn add_python(&mut self, cache: &Cache, name: &'static str, variable: &'static str, install: bool) -> Result<()> {
        let source = workspace::root().join("tests/clients").join(name);
        let packages = python_packages(cache, name, &source, install)?;
        let python = match self.python.take() {
            Some(python) => python,
            None => Python::find()?,
        };
        self.python = Some(python.with(&packages)?);
        self.add(variable, name, packages);
        Ok(())
    }

    fn add(&mut self, variable: &'static str, name: &'static str, path: PathBuf) {
        self.files.push(ClientFile { variable, name, path });
    }

    /// Variables for the tests on `host`.
    pub fn environment(&self, host: Host) -> impl Iterator<Item = (&'static str, String)> {
        let files = self.files.iter().map(move |file| {
            let path = match host {
                Host::Kvm => file.path.display().to_string(),
                Host::Lab => format!("{DISK}/{}", file.name),
            };
            (file.variable, path)
        });
        let in_lab = self.python.iter().filter(move |_| host == Host::Lab);
        files.chain(in_lab.map(|_| ("PYTHONHOME", format!("{DISK}/{PYTHON_IN_LAB}"))))
    }

    /// Puts them on a lab's disk.
    pub fn add_to(&self, lab: LabBuilder) -> LabBuilder {
        let lab = self.files.iter().fold(lab, |lab, file| lab.on_disk(&file.path, file.name));
        self.python.iter().fold(lab, |lab, python| python.add_to(lab))
    }
}

impl Python {
    fn find() -> Result<Self> {
        let ask = ["-I", "-c", "import sysconfig; print(sysconfig.get_path('stdlib'))"];
        let library = PathBuf::from(run::capture(Command::new(PYTHON_PROGRAM).args(ask))?.trim());
        let mut modules = Vec::new();
        add_modules(&library.join("lib-dynload"), &mut modules)?;
        Ok(Self { library, modules })
    }

    /// With what `packages` need.
    fn with(mut self, packages: &Path) -> Result<Self> {
        add_modules(packages, &mut self.modules)?;
        Ok(self)
    }

    fn add_to(&self, lab: LabBuilder) -> LabBuilder {
        let version = self.library.file_name().unwrap_or_default().to_string_lossy();
        let lab = lab
            .program(PYTHON_PROGRAM, PYTHON_PROGRAM)
            .on_disk(&self.library, format!("{PYTHON_IN_LAB}/lib/{version}"));
        let name = |module: &Path| Path::new("/usr/local/lib/python").join(module.file_name().unwrap_or_default());
        self.modules.iter().fold(lab, |lab, module| lab.program(module, name(module)))
    }
}

/// Adds the shared objects below a folder.
fn add_modules(folder: &Path, modules: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::at(folder))? {
        let path = entry.map_err(Error::at(folder))?.path();
        if path.is_dir() {
            add_modules(&path, modules)?;
        } else if path.extension().is_some_and(|extension| extension == "so") {
            modules.push(path);
        }
    }
    Ok(())
}

/// Installs what the `requirements.txt` in `source` pins into a folder of the cache.
fn python_packages(cache: &Cache, name: &str, source: &Path, install: bool) -> Result<PathBuf> {
    if run::capture(Command::new(PYTHON_PROGRAM).args(["-c", "import ensurepip"])).is_err() {
        packages::ensure(&[PYTHON], install)?;
    }
    let requirements = source.join("requirements.txt");
    let python = run::capture(Command::new(PYTHON_PROGRAM).arg("--version"))?;
    let key = Key::default().with("python", python).with_file(&requirements)?;
    cache.get(name, &key, |place| {
        progress::step(&format!("install {name} from PyPI"), |step| {
            let installer = tempfile::tempdir_in(place).map_err(Error::at(place))?;
            run::quiet(step, Command::new(PYTHON_PROGRAM).args(["-m", "venv"]).arg(installer.path()))?;
            let mut command = Command::new(installer.path().join("bin/pip"));
            command.args(["install", "--quiet", "--require-hashes", "--only-binary", ":all:", "--requirement"]);
            run::quiet(step, command.arg(&requirements).arg("--target").arg(place))
        })
    })
}

/// Builds the program around the Go SDK. Modules come from Go's proxy into the cache, as `go.sum` pins them.
fn go(cache: &Cache, install: bool) -> Result<PathBuf> {
    if run::capture(Command::new("go").arg("version")).is_err() {
        packages::ensure(&[GO], install)?;
    }
    let source = workspace::root().join("tests/clients/go");
    let mut key = Key::default().with("go", run::capture(Command::new("go").arg("version"))?);
    for name in GO_FILES {
        key = key.with_file(&source.join(name))?;
    }
    let entry = cache.get("go-client", &key, |place| {
        progress::step("build the client in Go", |step| {
            let folder = cache.folder("go")?;
            let mut command = Command::new("go");
            command
                .args(["build", "-trimpath", "-mod=readonly", "-buildvcs=false", "-ldflags=-s -w", "-o"])
                .arg(place.join("go-client"))
                .current_dir(&source)
                // Without C, it needs no libraries in the lab.
                .envs([("CGO_ENABLED", "0"), ("GOTOOLCHAIN", "local"), ("GOFLAGS", ""), ("GOWORK", "off")])
                .env("GOMODCACHE", folder.join("modules"))
                .env("GOCACHE", folder.join("build"));
            run::quiet(step, &mut command)
        })
    })?;
    let program = entry.join("go-client");
    fs::metadata(&program).map_err(Error::at(&program))?;
    Ok(program)
}

/// Builds the program around fctools. Its dependencies are its own, as its `Cargo.lock` pins them.
fn fctools(cache: &Cache) -> Result<PathBuf> {
    let source = workspace::root().join("tests/clients/fctools");
    let mut key = Key::default().with("rustc", run::capture(workspace::cargo().arg("--version"))?);
    for name in FCTOOLS_FILES {
        key = key.with_file(&source.join(name))?;
    }
    let entry = cache.get(FCTOOLS, &key, |place| {
        progress::step("build the client fctools", |step| {
            let target = cache.folder("fctools")?;
            let mut command = workspace::cargo();
            command.args(["build", "--release", "--locked", "--manifest-path"]).arg(source.join("Cargo.toml"));
            run::quiet(step, command.arg("--target-dir").arg(&target))?;
            let program = target.join("release").join(FCTOOLS);
            fs::copy(&program, place.join(FCTOOLS)).map(drop).map_err(Error::at(&program))
        })
    })?;
    Ok(entry.join(FCTOOLS))
}
