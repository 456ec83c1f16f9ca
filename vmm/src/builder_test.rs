use super::*;

#[test]
fn a_bad_configuration_is_refused_before_anything_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let uds_path = directory.path().join("vsock");
    let builder = VmBuilder::new("vmlinux", ByteSize::mib(1))
        .vsock(VsockConfig { uds_path: Some(uds_path.clone()), ..Default::default() });
    let error = builder.boot().err().unwrap();
    assert!(error.to_string().contains("`memory` is 1 MiB"), "{error}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_private_socket_lies_in_a_directory_that_is_removed() {
    let (path, directory) = socket_path(None).unwrap();
    let parent = path.parent().unwrap().to_owned();
    assert!(parent.is_dir());
    drop(directory);
    assert!(!parent.exists());
    assert_eq!(socket_path(Some(Path::new("/x/v"))).unwrap().0, Path::new("/x/v"));
}

#[test]
fn an_error_names_the_serial_file_that_cannot_be_written() {
    let error = BuildError::SerialFile { path: "/nowhere/log".into(), source: io::ErrorKind::NotFound.into() };
    assert!(error.to_string().contains("/nowhere/log"), "{error}");
}
