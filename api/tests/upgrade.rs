//! An upgrade finds a layer store that an earlier version has written.

#![allow(clippy::unwrap_used, reason = "an error must fail the test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// The store of version 0.1.0 with the image `app:1`: two layers, a fix-up above them, a flat image. Made with
/// `bellows image import` and `bellows image mount` of that version.
const STORE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/store-0.1.0.tar.gz");
const IMAGE: &str = "sha256:00c505a56bbbae0d41b8215c67e5f5bb7f966b1bf6b885e779c00dd571a324e6";

fn bellows(store: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bellows"));
    command.arg("image").args(arguments).arg("--store").arg(store);
    command.output().unwrap()
}

fn succeed(store: &Path, arguments: &[&str]) -> String {
    let output = bellows(store, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_store_of_the_version_before_is_opened_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let tar = Command::new("tar").arg("-xzf").arg(STORE).arg("-C").arg(directory.path()).status().unwrap();
    assert!(tar.success());
    let store = directory.path().join("store");
    let json = |arguments: &[&str]| serde_json::from_str::<serde_json::Value>(&succeed(&store, arguments)).unwrap();

    let inspected = json(&["inspect", "app:1"]);
    let image = &inspected[0];
    assert_eq!((&image["digest"], &image["names"]), (&IMAGE.into(), &serde_json::json!(["app:1"])));
    assert_eq!(image["config"]["entrypoint"], serde_json::json!(["/bin/tool"]), "{image:#}");
    assert_eq!((image["layers"].as_array().unwrap().len(), image["fixup"].is_string()), (3, true), "{image:#}");
    assert_eq!(succeed(&store, &["verify"]).matches(" ok\n").count(), 3);

    // New data stands beside the old, and none of the old counts as unused.
    let root = directory.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("file"), "new").unwrap();
    succeed(&store, &["import", root.to_str().unwrap(), "--name", "new"]);
    assert_eq!(json(&["gc", "--json"])["layers"], serde_json::json!([]));
    assert_eq!(json(&["ls", "--json"]).as_array().unwrap().len(), 2);
    assert_eq!(succeed(&store, &["rm", "app:1"]), "app:1: image removed\n");
    assert_eq!(json(&["gc", "--json"])["layers"].as_array().unwrap().len(), 3);
}

#[test]
fn a_store_of_a_later_version_is_refused_with_both_formats() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("format"), "bellows layer store 2\n").unwrap();
    let output = bellows(directory.path(), &["ls"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("`bellows layer store 2`") && said.contains("`bellows layer store 1`"), "{said}");
}
