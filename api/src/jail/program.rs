//! The monitor's program and what it needs to begin: the dynamic linker and the libraries that it is linked with.
//!
//! They are copied: what the host or another jail does to its files is of no concern then, and monitors share no memory.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use nix::unistd::{Gid, Uid};
use object::Endianness;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader, ProgramHeader};

use super::error::{JailError, system};
use super::tree::Directory;
use super::undo::Made;

/// Where a program's headers end at the latest, in bytes; they are at its beginning.
const HEADERS: u64 = 64 << 10;
/// Nobody, the monitor included, may write to the copies.
const MODE: u32 = 0o555;

/// A program to copy.
#[derive(Debug)]
pub(super) struct Program {
    path: PathBuf,
    file: File,
    libraries: Vec<PathBuf>,
}

impl Program {
    /// Looks at a program.
    ///
    /// # Errors
    /// It is not a program of this system, or a library of it is missing.
    pub(super) fn open(path: &Path) -> Result<Self, JailError> {
        let path = fs::canonicalize(path).map_err(system("find", path))?;
        let mut file = File::open(&path).map_err(system("open", &path))?;
        if !file.metadata().map_err(system("look at", &path))?.is_file() {
            return Err(JailError::Program { path, reason: "it is no regular file".into() });
        }
        let mut headers = Vec::new();
        (&file).take(HEADERS).read_to_end(&mut headers).map_err(system("read", &path))?;
        file.rewind().map_err(system("read", &path))?;
        let linker = linker(&headers).map_err(|reason| JailError::Program { path: path.clone(), reason })?;
        let libraries = linker.map_or(Ok(Vec::new()), |linker| libraries(&linker, &path))?;
        Ok(Self { path, file, libraries })
    }

    /// Copies it into the jail as `name`, and its libraries to where they are on the host.
    pub(super) fn copy_to(mut self, root: &Directory, name: &str, made: &mut Made) -> Result<(), JailError> {
        let mut copy = root.new_file(name, MODE, made)?;
        io::copy(&mut self.file, &mut copy).map_err(system("copy", &self.path))?;
        for path in &self.libraries {
            let mut source = File::open(path).map_err(system("open", path))?;
            let (folder, name) = folder(root, path, made)?;
            let mut copy = folder.new_file(name, MODE, made)?;
            io::copy(&mut source, &mut copy).map_err(system("copy", path))?;
        }
        Ok(())
    }
}

/// The folder in the jail for a file of the host, and the file's name.
fn folder<'a>(root: &Directory, path: &'a Path, made: &mut Made) -> Result<(Directory, &'a str), JailError> {
    let name_of = |part: &'a std::ffi::OsStr| part.to_str().ok_or(io::ErrorKind::InvalidFilename);
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name_of(name)),
        _ => None,
    });
    let mut names = names.collect::<Result<Vec<_>, _>>().map_err(system("copy", path))?;
    let file = names.pop().ok_or(io::ErrorKind::InvalidFilename).map_err(system("copy", path))?;
    let mut folder: Option<Directory> = None;
    for name in names {
        let next = folder.as_ref().unwrap_or(root).child(name, 0o755, made)?;
        next.expect_owner(&[Uid::effective()])?;
        folder = Some(next);
    }
    let folder = folder.ok_or(io::ErrorKind::InvalidFilename).map_err(system("copy", path))?;
    folder.give(Uid::effective(), Gid::effective(), 0o755)?;
    Ok((folder, file))
}

/// The program that links this one when it begins; none if it is static.
fn linker(headers: &[u8]) -> Result<Option<PathBuf>, String> {
    let wrong = |error: object::read::Error| format!("expected an ELF file of 64 bits: {error}");
    let header = FileHeader64::<Endianness>::parse(headers).map_err(wrong)?;
    let endian = header.endian().map_err(wrong)?;
    for segment in header.program_headers(endian, headers).map_err(wrong)? {
        if let Some(name) = segment.interpreter(endian, headers).map_err(wrong)? {
            let name =
                std::str::from_utf8(name).map_err(|_| "the name of its dynamic linker is not UTF-8".to_owned())?;
            return Ok(Some(name.into()));
        }
    }
    Ok(None)
}

/// What the linker would map, itself included. It is asked, as ldd(1) does; nothing of `program` runs.
fn libraries(linker: &Path, program: &Path) -> Result<Vec<PathBuf>, JailError> {
    let output = Command::new(linker).arg("--list").arg(program).env_clear().output().map_err(system("run", linker))?;
    let wrong = |reason: String| JailError::Program { path: program.to_owned(), reason };
    if !output.status.success() {
        return Err(wrong(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let mut found = listed(&String::from_utf8_lossy(&output.stdout)).map_err(wrong)?;
    if !found.iter().any(|path| path == linker) {
        found.push(linker.to_owned());
    }
    Ok(found)
}

/// Reads the linker's list: `NAME => PATH (ADDRESS)` or `PATH (ADDRESS)` in each line.
fn listed(text: &str) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.ends_with("not found") {
            return Err(format!("a library is missing: {line}"));
        }
        let path = line.split_once(" => ").map_or(line, |(_, path)| path);
        found.extend(path.split(" (").next().filter(|path| path.starts_with('/')).map(PathBuf::from));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_with_its_linker_and_libraries() {
        let program = Program::open(&std::env::current_exe().unwrap()).unwrap();
        let has = |part: &str| program.libraries.iter().any(|path| path.to_string_lossy().contains(part));
        assert!(has("libc.so") && has("ld-linux"), "{program:?}");
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("script");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        for (path, part) in [(&*script, "ELF"), (directory.path(), "no regular file"), (Path::new("/nowhere"), "find")]
        {
            let error = Program::open(path).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_linkers_list_is_read() {
        let list = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n\t/lib64/ld.so (0x7f)\n";
        assert_eq!(listed(list).unwrap(), [Path::new("/lib/libc.so.6"), Path::new("/lib64/ld.so")]);
        assert!(listed("\tstatically linked\n").unwrap().is_empty());
        assert!(listed("\tliba.so => not found\n").unwrap_err().contains("liba.so"));
    }
}
