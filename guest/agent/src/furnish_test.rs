//! Needs root, to change a thread's root directory.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use bellows_protocol::network::InterfaceSetup;

use super::*;

const NAME: &str = "f-1";

/// A root file system, and files outside that links must not reach.
struct Image {
    _folder: tempfile::TempDir,
    root: PathBuf,
    outside: PathBuf,
}

impl Image {
    fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "entering a root file system needs root");
        let folder = tempfile::tempdir().unwrap();
        let (root, outside) = (folder.path().join("root"), folder.path().join("outside"));
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        Self { _folder: folder, root, outside }
    }

    fn write(&self, path: &str, text: &str) -> &Self {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn link(&self, path: &str, target: impl AsRef<Path>) -> &Self {
        symlink(target, self.root.join(path)).unwrap();
        self
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap()
    }

    fn furnish(&self) {
        self.furnish_at("/").unwrap();
    }

    fn furnish_at(&self, working_directory: &str) -> Result<()> {
        furnish(&self.root, NAME, working_directory, None)
    }

    fn look_up(&self, user: &str) -> Result<Credentials> {
        credentials(&self.root, &user.parse().unwrap())
    }
}

#[test]
fn an_image_without_files_is_given_them() {
    let image = Image::new();
    fs::remove_dir(image.root.join("etc")).unwrap();
    image.furnish();
    let hosts = image.read("etc/hosts");
    for line in ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback", "127.0.0.1\tf-1"] {
        assert!(hosts.lines().any(|found| found == line), "{hosts}");
    }
    assert_eq!(image.read("etc/hostname"), "f-1\n");
    assert!(image.read("etc/resolv.conf").contains("nameserver 127.0.0.1\n"));
    assert_eq!(fs::read_link(image.root.join("etc/mtab")).unwrap(), Path::new("/proc/mounts"));
    let metadata = fs::metadata(image.root.join("etc/hosts")).unwrap();
    assert_eq!((metadata.uid(), metadata.permissions().mode() & 0o7777), (0, 0o644));
}

/// Of an instance that shares the VM's network.
#[test]
fn an_images_own_network_goes() {
    let image = Image::new();
    image.write("etc/hosts", "10.0.0.1\tdb f-1\n").link("etc/resolv.conf", "/run/systemd/resolv");
    image.write("run/systemd/resolv", "nameserver 10.9.9.9\n");
    let setup = |servers: &[&str]| InterfaceSetup {
        hardware_address: [2, 0, 0, 0, 0, 1],
        name: None,
        addresses: vec!["172.16.0.2/30".parse().unwrap()],
        gateways: Vec::new(),
        name_servers: servers.iter().map(|server| server.parse().unwrap()).collect(),
        search_domains: Vec::new(),
    };
    furnish(&image.root, NAME, "/", Some(&Resolver::of(&[setup(&["172.16.0.1"])]))).unwrap();
    assert_eq!(image.read("etc/resolv.conf"), "nameserver 172.16.0.1\n");
    assert_eq!(image.read("run/systemd/resolv"), "nameserver 10.9.9.9\n");
    let hosts = image.read("etc/hosts");
    assert!(hosts.contains("127.0.0.1\tlocalhost\n") && hosts.ends_with("\n172.16.0.2\tf-1\n"), "{hosts}");

    // Without a name server the image's own stay.
    image.write("etc/resolv.conf", "nameserver 10.9.9.9\n");
    furnish(&image.root, NAME, "/", Some(&Resolver::of(&[setup(&[])]))).unwrap();
    assert_eq!(image.read("etc/resolv.conf"), "nameserver 10.9.9.9\n");
    assert!(image.read("etc/hosts").ends_with("\n172.16.0.2\tf-1\n"));
}

#[test]
fn the_images_own_content_stays() {
    let image = Image::new();
    let hosts = "# localhost f-1\n\n::1 localhost\n10.0.0.1\tdb f-1\n";
    image.write("etc/hosts", hosts).write("etc/mtab", "");
    image.write("store/resolv", "search here").link("etc/resolv.conf", "/store/resolv");
    image.furnish();
    assert_eq!(image.read("etc/hosts"), hosts);
    assert_eq!(image.read("store/resolv"), "search here");
    assert_eq!(image.read("etc/mtab"), "");

    let image = Image::new();
    fs::create_dir(image.root.join("etc/resolv.conf")).unwrap();
    image.furnish();
    assert!(image.root.join("etc/resolv.conf").is_dir());
}

