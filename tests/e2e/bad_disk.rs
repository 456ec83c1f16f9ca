//! A disk of the host with a sector that cannot be read.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A disk with a file system that is mounted, until this is dropped. Needs root, the modules `loop` and `dm_mod`, and the
/// programs `losetup` and `dmsetup`, all of which the lab has.
pub struct BadDisk {
    file: PathBuf,
    device: String,
    name: String,
    sectors: u64,
    folder: PathBuf,
}

const SECTOR: u64 = 512;
const PAGE: usize = 4096;
const SECTORS_PER_PAGE: u64 = PAGE as u64 / SECTOR;

impl BadDisk {
    /// A good disk of `mib` MiB so far, in `directory`.
    pub fn new(directory: &Path, mib: u64) -> Self {
        let (file, folder) = (directory.join("disk"), directory.join("mounted"));
        fs::create_dir(&folder).unwrap();
        File::create(&file).unwrap().set_len(mib << 20).unwrap();
        // Blocks of a page, so that each page of a file is one of the disk.
        run("mkfs.ext4", &["-q", "-F", "-b", "4096", path(&file)]);
        let device = run("losetup", &["-f"]).trim().to_owned();
        run("losetup", &[&device, path(&file)]);
        let name = format!("bellows-{}", std::process::id());
        let disk = Self { file, device, name, sectors: (mib << 20) / SECTOR, folder };
        disk.dmsetup(&["create", &disk.name], &disk.good(0..disk.sectors));
        disk.mount("rw");
        disk
    }

    /// Where it is mounted.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the pages that hold `content`, and no others, unreadable; nothing of the disk is in memory then.
    pub fn spoil(&self, content: &[u8; PAGE]) {
        run("umount", &[path(&self.folder)]);
        let disk = File::open(&self.file).unwrap();
        let mut page = [0; PAGE];
        let mut table = String::new();
        let mut good = 0;
        for sector in (0..self.sectors).step_by(SECTORS_PER_PAGE as usize) {
            disk.read_exact_at(&mut page, sector * SECTOR).unwrap();
            if page == *content {
                table += &format!("{}{sector} {SECTORS_PER_PAGE} error\n", self.good(good..sector));
                good = sector + SECTORS_PER_PAGE;
            }
        }
        assert!(good > 0, "the disk has no such page");
        table += &self.good(good..self.sectors);
        self.dmsetup(&["reload", &self.name], &table);
        self.dmsetup(&["resume", &self.name], "");
        self.mount("ro");
    }

    fn good(&self, sectors: std::ops::Range<u64>) -> String {
        format!("{0} {1} linear {2} {0}\n", sectors.start, sectors.end - sectors.start, self.device)
    }

    fn mount(&self, how: &str) {
        run("mount", &["-t", "ext4", "-o", how, &format!("/dev/mapper/{}", self.name), path(&self.folder)]);
    }

    fn dmsetup(&self, arguments: &[&str], table: &str) {
        let mut command = Command::new("dmsetup");
        // It makes the device's node itself: the lab has no udev.
        command.args(arguments).env("DM_DISABLE_UDEV", "1").stdin(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("dmsetup: {error}"));
        child.stdin.take().unwrap().write_all(table.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "dmsetup {arguments:?}: {table}");
    }
}

impl Drop for BadDisk {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What uses the disk may still be there, and says more.
            return;
        }
        run("umount", &[path(&self.folder)]);
        self.dmsetup(&["remove", &self.name], "");
        run("losetup", &["-d", &self.device]);
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
