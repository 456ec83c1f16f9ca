//! The helper's side: a process of one thread that makes processes as the agent orders.
//!
//! For each order it forks twice. The first process enters the cgroup, so that all that follows is charged there, and makes or joins
//! the namespaces; a new process-number namespace has room only for a child. That is the second one, which finishes the container and
//! becomes the command. Both are children of the agent from the start.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::socket::MsgFlags;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, pivot_root, setsid};
use seccompiler::BpfProgram;

use super::executor::{self, Becoming};
use super::plan::{Plan, Role};
use super::{Order, Report, copy, descriptor, failed, inside, rights, zygote};
use crate::{log, seccomp, settings, sys};

/// Namespaces of a container's own, but for that of process numbers, which its first process is born into, and that of its network,
/// which others may have as well.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWCGROUP);
/// The umask of processes.
const UMASK: Mode = Mode::from_bits_truncate(0o022);
/// Where the helper's own root is mounted before it is one.
const NEXT_ROOT: &str = "/tmp";

/// Runs the helper. Orders come over standard input, until the agent is gone.
pub fn main() -> ExitCode {
    let prepared = prepare();
    log::start(tracing::Level::WARN);
    let (orders, filter) = match prepared {
        Ok(prepared) => prepared,
        Err(report) => {
            tracing::error!(?report, "no container can be made");
            return ExitCode::FAILURE;
        }
    };
    loop {
        match Descriptors::receive(&orders) {
            Ok(Some(descriptors)) => obey(descriptors, &filter),
            Ok(None) => return ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!(%error, "an order is lost");
                return ExitCode::FAILURE;
            }
        }
    }
}

/// Does once what every process needs; returns the source of orders and the filter of system calls.
fn prepare() -> Result<(OwnedFd, BpfProgram), Report> {
    // Its memory, and that of its children until they execute a command, is nobody's to look at, and so are its files.
    prctl::set_dumpable(false).map_err(failed("prctl"))?;
    // Nothing that this program was started with gets into a container.
    sys::close_from(3);
    sys::reset_signals().map_err(failed("signals"))?;
    let orders = sys::duplicate_above(&std::io::stdin(), zygote::FIRST_OTHER).map_err(failed("descriptor"))?;
    // Descriptors that come get other numbers than those that a command knows.
    let null = {
        // Its number may be one of those; it is closed before they are taken.
        let null = File::options().read(true).write(true).open("/dev/null").map_err(failed("/dev/null"))?;
        sys::duplicate_above(&null, zygote::FIRST_OTHER).map_err(failed("descriptor"))?
    };
    for number in 0..zygote::FIRST_OTHER {
        sys::occupy(&null, number).map_err(failed("descriptor"))?;
    }
    leave_mounts().map_err(failed("mount namespace"))?;
    seccomp::install(&seccomp::allow_all()).map_err(failed("system call filter"))?;
    Ok((orders, seccomp::program()))
}

/// Moves to a mount namespace with nothing in it but a place for a container's root: what is copied for each container.
fn leave_mounts() -> nix::Result<()> {
    const NOTHING: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NOTHING, "/", NOTHING, MsFlags::MS_PRIVATE | MsFlags::MS_REC, NOTHING)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), NEXT_ROOT, Some("tmpfs"), flags, Some("mode=0700,size=64k,nr_inodes=16"))?;
    chdir(NEXT_ROOT)?;
    let root = Path::new(inside::ROOT).strip_prefix("/").unwrap_or(Path::new(inside::ROOT));
    nix::unistd::mkdir(root, Mode::S_IRWXU)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

/// What comes with an order.
struct Descriptors {
    order: Order,
    /// To the agent, which hears over it what has come of the order. Closed when the command is executed.
    channel: UnixStream,
    cgroup: OwnedFd,
    /// The mount of the root file system; or the first process of the container to join.
    target: OwnedFd,
    streams: [OwnedFd; 3],
    /// The network namespace to enter.
    network: Option<OwnedFd>,
    /// The mounts of the container's volumes, and what the role needs.
    rest: Vec<OwnedFd>,
}

impl Descriptors {
    fn receive(orders: &OwnedFd) -> std::io::Result<Option<Self>> {
        let mut order = [0];
        let (count, descriptors) = descriptor::receive(orders, &mut order, MsgFlags::empty())?;
        if count == 0 {
            return Ok(None);
        }
        let malformed = || std::io::Error::new(std::io::ErrorKind::InvalidData, "it is malformed");
        let order = Order::parse(order[0]).ok_or_else(malformed)?;
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or_else(malformed);
        let (channel, cgroup, target) = (next()?.into(), next()?, next()?);
        let streams = [next()?, next()?, next()?];
        let network = if order == Order::CreateIn { Some(next()?) } else { None };
        Ok(Some(Self { order, channel, cgroup, target, streams, network, rest: descriptors.collect() }))
    }
}

