//! The guest's PID 1.
//!
//! [`boot`] brings the guest up and signals readiness; [`server`] answers the monitor's requests with these modules:
//!
//! | asked for | done by |
//! |---|---|
//! | devices come and go | [`pci`], with events from [`uevent`] |
//! | images | [`image`]: EROFS layers by serial number, stacked per instance by [`rootfs`] |
//! | scratch disks | [`scratch`] |
//! | partitions | [`partition`]: checks that the memory has arrived in its place, and lists the processes that hold it; [`placement`] |
//! | instances | [`instance`], with [`container`] (an OCI container and [`processes`] in it), [`furnish`] (files that programs expect), [`accounts`] (users and groups), [`cgroup`] (limits and the end of it), [`sockets`] (sockets that would outlive it) |
//! | forks | [`zygote`]: instances that others begin as copies of |
//! | limits | [`base_memory`]: base limits; [`tmpfs`]: capacities of file systems in memory |
//! | input and output | [`stream_server`] lets the monitor connect to [`streams`]: one connection for each stream of a process |
//! | exit codes | [`reaper`], the only place that waits for processes |
//! | network interfaces | [`network`]: names, addresses, routes, and what instances are told of them |
//! | counters | [`statistics`] |
//! | the time | [`clock`] |
//! | the end | [`shutdown`] |

pub mod accounts;
pub mod base_memory;
pub mod boot;
pub mod cgroup;
pub mod clock;
pub mod container;
pub mod elastic;
pub mod error;
pub mod files;
pub mod furnish;
pub mod image;
pub mod instance;
pub mod log;
pub mod modules;
pub mod mounts;
pub mod netlink;
pub mod network;
pub mod partition;
pub mod pci;
pub mod placement;
pub mod processes;
pub mod reaper;
pub mod rootfs;
pub mod scratch;
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
pub mod zygote;
