//! The API does what its OpenAPI document says: schemathesis holds a server that has not booted against it, and one whose VM runs.
//! The program around it is in `tests/clients/schemathesis`.

use std::path::Path;
use std::process::Command;

use bellows_block::oci::{OciLayout, Platform};
use bellows_block::{ImportOptions, Store};
use serde_json::json;

use crate::fixture::artefact;
use crate::network::HostTap;

const IMAGE: &str = "functions/demo:1";
/// What schemathesis makes up for each request, beside a case for each rule of the document.
const EXAMPLES: u32 = 20;

#[test]
fn a_server_does_what_its_document_says() {
    let store = artefact("BELLOWS_IMAGE").with_file_name("e2e-contract-store");
    let layout = OciLayout::open(artefact("BELLOWS_IMAGE")).unwrap();
    let image = layout.image(&Platform::host(), None).unwrap();
    Store::open(&store).unwrap().import(&image, Some(&IMAGE.parse().unwrap()), &ImportOptions::default()).unwrap();
    let (folder, tap) = (tempfile::tempdir().unwrap(), HostTap::new("blc"));
    let files = json!({
        "folder": folder.path(),
        "program": artefact("BELLOWS_BINARY"),
        "kernel": artefact("BELLOWS_KERNEL"),
        "initramfs": artefact("BELLOWS_INITRAMFS"),
        "store": store,
        "image": IMAGE,
        "tap": tap.name(),
        "examples": EXAMPLES,
    });
    let program: &Path = &artefact("BELLOWS_CONTRACT").join("contract.py");
    let mut command = Command::new("/usr/bin/python3");
    // It says what it does as it does it.
    command.args(["-u".as_ref(), program.as_os_str()]).arg(files.to_string());
    let status = command.env("PYTHONPATH", artefact("BELLOWS_SCHEMATHESIS")).env("COLUMNS", "200").status().unwrap();
    assert!(status.success(), "{status}");
}
