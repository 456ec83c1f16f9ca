//! Files to execute, and the reasons why a file cannot be executed.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};

use super::Report;

/// Bytes of a file that the kernel reads to tell its format (`BINPRM_BUF_SIZE`).
const HEAD: usize = 256;
/// Most interpreters of interpreters that the kernel follows.
const MAX_DEPTH: usize = 5;
/// Longest path of an ELF interpreter that is shown, in bytes (`PATH_MAX`).
const MAX_INTERPRETER: u64 = 4096;
/// Most program headers that are looked at.
const MAX_HEADERS: u16 = 256;
/// `PT_INTERP`: the program header that names an ELF file's interpreter.
const PT_INTERP: u32 = 3;
/// `e_machine` of this machine's programs.
const MACHINE: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };

/// Checks that this process may execute `file`.
///
/// # Errors
/// The error of `execve(2)`, as far as the file itself tells.
pub(super) fn check(file: &Path) -> Result<(), Errno> {
    let kind = nix::sys::stat::stat(file)?.st_mode & libc::S_IFMT;
    match kind {
        libc::S_IFREG => faccessat(AT_FDCWD, file, AccessFlags::X_OK, AtFlags::AT_EACCESS),
        libc::S_IFDIR => Err(Errno::EISDIR),
        _ => Err(Errno::EACCES),
    }
}

/// The report about a `file` for which [`check`] or `execve(2)` gave `error`. The codes are Docker's: 127 for a missing file,
/// 126 for a file that cannot be executed.
pub(super) fn failure(file: &Path, error: Errno) -> Report {
    let refused = |reason: &str| Report::NotExecutable(format!("{file:?} cannot be executed: {reason}"));
    match error {
        Errno::ENOENT | Errno::ENOTDIR if !file.exists() => Report::NotFound(format!("{file:?} is not in the image")),
        Errno::ENOENT => match missing_interpreter(file) {
            Some(missing) => Report::NotFound(format!(
                "{file:?} cannot be executed: its interpreter {missing:?} is not in the image"
            )),
            None => Report::NotFound(format!("{file:?} cannot be executed: its interpreter is not in the image")),
        },
        Errno::EISDIR => refused("it is a directory"),
        Errno::EACCES => refused("permission denied"),
        Errno::ENOEXEC => refused(&format!("exec format error ({})", format_problem(file))),
        error => refused(error.desc()),
    }
}

/// The first missing interpreter, of the file or of its interpreter.
fn missing_interpreter(file: &Path) -> Option<PathBuf> {
    let mut file = file.to_owned();
    for _ in 0..MAX_DEPTH {
        file = interpreter(&file)?;
        if !file.exists() {
            return Some(file);
        }
    }
    None
}

/// The program that the kernel would start in a file's place: the path behind `#!`, or the one that an ELF file names.
fn interpreter(file: &Path) -> Option<PathBuf> {
    let path = match head(file)?.strip_prefix(b"#!") {
        Some(rest) => {
            let line = rest.split(|&byte| byte == b'\n' || byte == 0).next()?.trim_ascii_start();
            line.split(|&byte| byte == b' ' || byte == b'\t').next()?.to_vec()
        }
        None => elf_interpreter(&open(file)?)?,
    };
    (!path.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(&path)))
}

/// Of a 64-bit file in this machine's byte order (`Elf64_Ehdr`, `Elf64_Phdr` in elf(5)).
fn elf_interpreter(file: &File) -> Option<Vec<u8>> {
    let number = |offset: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, offset).ok()?;
        Some(u64::from_le_bytes(bytes))
    };
    let mut magic = [0; 5];
    file.read_exact_at(&mut magic, 0).ok()?;
    if magic != *b"\x7fELF\x02" {
        return None;
    }
    // e_phoff; e_phentsize and e_phnum.
    let (start, sizes) = (number(0x20)?, number(0x36)?);
    let (entry, count) = (sizes as u16, (sizes >> 16) as u16);
    for index in 0..count.min(MAX_HEADERS) {
        let header = start.checked_add(u64::from(entry) * u64::from(index))?;
        if number(header)? as u32 == PT_INTERP {
            // p_offset and p_filesz.
            let (offset, bytes) = (number(header.checked_add(0x08)?)?, number(header.checked_add(0x20)?)?);
            let mut path = vec![0; usize::try_from(bytes.min(MAX_INTERPRETER)).ok()?];
            file.read_exact_at(&mut path, offset).ok()?;
            path.truncate(path.iter().position(|&byte| byte == 0).unwrap_or(path.len()));
            return Some(path);
        }
    }
    None
}

/// Why the kernel does not recognise a file as a program.
fn format_problem(file: &Path) -> &'static str {
    match head(file).as_deref() {
        None => "it cannot be read",
        Some([]) => "it is empty",
        // e_ident's class and byte order, and e_machine.
        Some([0x7f, b'E', b'L', b'F', 1 | 2, 1 | 2, rest @ ..]) => match rest.get(12..14) {
            Some(machine) if machine != MACHINE.to_le_bytes() => "it is built for another processor",
            _ => "it is a damaged program",
        },
        Some([0x7f, b'E', b'L', b'F', ..]) => "it is a damaged program",
        Some([b'#', b'!', ..]) => "its first line names no interpreter",
        Some(_) => "it is not a program and has no #! line",
    }
}

fn head(file: &Path) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    open(file)?.take(HEAD as u64).read_to_end(&mut head).ok()?;
    Some(head)
}

/// Opens a regular file. An interpreter that an image names may be a pipe without a writer.
fn open(file: &Path) -> Option<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(file).ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}

#[cfg(test)]
#[path = "program_test.rs"]
mod tests;
