//! QEMU with a guest, and its monitor protocol.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bellows_lab::artefact;
use serde_json::{Value, json};

use crate::{Ended, PATIENCE, Result, await_socket};

/// A guest of QEMU's. A socket of its monitor serves one client at a time, so it has two.
pub struct Qmp {
    _process: Ended,
    sockets: [PathBuf; 2],
}

/// A client of its monitor.
pub struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    pub fn start(directory: &Path) -> Result<Self> {
        let sockets = ["kept.sock", "qmp.sock"].map(|name| directory.join(name));
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-nodefaults",
                "-no-user-config",
                "-nographic",
                "-machine",
                "microvm,acpi=on,pcie=on",
                "-accel",
                "kvm",
            ])
            .args(["-cpu", "host", "-m", "512M", "-append", "quiet panic=-1"])
            .args(["-bios", "qboot.rom"])
            .arg("-kernel")
            .arg(artefact("BELLOWS_KERNEL")?)
            .arg("-initrd")
            .arg(artefact("BELLOWS_INITRAMFS")?);
        for socket in &sockets {
            command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
        }
        let process = Ended(command.stdin(Stdio::null()).spawn()?);
        sockets.iter().try_for_each(|socket| await_socket(socket))?;
        Ok(Self { _process: process, sockets })
    }

    /// A client that stays connected; there can be one.
    pub fn stay(&self) -> Result<Monitor> {
        Self::connect_to(&self.sockets[0])
    }

    /// Connects, and agrees on capabilities.
    pub fn connect(&self) -> Result<Monitor> {
        Self::connect_to(&self.sockets[1])
    }

    fn connect_to(socket: &Path) -> Result<Monitor> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut monitor = Monitor { stream: BufReader::new(stream) };
        let greeting = monitor.line()?;
        if greeting["QMP"].is_null() {
            return Err(format!("QEMU greets with {greeting}").into());
        }
        monitor.execute("qmp_capabilities")?;
        Ok(monitor)
    }
}

impl Monitor {
    /// Asks for the VM's state.
    pub fn status(&mut self) -> Result<()> {
        self.execute("query-status").map(drop)
    }

    fn execute(&mut self, command: &str) -> Result<Value> {
        let request = json!({ "execute": command }).to_string() + "\n";
        self.stream.get_mut().write_all(request.as_bytes())?;
        loop {
            let mut answer = self.line()?;
            if !answer["error"].is_null() {
                return Err(format!("QEMU answers {command} with {answer}").into());
            }
            // Events come in between.
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}
