//! What a container is made of, and what its processes run as: decided by the agent, carried out by the helper.

use std::collections::HashSet;

use bellows_protocol::user::User;
use serde::{Deserialize, Serialize};

use super::copy::Copying;
use crate::accounts::Credentials;
use crate::placement::Placement;
use crate::streams::StdioSpec;
use crate::tmpfs::Capacities;

/// Search path for commands if the environment has no `PATH`.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process's program, user and standard streams.
#[derive(Debug)]
pub struct ProcessSpec {
    /// Command and arguments.
    pub arguments: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// Absolute path in the image.
    pub working_directory: String,
    /// The user that it runs as.
    pub user: User,
    /// Its standard streams.
    pub stdio: StdioSpec,
}

/// What the helper makes a process.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Its container; missing where it joins one that exists.
    pub container: Option<ContainerPlan>,
    /// What it runs, and as whom.
    pub process: ProcessPlan,
    /// The node that its memory is bound to.
    pub policy: Option<u32>,
    /// Its memory may be in huge pages, if those are on.
    pub huge_pages: bool,
    /// Its network namespace is not its container's own.
    pub shares_network: bool,
    /// What it becomes.
    pub role: Role,
    /// What it copies.
    pub copying: Option<Copying>,
}

/// What a process becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The command.
    Command,
    /// The parent of the command, which is a zygote. The descriptor that comes with the order is its end of the control socket.
    Zygote,
    /// A fork of a zygote, whose pidfd comes with the order.
    Fork,
    /// It stays the agent's program, and copies files.
    Copy,
}

/// A container. All that is not here is the same for every one: see `inside`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// Host name.
    pub hostname: String,
    /// Mount options with the capacity of `/dev`.
    pub devices: String,
    /// Mount options with the capacity of `/dev/shm`.
    pub shared: String,
    /// Where its volumes go, whose mounts come with the order.
    pub volumes: Vec<Place>,
}

/// Where a volume goes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Place {
    /// Absolute path in the image.
    pub path: String,
    /// It can be written to.
    pub writable: bool,
}

/// A process of a container.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProcessPlan {
    /// Command and arguments.
    pub arguments: Vec<String>,
    /// All of its environment.
    pub environment: Vec<String>,
    /// The directory that it starts in.
    pub working_directory: String,
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups.
    pub groups: Vec<u32>,
    /// Columns and rows of its terminal, if it has one.
    pub terminal: Option<(u16, u16)>,
}

impl ContainerPlan {
    /// A container that calls itself `hostname`, with volumes at these places.
    pub fn new(hostname: &str, capacities: Capacities, volumes: impl Iterator<Item = Place>) -> Self {
        let Capacities { shared, devices, .. } = capacities;
        let options = |capacity: crate::tmpfs::Capacity| capacity.options().join(",");
        Self {
            hostname: hostname.into(),
            devices: options(devices),
            shared: options(shared),
            volumes: volumes.collect(),
        }
    }
}

impl ProcessPlan {
    /// The container's root in `/`, without a command.
    pub fn of_root() -> Self {
        Self {
            arguments: Vec::new(),
            environment: Vec::new(),
            working_directory: "/".into(),
            uid: 0,
            gid: 0,
            groups: vec![0],
            terminal: None,
        }
    }

    /// What `spec` asks for, in a container that calls itself `hostname`.
    pub fn new(hostname: &str, spec: &ProcessSpec, credentials: &Credentials) -> Self {
        Self {
            arguments: spec.arguments.clone(),
            environment: environment(hostname, spec, credentials),
            working_directory: spec.working_directory.clone(),
            uid: credentials.uid,
            gid: credentials.gid,
            groups: credentials.groups.clone(),
            terminal: match spec.stdio {
                StdioSpec::Pipes { .. } => None,
                StdioSpec::Terminal(size) => Some((size.columns, size.rows)),
            },
        }
    }
}

impl Placement {
    /// The node that a process's memory has to be bound to: a private node needs no policy and takes none.
    pub fn policy(self) -> Option<u32> {
        match self {
            Self::Policy(node) => Some(node.number()),
            Self::Base | Self::Private(_) => None,
        }
    }
}

