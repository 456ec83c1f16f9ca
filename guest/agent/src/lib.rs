//! The guest's PID 1.
//!
//! [`boot`] brings the guest up and signals readiness; [`server`] answers the monitor. What it answers with:
//!
//! | asked for | done by |
//! |---|---|
//! | devices come and go | [`pci`], told of progress by [`uevent`] |
//! | images | [`image`]: EROFS layers by serial number, stacked per instance by [`rootfs`] |
//! | partitions | [`partition`]: whether the memory is there, where it should be, and which processes hold it; [`placement`] |
//! | instances | [`instance`], with [`container`] (an OCI container and [`processes`] in it), [`furnish`] (what programs take for granted), [`accounts`] (users and groups), [`cgroup`] (limits and the end of it), [`sockets`] (what would stay) |
//! | limits | [`base_memory`]: how much of it each instance may have; [`tmpfs`]: what file systems in memory hold |
//! | input and output | [`stream_server`] lets the monitor connect to [`streams`]: one connection for each stream of a process |
//! | exit codes | [`reaper`], the only place that waits for processes |
//! | counters | [`statistics`] |
//! | the time | [`clock`] |
//! | the end | [`shutdown`] |

pub mod accounts;
pub mod base_memory;
pub mod boot;
pub mod cgroup;
pub mod clock;
pub mod container;
pub mod error;
pub mod files;
pub mod furnish;
pub mod image;
pub mod instance;
pub mod log;
pub mod modules;
pub mod mounts;
pub mod partition;
pub mod pci;
pub mod placement;
pub mod processes;
pub mod reaper;
pub mod rootfs;
pub mod seccomp;
pub mod server;
pub mod settings;
pub mod shutdown;
pub mod sockets;
pub mod statistics;
pub mod stream_server;
pub mod streams;
pub mod sync;
pub mod sys;
pub mod tmpfs;
pub mod uevent;
pub mod vsock;
