//! `bellows image` as a person types it.

#![allow(clippy::unwrap_used, reason = "an error must fail the test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use bellows_block::Digest;
use bellows_block::testing::{LayoutBuilder, RegistryServer, Tunnel};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn bellows(store: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bellows"));
    command.arg("image").args(arguments).arg("--store").arg(store);
    command
}

fn run(store: &Path, arguments: &[&str]) -> Output {
    bellows(store, arguments).output().unwrap()
}

fn succeed(store: &Path, arguments: &[&str]) -> String {
    let output = run(store, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn fail(store: &Path, arguments: &[&str]) -> (i32, String) {
    let output = run(store, arguments);
    assert!(!output.status.success(), "{arguments:?}");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// A small root file system and an archive of it.
fn root_file_system(directory: &Path) -> (String, String) {
    let (root, archive) = (directory.join("root"), directory.join("root.tar.gz"));
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::write(root.join("bin/sh"), "shell").unwrap();
    let tar = Command::new("tar").arg("-czf").arg(&archive).arg("-C").arg(&root).arg(".").status().unwrap();
    assert!(tar.success());
    (root.to_str().unwrap().to_owned(), archive.to_str().unwrap().to_owned())
}

#[test]
fn import_list_and_verify() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    let (root, archive) = root_file_system(directory.path());
    let digest = succeed(&store, &["import", &root, "--name", "root:1"]).lines().next().unwrap().to_owned();
    succeed(&store, &["import", &archive, "--platform", "linux/arm64/v8"]);
    let listed = succeed(&store, &["ls"]);
    assert!(listed.contains(&format!("{digest} root:1\n")), "{listed}");
    assert_eq!(succeed(&store, &["verify"]).matches(" ok\n").count(), 2);

    let (code, message) = fail(&store, &["import", "/nowhere"]);
    assert!(code == 1 && message.contains("cannot read `/nowhere`"), "{code}: {message}");
    let (code, message) = fail(&store, &["import", &root, "--platform", "linux"]);
    assert!(code == 2 && message.contains("`linux` is not a platform"), "{code}: {message}");
}

#[test]
fn a_reader_may_go_before_all_is_printed() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    let (root, _) = root_file_system(directory.path());
    let digest = succeed(&store, &["import", &root, "--name", "root"]).lines().next().unwrap().to_owned();
    let print = |arguments: &[&str], stdout: Stdio| {
        let output = bellows(&store, arguments).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        let output = output.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for arguments in [
        &["ls"] as &[&str],
        &["ls", "--json"],
        &["inspect"],
        &["stat"],
        &["verify"],
        &["import", &root, "--name", "other"],
        &["rm", "other"],
        &["gc"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(print(arguments, writer.into()), (Some(141), String::new()), "{arguments:?}");
    }
    // Their work is complete.
    assert!(succeed(&store, &["ls"]).starts_with(&format!("{digest} root\n")));
    let (code, said) = print(&["ls"], fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into());
    assert!(code == Some(1) && said.contains("cannot write to standard output: No space left"), "{code:?}: {said}");
}

/// Pushes an image of the archive as `team/app:1`; its digest.
fn push(server: &RegistryServer, archive: &str) -> String {
    let mut layout = LayoutBuilder::new();
    layout.blob_layer(
        &fs::read(archive).unwrap(),
        Digest::of(&Command::new("gzip").arg("-dc").arg(archive).output().unwrap().stdout),
        "application/vnd.oci.image.layer.v1.tar+gzip",
    );
    let manifest = layout.manifest("amd64");
    server.push(&layout, "team/app", &[(&manifest, "1")]);
    manifest["digest"].as_str().unwrap().to_owned()
}

/// A registry elsewhere must speak TLS, with a certificate that this machine trusts.
#[test]
fn import_over_tls() {
    const NAME: &str = "registry.test";
    let server = RegistryServer::start();
    let directory = tempfile::tempdir().unwrap();
    let (_, archive) = root_file_system(directory.path());
    let digest = push(&server, &archive);
    let import = |name: &str, proxy: &Tunnel, certificates: &Path| {
        let source = format!("docker://{name}/team/app:1");
        let store = directory.path().join("store");
        let mut command = bellows(&store, &["import", &source, "--platform", "linux/amd64"]);
        command.env("HTTPS_PROXY", format!("http://{}", proxy.address())).env("SSL_CERT_FILE", certificates);
        command.env_remove("NO_PROXY").env_remove("no_proxy").env_remove("SSL_CERT_DIR");
        let output = command.output().unwrap();
        (output.status.code(), [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat())
    };
    let (secure, authority) = server.over_tls(NAME);
    let to_secure = Tunnel::to(secure.address());
    let (code, printed) = import(NAME, &to_secure, &authority);
    assert!(code == Some(0) && printed.starts_with(&digest), "{printed}");
    assert!(to_secure.asked().iter().all(|asked| asked == &format!("{NAME}:443")), "{:?}", to_secure.asked());
    assert!(!to_secure.asked().is_empty());

    let (_stranger, other_authority) = server.over_tls("stranger.test");
    for (name, proxy, certificates, said) in [
        (NAME, &to_secure, &other_authority, "certificate"),
        ("other.test", &to_secure, &authority, "certificate"),
        (NAME, &Tunnel::to(server.address()), &authority, NAME),
    ] {
        let (code, message) = import(name, proxy, certificates);
        assert!(code == Some(1) && message.contains(name) && message.contains(said), "{message}");
    }
}

#[test]
fn import_from_a_registry() {
    let server = RegistryServer::with_password();
    let directory = tempfile::tempdir().unwrap();
    let (_, archive) = root_file_system(directory.path());
    let digest = push(&server, &archive);
    let store = directory.path().join("store");
    let source = format!("docker://{}/team/app:1", server.address());
    let import = |arguments: &[&str], auth_file: &str| {
        let mut command = bellows(&store, &[&["import", &source, "--platform", "linux/amd64"], arguments].concat());
        let output = command.env("REGISTRY_AUTH_FILE", directory.path().join(auth_file)).output().unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap(),
        )
    };
    fs::write(directory.path().join("none.json"), "{}").unwrap();
    let (code, message) = import(&[], "none.json");
    assert!(code == 1 && message.contains(&source[9..24]) && message.contains("a user and a password"), "{message}");
    let (user, password) = RegistryServer::USER;
    let auths = serde_json::json!({"auths": {server.address(): {"username": user, "password": password}}});
    fs::write(directory.path().join("auth.json"), auths.to_string()).unwrap();
    let (code, printed) = import(&["--name", "app"], "auth.json");
    assert!(code == 0 && printed.starts_with(&digest), "{printed}");
    assert!(succeed(&store, &["ls"]).contains(" app\n"));

    let (code, message) = import(&["--reference", "1"], "auth.json");
    assert!(code == 2 && message.contains("docker://NAME:1"), "{message}");
    let (code, message) = fail(&store, &["import", "docker://a:b:c"]);
    assert!(code == 2 && message.contains("`a:b:c` does not name an image in a registry"), "{message}");
    let (code, message) = fail(&store, &["import", &archive, "--plain-http"]);
    assert!(code == 2 && message.contains("--plain-http is for registries"), "{message}");
}

#[test]
fn an_interrupted_import_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    let root = directory.path().join("root");
    fs::create_dir(&root).unwrap();
    // Large enough that the import is never done in time.
    let file = fs::File::create(root.join("large")).unwrap();
    nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, 4 << 30).unwrap();
    let arguments = ["import", root.to_str().unwrap()];
    let mut child = bellows(&store, &arguments).stderr(Stdio::piped()).spawn().unwrap();
    let limit = Instant::now() + Duration::from_secs(60);
    let files = |name: &str| fs::read_dir(store.join(name)).map_or(0, Iterator::count);
    // While the store itself is being made there is a file too.
    while files("tmp") == 0 || !store.join("format").exists() {
        assert!(Instant::now() < limit && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(10));
    }
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(["tmp", "layers", "images"].map(files), [0; 3]);
}

#[test]
fn inspect_stat_remove_and_collect() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    let (root, _) = root_file_system(directory.path());
    let digest = succeed(&store, &["import", &root, "--name", "root:1"]).lines().next().unwrap().to_owned();
    succeed(&store, &["import", &root, "--name", "root:2"]);
    let json = |arguments: &[&str]| serde_json::from_str::<serde_json::Value>(&succeed(&store, arguments)).unwrap();

    let inspected = json(&["inspect", "root:1"]);
    let image = &inspected[0];
    assert_eq!(
        (&image["digest"], &image["names"]),
        (&digest.as_str().into(), &serde_json::json!(["root:1", "root:2"]))
    );
    assert!(image["config"].is_object());
    let layer = &image["layers"][0];
    let path = layer["path"].as_str().unwrap();
    assert_eq!(fs::metadata(path).unwrap().len(), layer["bytes"]);
    assert!(layer.get("verity").is_some());

    // It was just written, so all of it is in memory; a holder of a lock counts as a user.
    let file = fs::File::open(path).unwrap();
    file.lock_shared().unwrap();
    let usage = &json(&["stat", "root:2", "--json"])[0]["layers"][0];
    assert_eq!(usage["resident_bytes"], usage["bytes"]);
    assert_eq!(usage["users"], serde_json::json!([std::process::id()]));
    let text = succeed(&store, &["stat"]);
    assert!(text.contains(&format!("VMs {}", std::process::id())), "{text}");

    assert_eq!(succeed(&store, &["rm", "root:2"]), "root:2: name removed\n");
    assert_eq!(succeed(&store, &["rm", &digest]), format!("{digest}: image removed\n"));
    let (code, message) = fail(&store, &["rm", "root:1"]);
    assert!(code == 1 && message.contains("`root:1` is not in the store"), "{message}");
    assert!(succeed(&store, &["gc"]).contains("is in use\n0 bytes freed"));
    drop(file);
    let collected = json(&["gc", "--json"]);
    assert_eq!((&collected["bytes"], &collected["layers"][0]), (&layer["bytes"], &layer["digest"]));
    assert_eq!(fs::read_dir(store.join("layers")).unwrap().count(), 0);
}