fn obey(descriptors: Descriptors, filter: &BpfProgram) {
    match sys::fork_sibling(CloneFlags::empty(), Some(descriptors.cgroup.as_fd())) {
        Ok(Some(_)) => {}
        Ok(None) => {
            let Err(report) = enter(&descriptors, filter);
            say(&descriptors.channel, &report, &[]);
            sys::exit(1);
        }
        Err(error) => say(&descriptors.channel, &failed("clone3")(error), &[]),
    }
}

/// The first process's part.
fn enter(descriptors: &Descriptors, filter: &BpfProgram) -> Result<Infallible, Report> {
    let (network, namespaces) = match descriptors.order {
        Order::CreateIn => {
            unshare(NAMESPACES).map_err(failed("namespaces"))?;
            let missing = || Report::Failed("no network namespace came with the order".into());
            let network = descriptors.network.as_ref().ok_or_else(missing)?;
            setns(network, CloneFlags::CLONE_NEWNET).map_err(failed("network namespace"))?;
            (None, CloneFlags::CLONE_NEWPID)
        }
        Order::Create => {
            unshare(NAMESPACES | CloneFlags::CLONE_NEWNET).map_err(failed("namespaces"))?;
            let socket = settings::bring_up_loopback().map_err(failed("loopback"))?;
            let network = sys::network_of(&socket).map_err(failed("network namespace"))?;
            (Some(network), CloneFlags::CLONE_NEWPID)
        }
        Order::Join => {
            let all = NAMESPACES | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID;
            setns(&descriptors.target, all).map_err(failed("namespaces"))?;
            (None, CloneFlags::empty())
        }
    };
    let process = sys::fork_sibling(namespaces, None).map_err(failed("clone3"))?;
    let Some(process) = process else {
        let Err(report) = become_process(descriptors, filter);
        say(&descriptors.channel, &report, &[]);
        sys::exit(1);
    };
    let sent: Vec<BorrowedFd<'_>> =
        [process.pidfd.as_fd()].into_iter().chain(network.as_ref().map(AsFd::as_fd)).collect();
    say(&descriptors.channel, &Report::Pid(process.pid.as_raw()), &sent);
    sys::exit(0);
}

/// The second process's part.
fn become_process(descriptors: &Descriptors, filter: &BpfProgram) -> Result<Infallible, Report> {
    let plan = read_plan(&descriptors.channel)?;
    setsid().map_err(failed("session"))?;
    for (stream, number) in descriptors.streams.iter().zip(0..) {
        sys::place(stream, number).map_err(failed("standard streams"))?;
    }
    if let Some(node) = plan.policy {
        executor::bind_memory(node).map_err(failed("memory policy"))?;
    }
    if plan.huge_pages {
        prctl::set_thp_disable(false).map_err(failed("huge pages"))?;
    }
    let mut rest = descriptors.rest.iter();
    if let Some(container) = &plan.container {
        let volumes: Vec<_> = rest.by_ref().take(container.volumes.len()).map(AsFd::as_fd).collect();
        inside::make(container, descriptors.target.as_fd(), &volumes)?;
    }
    umask(UMASK);
    let directory = &plan.process.working_directory;
    if plan.container.is_some() {
        // A scratch disk may hide the one that has been made.
        fs::create_dir_all(directory).map_err(failed("working directory"))?;
    }
    chdir(directory.as_str()).map_err(failed("working directory"))?;
    rights::take(&plan.process, plan.shares_network)?;
    let mut role = || rest.next().and_then(|role| role.try_clone().ok());
    let becoming = match plan.role {
        Role::Copy => return copy_files(&plan, filter),
        Role::Command => Some(Becoming::Command),
        Role::Zygote => role().map(Becoming::Zygote),
        Role::Fork => role().map(Becoming::Fork),
    };
    let becoming = becoming.ok_or_else(|| Report::Failed("no descriptor came for its role".into()))?;
    executor::execute(&plan.process, &becoming, filter)
}

/// Copies files, as the program that this is. Nothing of the agent's stays open to it.
fn copy_files(plan: &Plan, filter: &BpfProgram) -> Result<Infallible, Report> {
    let copying = plan.copying.as_ref().ok_or_else(|| Report::Failed("nothing is to be copied".into()))?;
    // Modes are those of an archive.
    umask(Mode::empty());
    executor::prepare(&plan.process, filter)?;
    // With the channel's end the agent takes it to have begun. To shut that down would cut off the process that still says the number of this one.
    sys::close_from(3);
    sys::exit(copy::run(copying))
}

fn read_plan(mut channel: &UnixStream) -> Result<Plan, Report> {
    let mut text = Vec::new();
    channel.read_to_end(&mut text).map_err(failed("plan"))?;
    serde_json::from_slice(&text).map_err(failed("plan"))
}

/// Tells the agent; if it is gone, nobody needs to know.
fn say(mut channel: &UnixStream, report: &Report, sent: &[BorrowedFd<'_>]) {
    let Ok(mut line) = serde_json::to_vec(report) else { return };
    line.push(b'\n');
    let _ = match sent {
        [] => channel.write_all(&line),
        _ => descriptor::send(channel, &line, sent),
    };
}
