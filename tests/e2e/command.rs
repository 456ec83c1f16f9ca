//! The `bellows` command as a user types it, and its errors.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::archives::{cut_short, import, tar};
use crate::fixture::artefact;

/// `bellows run` with our kernel and the common store of all tests; options follow, then an [`image`] and a command.
pub fn bellows_run() -> Command {
    bellows_run_in(&store())
}

/// The same with a store of its own.
pub fn bellows_run_in(store: &Path) -> Command {
    with_guest("run", store)
}

/// The demo's image, as an argument.
pub fn image() -> PathBuf {
    artefact("BELLOWS_IMAGE")
}

fn store() -> PathBuf {
    artefact("BELLOWS_IMAGE").with_file_name("e2e-store")
}

fn with_guest(subcommand: &str, store: &Path) -> Command {
    let mut command = Command::new(artefact("BELLOWS_BINARY"));
    command.args([subcommand, "--timeout=300", "--base=512M", "--kernel"]).arg(artefact("BELLOWS_KERNEL"));
    command.arg("--initramfs").arg(artefact("BELLOWS_INITRAMFS")).arg("--store").arg(store);
    command
}

/// Runs `true` in `image`, with a store of its own where `options` name none.
fn run(store: &Path, options: &[&str], image: &str) -> Output {
    let mut command = Command::new(artefact("BELLOWS_BINARY"));
    command.arg("run");
    if !options.contains(&"--store") {
        command.arg("--store").arg(store);
    }
    command.args(options).args([image, "true"]).env("TMPDIR", store.parent().unwrap());
    command.output().unwrap()
}

#[test]
fn a_commands_output_and_exit_code_come_through() {
    let mut command = bellows_run();
    command.arg("--memory=256M").arg(image());
    let output = command.args(["/bin/sh", "-c", "echo out; echo err >&2; exit 7"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(7), &b"out\n"[..]), "{text}");
    assert!(text.contains("err\n"), "{text}");
    let read_sets = std::fs::read_dir(store().join("profiles")).map_or(0, Iterator::count);
    assert_eq!(read_sets, 0, "a failed run leaves no read set");
}

