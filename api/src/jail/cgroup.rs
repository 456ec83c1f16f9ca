//! The monitor's control group (version 2, Documentation/admin-guide/cgroup-v2.rst).

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::error::{JailError, system};
use super::plan::CgroupPlan;
use super::tree::Directory;
use super::undo::Made;

const MOUNTS: &str = "/proc/self/mounts";
const MEMBERSHIP: &str = "/proc/self/cgroup";
/// The processes of a group; whoever writes 0 there joins it.
const PROCESSES: &str = "cgroup.procs";
const MODE: u32 = 0o755;

/// Makes the group, sets its values, and joins it; or joins one that is there.
///
/// # Errors
/// There are no such groups, a controller is missing, or the system refused.
pub(super) fn enter(plan: &CgroupPlan, made: &mut Made) -> Result<(), JailError> {
    let mounts = fs::read_to_string(MOUNTS).map_err(system("read", MOUNTS))?;
    let mount = mount_point(&mounts).ok_or(JailError::NoCgroups)?;
    let top = Directory::open(&mount)?;
    let Some(own) = &plan.own else {
        let existing = plan.parents.iter().fold(mount.clone(), |path, name| path.join(name));
        // As Firecracker's jailer has it: without values, and without the group, the process stays where it is.
        return if existing.is_dir() { join(&Directory::open(&existing)?, &mount, made) } else { Ok(()) };
    };
    let controllers = controllers(&plan.values);
    check(&top, &controllers)?;
    let mut group = top;
    for name in plan.parents.iter().chain([own]) {
        for controller in &controllers {
            write(&group, "cgroup.subtree_control", &format!("+{controller}"))?;
        }
        group = group.child(name, MODE, made)?;
    }
    for (file, value) in &plan.values {
        write(&group, file, value)?;
    }
    join(&group, &mount, made)
}

fn join(group: &Directory, mount: &Path, made: &mut Made) -> Result<(), JailError> {
    let text = fs::read_to_string(MEMBERSHIP).map_err(system("read", MEMBERSHIP))?;
    let before = own_group(&text).map(|path| Directory::open(&mount.join(path)));
    let processes = group.existing_file(PROCESSES)?;
    if let Some(before) = before {
        made.left(before?.existing_file(PROCESSES)?);
    }
    (&processes).write_all(b"0").map_err(system("join the control group", group.path()))
}

fn write(group: &Directory, file: &str, value: &str) -> Result<(), JailError> {
    group.existing_file(file)?.write_all(value.as_bytes()).map_err(system("set", group.path().join(file)))
}

fn check(top: &Directory, controllers: &[&str]) -> Result<(), JailError> {
    let file = top.path().join("cgroup.controllers");
    let available = fs::read_to_string(&file).map_err(system("read", &file))?;
    let missing = controllers.iter().find(|name| !available.split_whitespace().any(|have| have == **name));
    missing.map_or(Ok(()), |name| {
        Err(JailError::Controller { controller: (*name).to_owned(), available: available.trim().to_owned() })
    })
}

/// The controllers of the files `memory.max` and the like, each once.
fn controllers(values: &[(String, String)]) -> Vec<&str> {
    let mut all: Vec<&str> = values.iter().filter_map(|(file, _)| Some(file.split_once('.')?.0)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn mount_point(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| point.into())
    })
}

/// The group that the process is in, relative to the root of all.
fn own_group(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_where_they_are_mounted() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mount_point(mounts), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point("proc /proc proc rw 0 0\n"), None);
        assert_eq!(own_group("3:cpu:/x\n0::/a/b\n"), Some("a/b"));
    }

    #[test]
    fn a_controller_is_enabled_once() {
        let values = ["memory.max", "cpu.max", "memory.high"].map(|file| (file.to_owned(), "1".to_owned()));
        assert_eq!(controllers(&values), ["cpu", "memory"]);
    }
}
