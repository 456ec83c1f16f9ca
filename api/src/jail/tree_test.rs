use std::os::unix::fs::symlink;

use nix::unistd::geteuid;

use super::*;

#[test]
fn a_failure_leaves_nothing_and_a_success_all() {
    let base = tempfile::tempdir().unwrap();
    let make = |made: &mut Made| {
        let outer = Directory::open(base.path()).unwrap().child("outer", 0o755, made).unwrap();
        outer.new_file("file", 0o400, made).unwrap();
        outer.child("inner", 0o700, made).unwrap()
    };
    let mut made = Made::default();
    make(&mut made).expect_owner(&[geteuid()]).unwrap();
    drop(made);
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);

    let mut made = Made::default();
    make(&mut made);
    made.keep();
    // What was there before is nobody's to remove.
    let mut again = Made::default();
    make(&mut again);
    drop(again);
    let names = fs::read_dir(base.path().join("outer")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["inner"], "a file was replaced, and removed with its jail");
}

#[test]
fn no_link_is_followed() {
    let (base, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(elsewhere.path().join("file"), "untouched").unwrap();
    symlink(elsewhere.path(), base.path().join("link")).unwrap();
    symlink(elsewhere.path().join("file"), base.path().join("file")).unwrap();
    let mut made = Made::default();
    let directory = Directory::open(base.path()).unwrap();
    let error = directory.child("link", 0o755, &mut made).unwrap_err().to_string();
    assert!(error.contains("link`"), "{error}");
    directory.new_file("file", 0o600, &mut made).unwrap_err();
    directory.existing_file("file").unwrap_err();
    drop(made);
    assert_eq!(fs::read_to_string(elsewhere.path().join("file")).unwrap(), "untouched");
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 2, "nothing was made, and nothing removed");
}

#[test]
fn a_directory_that_others_can_change_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let mut made = Made::default();
    let directory = Directory::open(base.path()).unwrap().child("open", 0o777, &mut made).unwrap();
    let error = directory.expect_owner(&[geteuid()]).unwrap_err().to_string();
    assert!(error.contains("mode 777"), "{error}");
    directory.give(geteuid(), nix::unistd::getegid(), 0o755).unwrap();
    directory.expect_owner(&[geteuid()]).unwrap();
    assert!(directory.expect_owner(&[Uid::from_raw(geteuid().as_raw() + 1)]).is_err());
}
