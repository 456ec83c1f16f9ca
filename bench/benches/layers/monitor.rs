//! Monitors: a process for each VM, as a user starts them.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use bellows_bench::layers::{Answer, Way};
use bellows_bench::smaps::Overhead;
use bellows_lab::artefact;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Result;

/// Base memory of each VM, in bytes.
const MEMORY: u64 = 128 << 20;

/// Longest time for a step of a boot, on an emulated processor that many share.
const LIMIT: &str = "--timeout=3000";

/// The start of an answer; a console prints other lines as well.
const ANSWER: &str = "{\"cached_bytes\"";

/// The source of a VM's files.
pub enum Source {
    /// An image in the store.
    Image { name: String, way: Way },
    /// A raw disk with a root file system.
    Copy(PathBuf),
}

/// Starts monitors.
pub struct Launcher {
    bellows: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
    store: PathBuf,
}

impl Launcher {
    /// With the artefacts that the environment names, and the store in `directory`.
    pub fn from_environment(directory: &Path) -> Result<Self> {
        Ok(Self {
            bellows: artefact("BELLOWS_BINARY")?,
            kernel: artefact("BELLOWS_KERNEL")?,
            initramfs: artefact("BELLOWS_INITRAMFS")?,
            store: directory.join("store"),
        })
    }

    /// Starts a VM whose function is going to answer.
    pub fn start(&self, source: &Source) -> Result<Monitor> {
        let mut command = Command::new(&self.bellows);
        // Without read-ahead, which would distort the counts.
        command.args(["run", LIMIT, "--profile=off"]);
        match source {
            Source::Image { name, way } => {
                // The instance runs in base memory, as in the VMs that it is compared with.
                command.args([format!("--base={MEMORY}"), "--memory=0".to_owned()]);
                command.arg("--kernel").arg(&self.kernel).arg("--initramfs").arg(&self.initramfs);
                command.arg("--store").arg(&self.store);
                command.args(way.arguments().ok_or("a copy has no image to run")?).arg(name);
            }
            Source::Copy(disk) => {
                command.arg("--config").arg(self.configuration(disk)?);
            }
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let output = child.stdout.take().map(BufReader::new).ok_or("a monitor without output")?;
        Ok(Monitor { child, output })
    }

    /// Writes the configuration of a VM that boots from a disk of its own, without an agent: the function is its first process.
    fn configuration(&self, disk: &Path) -> Result<PathBuf> {
        let configuration = serde_json::json!({
            "kernel": self.kernel,
            "memory": MEMORY.to_string(),
            "extra_command_line": ["root=/dev/vda", "rootfstype=ext4", "ro", "devtmpfs.mount=1", "init=/bench/answer.py", "quiet"],
            "drives": [{ "path": disk, "read_only": true }],
            "serial": "stdout",
        });
        let path = self.store.with_file_name(disk.file_name().ok_or("a disk without a name")?).with_extension("json");
        std::fs::write(&path, configuration.to_string())?;
        Ok(path)
    }
}

/// A running monitor; it is ended when this is dropped.
pub struct Monitor {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Monitor {
    /// Waits for the function's answer.
    pub fn answer(&mut self) -> Result<Answer> {
        let mut said = String::new();
        let mut line = Vec::new();
        while self.output.read_until(b'\n', &mut line)? > 0 {
            let text = String::from_utf8_lossy(&line);
            if let Some(start) = text.find(ANSWER) {
                return Ok(serde_json::from_str(text[start..].trim_end())?);
            }
            said.push_str(&text);
            line.clear();
        }
        if let Some(mut errors) = self.child.stderr.take() {
            errors.read_to_string(&mut said)?;
        }
        Err(format!("a monitor ended without an answer ({}): {said}", self.child.wait()?).into())
    }

    /// The memory of its process beside guest memory.
    pub fn overhead(&self) -> Result<Overhead> {
        let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", self.child.id()))?;
        Ok(Overhead::parse(&smaps, MEMORY)?)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // If this fails it has already ended.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
