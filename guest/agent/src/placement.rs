//! The source of an instance's memory, and how it is enforced.

use bellows_protocol::values::Node;

/// The source of an instance's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Base memory.
    Base,
    /// A partition, by cpuset and memory policies, the only means of a stock kernel.
    Policy(Node),
    /// A partition whose node is private: the cgroup and the tmpfs are attached to it, and the kernel does the rest.
    Private(Node),
}

impl Placement {
    /// The partition's node.
    pub fn node(self) -> Option<Node> {
        match self {
            Self::Base => None,
            Self::Policy(node) | Self::Private(node) => Some(node),
        }
    }

    /// The mount option that puts a tmpfs's pages there, no matter which process writes them.
    pub fn tmpfs_option(self) -> Option<String> {
        match self {
            Self::Base => None,
            // `static` keeps the policy when cpusets change.
            Self::Policy(node) => Some(format!("mpol=bind=static:{node}")),
            Self::Private(node) => Some(format!("private_node={node}")),
        }
    }
}