#[test]
fn names_that_the_images_hosts_lack_are_added() {
    for (hosts, added) in [
        ("# localhost f-1\n10.0.0.1 db", "\n127.0.0.1\tlocalhost\n127.0.0.1\tf-1\n"),
        ("127.0.0.1 localhost #f-1\n", "\n127.0.0.1\tf-1\n"),
        ("10.0.0.2 f-1 f-12\nlocalhost f-2\n", "\n127.0.0.1\tlocalhost\n"),
    ] {
        let image = Image::new();
        image.write("etc/hosts", hosts).furnish();
        assert_eq!(image.read("etc/hosts"), format!("{hosts}{added}"));
    }
}

/// It is the name of the machine that made the image.
#[test]
fn the_images_host_name_is_replaced() {
    let image = Image::new();
    image.write("store/name", "builder").link("etc/hostname", "/store/name").furnish();
    assert_eq!((image.read("etc/hostname"), image.read("store/name")), ("f-1\n".into(), "builder".into()));
}

#[test]
fn empty_files_and_dangling_links_are_replaced() {
    let image = Image::new();
    image.write("etc/hosts", "").write("etc/hostname", "# none yet\n \n");
    image.link("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf");
    image.furnish();
    assert!(image.read("etc/hosts").contains("localhost"));
    assert_eq!(image.read("etc/hostname"), "f-1\n");
    assert!(image.root.join("etc/resolv.conf").symlink_metadata().unwrap().is_file());
    assert!(!image.root.join("run").exists());
}

#[test]
fn no_link_leads_out() {
    let image = Image::new();
    fs::write(image.outside.join("passwd"), "evil:x:0:0::/:\n").unwrap();
    fs::remove_dir(image.root.join("etc")).unwrap();
    let outside = image.outside.clone();
    image.write("accounts/passwd", "app:x:5:6::/app:\n");
    image.link("etc", "/../../accounts").link("accounts/hosts", outside.join("hosts"));
    image.link("accounts/group", "../../../../../outside/passwd").link("srv", &outside);
    image.furnish();
    let found = image.look_up("app").unwrap();
    assert_eq!((found.uid, &found.groups[..]), (5, &[6][..]));
    assert!(matches!(image.look_up("evil"), Err(AgentError::Account(_))));
    assert!(image.read("accounts/hosts").contains(NAME));
    // A dangling link cannot become a directory.
    assert!(image.furnish_at("/srv/app").is_err());
    let mut left: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["passwd"]);
}

#[test]
fn a_working_directory_is_made_for_root() {
    let image = Image::new();
    image.write("real/x", "").link("data", "/real").write("file", "");
    image.furnish_at("/not/there/yet").unwrap();
    let metadata = fs::metadata(image.root.join("not/there/yet")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.permissions().mode() & 0o7777), (0, 0, 0o755));
    image.furnish_at("/data/../data/app").unwrap();
    assert!(image.root.join("real/app").is_dir());
    image.furnish_at("/data").unwrap();
    let error = image.furnish_at("/file/below").unwrap_err();
    assert!(error.to_string().contains("working directory") && error.to_string().contains("/file/below"), "{error}");
    assert!(image.furnish_at("/file").is_err());
}

#[test]
fn accounts_are_read_from_bounded_regular_files() {
    let image = Image::new();
    nix::unistd::mkfifo(&image.root.join("etc/passwd"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let error = image.look_up("").unwrap_err();
    assert!(error.to_string().contains("/etc/passwd"), "{error}");
    fs::remove_file(image.root.join("etc/passwd")).unwrap();
    let file = fs::File::create(image.root.join("etc/group")).unwrap();
    file.set_len(MAX_ACCOUNTS).unwrap();
    image.look_up("").unwrap();
    file.set_len(MAX_ACCOUNTS + 1).unwrap();
    let error = image.look_up("").unwrap_err();
    assert!(error.to_string().contains("/etc/group"), "{error}");
}