/// Bytes of a file that is large beside everything else.
const LARGE: usize = 5 << 20;

#[test]
fn mount_and_umount() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    let (root, _) = root_file_system(directory.path());
    fs::write(Path::new(&root).join("large"), vec![7; LARGE]).unwrap();
    fs::hard_link(Path::new(&root).join("large"), Path::new(&root).join("link")).unwrap();
    succeed(&store, &["import", &root, "--name", "root"]);
    let json = |arguments: &[&str]| serde_json::from_str::<serde_json::Value>(&succeed(&store, arguments)).unwrap();
    assert_eq!(json(&["stat", "root", "--json"])[0]["mounts"], serde_json::json!([]));
    let point = directory.path().join("mount");
    fs::create_dir(&point).unwrap();
    let point = point.to_str().unwrap();
    let (code, message) = fail(&store, &["mount", "root", "/nowhere/at/all"]);
    assert!(code == 1 && (message.contains("`mount` failed") || message.contains("`losetup` failed")), "{message}");
    if nix::unistd::geteuid().is_root() && fs::read_to_string("/proc/filesystems").unwrap().contains("erofs") {
        let mounted = json(&["mount", "root", point, "--json"]);
        assert_eq!(mounted["directory"], point);
        // The mount's own pages: metadata, then the files read through it.
        let first = mounted["cached_bytes"].as_u64().unwrap();
        assert!((4096..1 << 20).contains(&first), "{mounted}");
        assert_eq!(fs::read(Path::new(point).join("bin/sh")).unwrap(), b"shell");
        assert_eq!(fs::read(Path::new(point).join("large")).unwrap(), vec![7; LARGE]);
        let after = json(&["stat", "root", "--json"]);
        let mount = &after[0]["mounts"][0];
        assert_eq!(mount["directory"], point);
        let own = mount["cached_bytes"].as_u64().unwrap();
        assert!((LARGE as u64 + first..LARGE as u64 + (2 << 20)).contains(&own), "{first}, then {own}");
        let text = succeed(&store, &["stat"]);
        assert!(text.contains(&format!("  mounted on {point}, which caches {own} bytes of its own")), "{text}");
        // Beside that the layer is in memory once, for all users, and came from the disk once.
        let layer = &after[0]["layers"][0];
        assert!(layer["resident_bytes"].as_u64().unwrap() >= LARGE as u64, "{layer}");
        // Two names of one file count once, and mounts below do not belong to the image.
        let bound = Path::new(point).join("bin");
        let bind = Command::new("mount").arg("--bind").arg(&root).arg(&bound).status().unwrap();
        assert!(bind.success());
        let with_other = json(&["stat", "root", "--json"])[0]["mounts"][0]["cached_bytes"].as_u64().unwrap();
        assert!(Command::new("umount").arg(&bound).status().unwrap().success());
        assert!(with_other <= own, "{with_other} and {own}");
        assert!(fs::write(Path::new(point).join("new"), "").is_err());
        let umount = Command::new(env!("CARGO_BIN_EXE_bellows")).args(["image", "umount", point]).status().unwrap();
        assert!(umount.success());
        assert!(!Path::new(point).join("bin").exists());
    }
    // The kernel's list of loop devices names their files.
    let devices = || Command::new("losetup").arg("--all").output().unwrap().stdout;
    let held = || String::from_utf8_lossy(&devices()).contains(store.to_str().unwrap());
    let free = (0..100).any(|_| {
        !held() || {
            std::thread::sleep(Duration::from_millis(20));
            false
        }
    });
    assert!(free, "{}", String::from_utf8_lossy(&devices()));
}
