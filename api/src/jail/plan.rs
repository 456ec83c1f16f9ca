//! What the arguments come to, as plain data: nothing is asked of the system here.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use nix::sys::resource::Resource;
use nix::unistd::{Gid, Uid};

use super::error::JailError;
use super::options::JailArgs;

/// Most descriptors of a monitor, unless told otherwise; Firecracker's figure.
const DESCRIPTORS: u64 = 2048;

/// What is to be done.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) id: String,
    pub(super) exec_file: PathBuf,
    /// The name of `exec_file`, and of its copy.
    pub(super) name: String,
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    pub(super) base: PathBuf,
    pub(super) network: Option<PathBuf>,
    pub(super) cgroup: Option<CgroupPlan>,
    pub(super) limits: Vec<(Resource, u64)>,
    pub(super) daemonize: bool,
    pub(super) new_pid_ns: bool,
    pub(super) vhost_net: bool,
    arguments: Vec<OsString>,
}

/// A control group for the monitor.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct CgroupPlan {
    /// From the root of all groups down.
    pub(super) parents: Vec<String>,
    /// The group to make below the last of them; without one the process joins that, if it is there.
    pub(super) own: Option<String>,
    /// Files and values.
    pub(super) values: Vec<(String, String)>,
}

/// The times that a monitor is told for its metrics, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    /// When the jailer began, by the monotonic clock.
    pub(super) start: u64,
    /// CPU time of the process so far.
    pub(super) cpu: u64,
    /// CPU time of processes before it.
    pub(super) parent_cpu: u64,
}

impl Plan {
    /// Checks all arguments.
    ///
    /// # Errors
    /// One is not as expected.
    pub(super) fn new(args: &JailArgs) -> Result<Self, JailError> {
        let name = args.exec_file.file_name().and_then(|name| name.to_str());
        let name = name.filter(|name| !["root", "run", "tmp", "dev", "proc"].contains(name));
        let Some(name) = name else {
            return Err(wrong("--exec-file", args.exec_file.display(), "the name of a program"));
        };
        if args.uid == 0 {
            return Err(wrong("--uid", 0, "a user other than the superuser"));
        }
        // All bits set means "as it is" to the system.
        if args.uid == u32::MAX || args.gid == u32::MAX {
            return Err(wrong("--uid or --gid", u32::MAX, "a lower number"));
        }
        Ok(Self {
            id: args.id.clone(),
            exec_file: args.exec_file.clone(),
            cgroup: cgroup(args, name)?,
            name: name.to_owned(),
            uid: Uid::from_raw(args.uid),
            gid: Gid::from_raw(args.gid),
            base: args.chroot_base_dir.clone(),
            network: args.netns.clone(),
            limits: limits(&args.resource_limit)?,
            daemonize: args.daemonize,
            new_pid_ns: args.new_pid_ns,
            vhost_net: args.vhost_net,
            arguments: args.arguments.clone(),
        })
    }

    /// The network namespace's file, for messages.
    pub(super) fn network(&self) -> &Path {
        self.network.as_deref().unwrap_or(Path::new(""))
    }

    /// The command line in the jail, the program's own path first.
    ///
    /// What Firecracker's jailer passes on stands first, as Firecracker expects it. A subcommand of Bellows goes before that; those
    /// other than `api` do not know it.
    pub(super) fn command_line(&self, times: Times) -> Vec<OsString> {
        let (subcommand, rest) = match self.arguments.split_first() {
            Some((first, rest)) if !first.as_encoded_bytes().starts_with(b"-") => (Some(first), rest),
            _ => (None, &self.arguments[..]),
        };
        let mut line = vec![OsString::from(format!("/{}", self.name))];
        line.extend(subcommand.cloned());
        if subcommand.is_none_or(|name| name == "api") {
            let numbers = [
                ("--start-time-us", times.start),
                ("--start-time-cpu-us", times.cpu),
                ("--parent-cpu-time-us", times.parent_cpu),
            ];
            line.extend(["--id".into(), OsString::from(&self.id)]);
            line.extend(numbers.into_iter().flat_map(|(name, value)| [name.into(), OsString::from(value.to_string())]));
        }
        line.extend(rest.iter().cloned());
        line
    }
}

fn cgroup(args: &JailArgs, name: &str) -> Result<Option<CgroupPlan>, JailError> {
    if ![1, 2].contains(&args.cgroup_version) {
        return Err(wrong("--cgroup-version", args.cgroup_version, "2"));
    }
    let parent = args.parent_cgroup.as_deref().unwrap_or(name);
    let parents = plain(Path::new(parent));
    let parents = parents.ok_or_else(|| wrong("--parent-cgroup", parent, "names with `/` between them"))?;
    if args.cgroup_version == 1 {
        return match args.cgroup.first() {
            Some(value) => {
                Err(wrong("--cgroup", value, "--cgroup-version 2 with it: there is no support for version 1"))
            }
            None => Ok(None),
        };
    }
    let values = args.cgroup.iter().map(|text| {
        let pair = text.split_once('=').filter(|(file, value)| {
            let is_file = file.contains('.') && plain(Path::new(file)).is_some_and(|names| names.len() == 1);
            is_file && !file.starts_with("cgroup.") && !value.is_empty() && !value.contains('=')
        });
        let (file, value) = pair.ok_or_else(|| wrong("--cgroup", text, "CONTROLLER.FILE=VALUE"))?;
        Ok((file.to_owned(), value.to_owned()))
    });
    let values = values.collect::<Result<Vec<_>, JailError>>()?;
    let own = (!values.is_empty()).then(|| args.id.clone());
    Ok(Some(CgroupPlan { parents, own, values }))
}

/// The names in a relative path that has no others; `None` for any other.
fn plain(path: &Path) -> Option<Vec<String>> {
    let names = path.components().map(|part| match part {
        Component::Normal(name) => name.to_str().map(str::to_owned),
        _ => None,
    });
    names.collect::<Option<Vec<_>>>().filter(|names| !names.is_empty())
}

fn limits(arguments: &[String]) -> Result<Vec<(Resource, u64)>, JailError> {
    let mut limits = vec![(Resource::RLIMIT_NOFILE, DESCRIPTORS)];
    for text in arguments {
        let read = || {
            let (name, value) = text.split_once('=')?;
            let resource = match name {
                "fsize" => Resource::RLIMIT_FSIZE,
                "no-file" => Resource::RLIMIT_NOFILE,
                _ => return None,
            };
            Some((resource, value.parse::<u64>().ok()?))
        };
        limits.push(read().ok_or_else(|| wrong("--resource-limit", text, "fsize=BYTES or no-file=NUMBER"))?);
    }
    Ok(limits)
}

fn wrong(option: &'static str, value: impl ToString, expected: &'static str) -> JailError {
    JailError::Argument { option, value: value.to_string(), expected }
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod tests;
