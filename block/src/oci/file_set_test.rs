use std::io::{Seek as _, Write as _};

use tar::EntryType;

use super::*;
use crate::testing::{Archive, Entry};

fn files(archive: Archive) -> Result<FileSet, OciError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&archive.finish()).unwrap();
    file.rewind().unwrap();
    FileSet::archive(Path::new("saved.tar"), file)
}

fn content(files: &FileSet, name: &str) -> Result<Vec<u8>, OciError> {
    let mut data = Vec::new();
    let mut piece = files.open(name)?;
    let bytes = piece.left();
    piece.read_to_end(&mut data).unwrap();
    assert_eq!((bytes, files.has(name)), (data.len() as u64, true));
    Ok(data)
}

#[test]
fn links_lead_from_where_they_are_and_never_out() {
    let files = files(
        Archive::new()
            .symlink("two/layer.tar", "../one/./layer.tar")
            .symlink("three/layer.tar", "/one//layer.tar")
            .hard_link("four.tar", "/one/layer.tar")
            .symlink("five", "one")
            .symlink("six/layer.tar", "../five/../two/layer.tar")
            .file("/one/layer.tar", "content")
            .symlink("lost/layer.tar", "layer.tar")
            .symlink("lost/root.tar", "one/layer.tar")
            .symlink("lost/out.tar", "../../one/layer.tar")
            .symlink("lost/loop.tar", "../lost/loop.tar")
            .hard_link("lost/hard.tar", "../one/layer.tar")
            .symlink("lost/directory", "../one"),
    );
    let files = files.unwrap();
    for name in ["one/layer.tar", "two/layer.tar", "three/layer.tar", "four.tar", "five/layer.tar", "six/layer.tar"] {
        for spelling in [name.to_owned(), format!("/{name}"), format!("./x/..//{name}")] {
            assert_eq!(content(&files, &spelling).unwrap(), b"content", "{spelling}");
        }
    }
    for name in ["lost/root.tar", "lost/out.tar", "lost/loop.tar", "lost/hard.tar", "lost/directory"] {
        let message = content(&files, name).unwrap_err().to_string();
        assert!(message.contains(&format!("`saved.tar/{name}` is a link to `")) && !files.has(name), "{message}");
    }
    let message = content(&files, "lost/layer.tar").unwrap_err().to_string();
    assert!(message.contains("link to `layer.tar`"), "{message}");
    for name in ["nowhere", "one", "one/layer.tar/x", "../one/layer.tar", ""] {
        assert!(matches!(content(&files, name), Err(OciError::Read { .. })), "{name}");
    }
}

#[test]
fn of_files_with_one_name_the_last_counts() {
    let files = files(Archive::new().file("a", "first").file("./a", "last").file("b", "")).unwrap();
    assert_eq!(content(&files, "a").unwrap(), b"last");
    assert_eq!(content(&files, "b").unwrap(), b"");
}

/// GNU tar writes them so when it is told to (`-S`): blobs that are not compressed have holes.
#[test]
fn holes_in_files_read_as_zeros() {
    let entry = Entry { data: b"abcdef".to_vec(), ..Entry::new("a", EntryType::Regular) };
    let entry = entry.pax("GNU.sparse.size", "5000").pax("GNU.sparse.map", "10,2,4000,4");
    let files = files(Archive::new().file("before", [1; 600]).add(entry).file("after", "x")).unwrap();
    let mut expected = vec![0; 5000];
    expected[10..12].copy_from_slice(b"ab");
    expected[4000..4004].copy_from_slice(b"cdef");
    assert_eq!(content(&files, "a").unwrap(), expected);
    assert_eq!(content(&files, "before").unwrap(), [1; 600]);
    assert_eq!(content(&files, "after").unwrap(), b"x");
}

#[test]
fn files_of_directories_are_below_them() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/passwd"), "inside").unwrap();
    fs::write(place.path().join("outside"), "outside").unwrap();
    let files = FileSet::Directory(root);
    for name in ["etc/passwd", "/etc/passwd", "./etc/../etc//passwd"] {
        assert_eq!(content(&files, name).unwrap(), b"inside");
    }
    assert!(!files.has("../outside"));
    let message = files.open("../outside").map(drop).unwrap_err();
    assert!(std::error::Error::source(&message).unwrap().to_string().contains("leaves the image"));
}