/// The environment names kernel, initramfs and store; the run gets only the image and the command.
#[test]
fn an_image_and_a_command_are_enough() {
    let directory = tempfile::tempdir_in(artefact("BELLOWS_IMAGE").parent().unwrap()).unwrap();
    let mut command = Command::new(artefact("BELLOWS_BINARY"));
    command.env("BELLOWS_KERNEL", artefact("BELLOWS_KERNEL")).env("BELLOWS_INITRAMFS", artefact("BELLOWS_INITRAMFS"));
    command.env("XDG_DATA_HOME", directory.path());
    // An emulated CPU needs more time; the report shows what the instance had.
    command.args(["run", "--timeout=300", "--json"]).arg(image());
    let output = command.args(["/bin/sh", "-c", "echo hello"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("hello\n"), "{text}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["exit_code"], &report["partition"]["bytes"]), (&0.into(), &(1_u64 << 30).into()), "{report}");
    assert!(directory.path().join("bellows/store/images").exists());
}

#[test]
fn the_former_command_line_is_refused_with_the_new_one() {
    let mut command = Command::new(artefact("BELLOWS_BINARY"));
    command.args(["run", "--memory=512M", "--partition=1G", "--image"]).arg(image()).args(["--", "true"]);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(125) && text.contains("IMAGE [CMD]") && text.contains("--base"), "{text}");
}

/// A killed monitor cannot clean up: its VM and its listening sockets still go away.
#[test]
fn a_killed_monitor_leaves_only_files() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = bellows_run();
    command.env("TMPDIR", directory.path()).stdout(Stdio::piped()).arg("--memory=256M").arg(image());
    let mut monitor = command.args(["/bin/sh", "-c", "echo up; exec sleep 3600"]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(monitor.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    assert_ne!(sockets(directory.path()), 0, "a running VM listens");
    monitor.kill().unwrap();
    monitor.wait().unwrap();
    assert_eq!(sockets(directory.path()), 0);
    assert!(!is_parent_of_any(monitor.id()), "a process stays");
}

/// The demonstration's own path, with less memory.
#[test]
fn the_demonstration_reports_what_it_should() {
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("report.json");
    let mut command = with_guest("demo", &store());
    command.arg("--image").arg(image());
    command.args(["--partition=256M", "--mib=64", "--hold=20", "--kernel-parameter=init_on_alloc=0", "--report"]);
    let output = command.arg(&report).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    assert_eq!(report["vms"].as_array().map(Vec::len), Some(2), "{report:#}");
    assert_eq!(report["layers"].as_array().map(Vec::len), Some(3), "{report:#}");
    for vm in report["vms"].as_array().unwrap() {
        for instance in vm["instances"].as_array().unwrap() {
            assert_eq!((&instance["exit_code"], &instance["output_ok"]), (&0.into(), &true.into()), "{report:#}");
        }
        for partition in vm["partitions"].as_array().unwrap() {
            assert_eq!(partition["migrated_pages"], 0, "{report:#}");
            assert_eq!(
                (&partition["mode"], &partition["zeroed_pages"]),
                (&"extension".into(), &0.into()),
                "{report:#}"
            );
            assert!(partition["discarded_bytes"].as_u64().unwrap() >= 64 << 20, "{report:#}");
        }
    }
}

/// Each wrong input gives an error that names the value, exit code 125, and leaves no process or socket behind.
#[test]
fn wrong_input_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let no_kernel = file("no-kernel", &[0x5a; 9000]);
    let config = file("config.json", br#"{ "kernel": "k", "memory": "512M", "colour": "red" }"#);
    let [kernel, image] = ["BELLOWS_KERNEL", "BELLOWS_IMAGE"].map(|name| artefact(name).display().to_string());
    let missing = directory.path().join("missing").display().to_string();
    let damaged = damaged_layout(directory.path()).display().to_string();
    let (store, truncated) = truncated_layer(directory.path());
    let cases: &[(&[&str], &str, &str)] = &[
        (&["--kernel", &no_kernel], &image, "no-kernel"),
        (&["--kernel", &missing], &image, "missing"),
        (&["--kernel", &kernel, "--base", "0"], &image, "--base"),
        (&["--kernel", &kernel, "--base", "900T"], &image, "900"),
        (&["--kernel", &kernel, "--base", "12Q"], &image, "12Q"),
        (&["--kernel", &kernel, "--vcpus", "0"], &image, "vcpus"),
        (&["--kernel", &kernel, "--memory", "12Q"], &image, "12Q"),
        (&["--kernel", &kernel, "--initramfs", &missing], &image, "missing"),
        (&["--kernel", &kernel], &missing, "missing"),
        (&["--kernel", &kernel], &damaged, "sha256:"),
        (&["--kernel", &kernel, "--store", &store], &truncated, "1024 bytes"),
        (&["--kernel", &kernel, "--memory", "200T"], &image, "200"),
        (&["--kernel", &kernel, "--base", "3G", "--memory", "900T"], &image, "900"),
        (&["--config", &config], &image, "colour"),
        (&["--config", &missing], &image, "missing"),
    ];
    for (arguments, image, named) in cases {
        let output = run(&directory.path().join("store"), arguments, image);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{arguments:?}: {text}");
        assert!(text.contains(named), "{arguments:?} does not name {named}: {text}");
        assert!(!text.contains("panicked"), "{arguments:?}: {text}");
    }
    assert_eq!(sockets(directory.path()), 0, "a socket stays");
}

/// The demo's image with a changed manifest, whose digest does not match the index.
fn damaged_layout(directory: &Path) -> PathBuf {
    let (from, to) = (artefact("BELLOWS_IMAGE"), directory.join("damaged"));
    fs::create_dir_all(to.join("blobs/sha256")).unwrap();
    for name in ["oci-layout", "index.json"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
    let index: serde_json::Value = serde_json::from_slice(&fs::read(from.join("index.json")).unwrap()).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let mut manifest = fs::read(from.join("blobs/sha256").join(digest)).unwrap();
    let last = manifest.len() - 1;
    manifest[last] = b' ';
    fs::write(to.join("blobs/sha256").join(digest), manifest).unwrap();
    to
}

/// A store with an image whose layer was truncated after the import, and the image's name.
fn truncated_layer(directory: &Path) -> (String, String) {
    let directory = directory.join("truncated");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("file"), [1; 9000]).unwrap();
    let archive = directory.join("file.tar");
    tar(Command::new("tar").args(["-c", "-f"]).arg(&archive).arg("file"), &directory);
    let imported = import(&directory, &[archive]);
    cut_short(&imported.config().layers[0].path, 1024);
    let images = fs::read_dir(directory.join("store/images")).unwrap();
    let names = images.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned());
    (directory.join("store").display().to_string(), names.last().unwrap())
}

/// Unix sockets bound below a directory.
fn sockets(directory: &Path) -> usize {
    let below = directory.to_str().unwrap();
    fs::read_to_string("/proc/net/unix").unwrap().lines().filter(|line| line.contains(below)).count()
}

/// Whether any process has this one as its parent.
fn is_parent_of_any(id: u32) -> bool {
    let parent = format!("PPid:\t{id}");
    let statuses = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path().join("status"));
    statuses.filter_map(|path| fs::read_to_string(path).ok()).any(|status| status.lines().any(|line| line == parent))
}
