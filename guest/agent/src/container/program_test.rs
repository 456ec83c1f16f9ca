use std::os::unix::fs::{PermissionsExt, symlink};

use proptest::prelude::*;

use super::*;

/// A folder of files that may be executed.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

/// An ELF file for `machine` that names `interpreter`.
fn elf(machine: u16, interpreter: &str) -> Vec<u8> {
    let mut file = vec![0; 0x40 + 0x38];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    file[0x12..0x14].copy_from_slice(&machine.to_le_bytes());
    file[0x20..0x28].copy_from_slice(&0x40_u64.to_le_bytes());
    file[0x36..0x38].copy_from_slice(&0x38_u16.to_le_bytes());
    file[0x38..0x3a].copy_from_slice(&1_u16.to_le_bytes());
    file[0x40..0x44].copy_from_slice(&PT_INTERP.to_le_bytes());
    file[0x48..0x50].copy_from_slice(&0x78_u64.to_le_bytes());
    file[0x60..0x68].copy_from_slice(&(interpreter.len() as u64 + 1).to_le_bytes());
    file.extend(interpreter.as_bytes());
    file.push(0);
    file
}

#[test]
fn an_error_names_a_missing_interpreter() {
    let folder = Folder::new();
    let script = folder.file("script", b"#!/no/such/shell -e\necho\n");
    let dos = folder.file("dos", b"#!/bin/sh\r\necho\n");
    let dynamic = folder.file("dynamic", &elf(MACHINE, "/lib/ld-none.so.1"));
    let nested = folder.file("nested", format!("#! {} -x", dynamic.display()).as_bytes());
    for (file, named) in
        [(script, "/no/such/shell"), (dos, "/bin/sh\\r"), (dynamic, "/lib/ld-none.so.1"), (nested, "/lib/ld-none.so.1")]
    {
        let Report::NotFound(message) = failure(&file, Errno::ENOENT) else { panic!("{file:?}") };
        assert!(message.contains(named) && message.contains("interpreter"), "{message}");
        assert!(message.contains(file.to_str().unwrap()), "{message}");
    }
}

#[test]
fn a_missing_file_is_not_found() {
    let folder = Folder::new();
    let file = folder.file("file", b"");
    let link = folder.0.path().join("link");
    symlink("nowhere", &link).unwrap();
    for path in [folder.0.path().join("none"), file.join("below"), link] {
        let error = check(&path).unwrap_err();
        let Report::NotFound(message) = failure(&path, error) else { panic!("{path:?}") };
        assert!(message.contains(path.to_str().unwrap()), "{message}");
    }
}

#[test]
fn an_error_says_why_a_file_cannot_be_executed() {
    let folder = Folder::new();
    let message = |file: &Path, error| match failure(file, error) {
        Report::NotExecutable(message) => message,
        other => panic!("{file:?}: {other:?}"),
    };
    let plain = folder.file("plain", b"echo hi\n");
    for (file, expected) in [
        (plain.clone(), "no #! line"),
        (folder.file("a", b""), "empty"),
        (folder.file("b", &elf(40, "/lib/ld.so")), "another processor"),
        (folder.file("c", b"\x7fELF\x02\x01\x01"), "damaged"),
        (folder.file("d", &[b"\x7fELF", &[b' '; 60][..]].concat()), "damaged"),
        (folder.file("e", b"#!\n"), "names no interpreter"),
    ] {
        let text = message(&file, Errno::ENOEXEC);
        assert!(text.contains("exec format error") && text.contains(expected), "{text}");
        assert_eq!(check(&file), Ok(()));
    }
    assert_eq!(check(folder.0.path()), Err(Errno::EISDIR));
    assert!(message(folder.0.path(), Errno::EISDIR).contains("directory"));
    std::fs::set_permissions(&plain, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(check(&plain), Err(Errno::EACCES));
    assert!(message(&plain, Errno::EACCES).contains("permission denied"));
    assert_eq!(check(Path::new("/dev/null")), Err(Errno::EACCES));
    assert!(message(&plain, Errno::E2BIG).contains("rgument list too long"));
}

proptest! {
    /// Arbitrary bytes as a program.
    #[test]
    fn any_bytes_are_looked_at(mut bytes in prop::collection::vec(any::<u8>(), 0..200), elf in any::<bool>()) {
        if elf && bytes.len() >= 5 {
            bytes[..5].copy_from_slice(b"\x7fELF\x02");
        }
        let folder = Folder::new();
        let file = folder.file("file", &bytes);
        failure(&file, Errno::ENOENT);
        failure(&file, Errno::ENOEXEC);
    }
}
