//! The last steps of a process before it becomes the instance's command.

use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use bellows_protocol::values::{MAX_NODES, TerminalSize};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use seccompiler::BpfProgram;

use super::plan::{DEFAULT_PATH, ProcessPlan};
use super::{Report, failed, program, terminal, zygote};
use crate::{seccomp, sys};

/// What a process becomes.
#[derive(Debug)]
pub(super) enum Becoming {
    /// The command.
    Command,
    /// The parent of the command, which is a zygote with this control socket.
    Zygote(OwnedFd),
    /// A fork of this zygote.
    Fork(OwnedFd),
}

/// Gives the process its terminal, and installs the filter of system calls.
pub(super) fn prepare(process: &ProcessPlan, filter: &BpfProgram) -> Result<(), Report> {
    // The Rust runtime ignores SIGPIPE, and ignored signals survive exec.
    sys::reset_sigpipe().map_err(failed("SIGPIPE"))?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(failed("signal mask"))?;
    if let Some((columns, rows)) = process.terminal {
        terminal::open(TerminalSize { columns, rows }).map_err(failed("terminal"))?;
    }
    seccomp::install(filter).map_err(failed("system call filter"))
}

/// Prepares the process, and becomes the command; or takes the last step in another way.
pub(super) fn execute(process: &ProcessPlan, becoming: &Becoming, filter: &BpfProgram) -> Result<Infallible, Report> {
    prepare(process, filter)?;
    match becoming {
        Becoming::Command => execute_command(process),
        Becoming::Zygote(control) => zygote::run(&find_command(process)?, process, control),
        Becoming::Fork(zygote) => zygote::adopt(process, zygote),
    }
}

/// Becomes the command.
fn execute_command(process: &ProcessPlan) -> Result<Infallible, Report> {
    let path = find_command(process)?;
    let arguments = strings(&process.arguments).map_err(failed("arguments"))?;
    let environment = strings(&process.environment).map_err(failed("environment"))?;
    let file = CString::new(path.into_os_string().into_vec()).map_err(failed("command"))?;
    let Err(error) = nix::unistd::execve(&file, &arguments, &environment);
    Err(program::failure(Path::new(OsStr::from_bytes(file.as_bytes())), error))
}

/// Binds all memory of this process and its children to `node`.
pub(super) fn bind_memory(node: u32) -> io::Result<()> {
    const WORD_BITS: u32 = libc::c_ulong::BITS;
    const MASK_WORDS: usize = MAX_NODES.div_ceil(WORD_BITS) as usize;
    let mut mask: [libc::c_ulong; MASK_WORDS] = [0; MASK_WORDS];
    let word = mask.get_mut((node / WORD_BITS) as usize).ok_or(io::ErrorKind::InvalidInput)?;
    *word |= 1 << (node % WORD_BITS);
    // Without the flag, an emptied node would turn the policy into one for base memory.
    let mode = libc::MPOL_BIND | libc::MPOL_F_STATIC_NODES;
    sys::set_memory_policy(mode, &mask)
}

fn strings(texts: &[String]) -> Result<Vec<CString>, std::ffi::NulError> {
    texts.iter().map(|text| CString::new(text.as_str())).collect()
}

/// The command's file, found as a shell would.
fn find_command(process: &ProcessPlan) -> Result<PathBuf, Report> {
    let name = process.arguments.first().map(String::as_str).unwrap_or_default();
    let path = process.environment.iter().rev().find_map(|variable| variable.strip_prefix("PATH="));
    find(name, path.unwrap_or(DEFAULT_PATH))
}
/// The file of command `name`: `name` itself if it has a slash, else the first executable one in the folders of `path`.
fn find(name: &str, path: &str) -> Result<PathBuf, Report> {
    if name.contains('/') {
        let file = PathBuf::from(name);
        return match program::check(&file) {
            Ok(()) => Ok(file),
            Err(error) => Err(program::failure(&file, error)),
        };
    }
    // A file that cannot be executed is skipped, as in shells, and reported if no better one is found.
    let mut found = None;
    for folder in path.split(':') {
        let file = Path::new(if folder.is_empty() { "." } else { folder }).join(name);
        match program::check(&file) {
            Ok(()) => return Ok(file),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(error) => found = found.or(Some(program::failure(&file, error))),
        }
    }
    Err(found.unwrap_or_else(|| Report::NotFound(format!("command {name:?} is not in {path}"))))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_command_is_found_as_a_shell_would() {
        let folder = tempfile::tempdir().unwrap();
        let (empty, full) = (folder.path().join("empty"), folder.path().join("full"));
        std::fs::create_dir_all(&empty).unwrap();
        std::fs::create_dir_all(full.join("folder")).unwrap();
        for (name, mode) in [("tool", 0o755), ("text", 0o644)] {
            std::fs::write(full.join(name), "").unwrap();
            std::fs::set_permissions(full.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let path = format!("{}:{}", empty.display(), full.display());
        assert_eq!(find("tool", &path), Ok(full.join("tool")));
        assert_eq!(find(full.join("tool").to_str().unwrap(), ""), Ok(full.join("tool")));
        assert!(matches!(find("text", &path), Err(Report::NotExecutable(_))));
        assert!(matches!(find("folder", &path), Err(Report::NotExecutable(_))));
        // A later folder may have an executable one.
        let better = format!("{path}:{}", folder.path().join("better").display());
        std::fs::create_dir(folder.path().join("better")).unwrap();
        std::os::unix::fs::symlink(full.join("tool"), folder.path().join("better/text")).unwrap();
        assert_eq!(find("text", &better), Ok(folder.path().join("better/text")));
        let Err(Report::NotFound(message)) = find("none", &path) else { panic!("found") };
        assert!(message.contains("none") && message.contains(&path), "{message}");
        assert!(matches!(find("/no/such/tool", &path), Err(Report::NotFound(_))));
    }
}