/// The given variables, of which the last of a name wins, with those that Docker and runc add; an empty `HOME` counts
/// as missing.
fn environment(hostname: &str, spec: &ProcessSpec, credentials: &Credentials) -> Vec<String> {
    let mut names = HashSet::new();
    let mut variables: Vec<String> = Vec::new();
    for variable in spec.environment.iter().rev() {
        let name = variable.split('=').next().unwrap_or_default();
        if names.insert(name) && variable != "HOME=" {
            variables.push(variable.clone());
        }
    }
    variables.reverse();
    let terminal = matches!(spec.stdio, StdioSpec::Terminal(_)).then_some(("TERM", "xterm"));
    let added =
        [("PATH", DEFAULT_PATH), ("HOSTNAME", hostname), ("HOME", &credentials.home)].into_iter().chain(terminal);
    for (name, value) in added {
        let start = format!("{name}=");
        if !variables.iter().any(|variable| variable.starts_with(&start)) {
            variables.push(start + value);
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    use bellows_protocol::values::{Node, TerminalSize};

    use super::*;

    const PIPES: StdioSpec = StdioSpec::Pipes { stdin: false };
    const TERMINAL: StdioSpec = StdioSpec::Terminal(TerminalSize { columns: 91, rows: 17 });

    fn plan(environment: &[&str], stdio: StdioSpec) -> ProcessPlan {
        let spec = ProcessSpec {
            arguments: vec!["/bin/true".into()],
            environment: environment.iter().map(ToString::to_string).collect(),
            working_directory: "/".into(),
            user: User::default(),
            stdio,
        };
        ProcessPlan::new("f-1", &spec, &Credentials { uid: 7, gid: 8, groups: vec![8, 9], home: "/home/user".into() })
    }

    fn environment(given: &[&str]) -> Vec<String> {
        plan(given, PIPES).environment
    }

    #[test]
    fn only_memory_of_a_stock_kernel_needs_a_policy() {
        let node = Node::try_from(3).unwrap();
        assert_eq!(Placement::Policy(node).policy(), Some(3));
        assert_eq!(Placement::Private(node).policy(), None);
        assert_eq!(Placement::Base.policy(), None);
    }

    #[test]
    fn every_tmpfs_has_a_capacity() {
        let container =
            ContainerPlan::new("f-1", Capacities::within(Placement::Base, 64 << 20, 64 << 20), std::iter::empty());
        for options in [container.devices, container.shared] {
            for wanted in ["size=", "nr_inodes="] {
                assert!(options.split(',').any(|option| option.starts_with(wanted)), "{options:?}");
            }
        }
    }

    #[test]
    fn expected_variables_have_defaults() {
        let path = format!("PATH={DEFAULT_PATH}");
        assert_eq!(environment(&[]), [&path, "HOSTNAME=f-1", "HOME=/home/user"]);
        let given = ["HOME=/image", "PATH=/opt", "HOSTNAME=me"];
        assert_eq!(environment(&given), given);
        assert_eq!(environment(&["PATH=", "HOME=", "HOSTNAME="]), ["PATH=", "HOSTNAME=", "HOME=/home/user"]);
    }

    #[test]
    fn a_terminal_has_a_size_and_a_type() {
        let on_terminal = |given: &[&str]| plan(given, TERMINAL);
        assert_eq!(on_terminal(&[]).terminal, Some((91, 17)));
        assert_eq!(on_terminal(&["PATH=", "HOME=/", "HOSTNAME="]).environment[3], "TERM=xterm");
        assert_eq!(on_terminal(&["TERM=dumb"]).environment[0], "TERM=dumb");
        assert_eq!(on_terminal(&["TERM=dumb"]).environment.len(), 4);
        assert_eq!(plan(&[], PIPES).terminal, None);
    }

    #[test]
    fn the_last_of_a_name_wins() {
        let all = environment(&["A=1", "HOME=/x", "EQ=a=b=c", "A=2", "AB=", "HOME="]);
        assert_eq!(all[..3], ["EQ=a=b=c", "A=2", "AB="]);
        assert!(all.contains(&"HOME=/home/user".into()), "{all:?}");
    }

    #[test]
    fn it_comes_back_as_it_was() {
        let plan = Plan {
            container: None,
            process: plan(&["A=\"\n"], TERMINAL),
            policy: Some(3),
            huge_pages: true,
            shares_network: true,
            role: Role::Fork,
            copying: None,
        };
        let text = serde_json::to_string(&plan).unwrap();
        let back: Plan = serde_json::from_str(&text).unwrap();
        assert_eq!((back.process.groups, back.policy, back.role), (vec![8, 9], Some(3), Role::Fork));
        assert!(back.huge_pages && back.shares_network);
        assert!(back.container.is_none() && back.process.environment.contains(&"A=\"\n".into()));
    }
}
