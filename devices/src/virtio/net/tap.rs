//! A TAP of the host: an Ethernet interface whose other end is a descriptor.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use super::link::{Link, Offloads, Written, read_whole, write_whole};
use super::pieces::{Room, Source};
use super::wire::{HEADER_BYTES, VirtioNetHdr, feature};
use crate::socket::duplicate;

const DEVICE: &str = "/dev/net/tun";
/// Longest name of an interface, and the zero behind it.
const NAME_BYTES: usize = libc::IFNAMSIZ;
/// What a TAP must be: without the protocol number before each packet, with the header of virtio-net.
const NEEDED: i16 = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
/// What a TAP must be too if it has several queues.
const SEVERAL: i16 = libc::IFF_MULTI_QUEUE as i16;
/// The flags among those that a TAP has, that make a difference.
const COMPARED: i16 = NEEDED | libc::IFF_TUN as i16;
/// Requests of `TUNSETQUEUE`.
const ATTACH_QUEUE: i16 = libc::IFF_ATTACH_QUEUE as i16;
const DETACH_QUEUE: i16 = libc::IFF_DETACH_QUEUE as i16;

/// A TAP, or one queue of one that has several.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    /// Whether the interface uses the queue.
    attached: AtomicBool,
}

/// Why a TAP cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No interface can have that name.
    #[error("{0:?} is not the name of an interface: expected 1 to {most} bytes without `/`, `:`, `%`, white space", most = NAME_BYTES - 1)]
    Name(String),
    /// No interface has that name.
    #[error("no interface is called `{0}`: expected a TAP that exists")]
    Missing(String),
    /// The system has no TAPs, or the process may not use them.
    #[error("cannot open {DEVICE} for the TAP `{name}`")]
    Open {
        /// The interface.
        name: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The interface is not a TAP, is in use, has one queue instead of several or the other way round, or the process may not use it.
    #[error("cannot attach to `{name}`: expected a TAP with {queues} that this process may use and no other does")]
    Attach {
        /// The interface.
        name: String,
        /// What it should have.
        queues: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The descriptor is not open.
    #[error("descriptor {fd} cannot be used")]
    Descriptor {
        /// The descriptor.
        fd: RawFd,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The descriptor is something else.
    #[error("descriptor {fd} is not a TAP: expected /dev/net/tun attached to an interface")]
    NotTap {
        /// The descriptor.
        fd: RawFd,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The TAP was opened in another way.
    #[error(
        "`{name}` of descriptor {fd} has flags {found:#06x}: expected {expected:#06x} among them (IFF_TAP, IFF_NO_PI, \
         IFF_VNET_HDR, and IFF_MULTI_QUEUE where there are several descriptors), and not IFF_TUN"
    )]
    Flags {
        /// The interface.
        name: String,
        /// The descriptor.
        fd: RawFd,
        /// Its flags.
        found: i16,
        /// The flags that it needs.
        expected: i16,
    },
    /// The descriptors belong to different interfaces.
    #[error("descriptor {fd} is a queue of `{found}`: expected one of `{expected}`, as descriptor {first}")]
    Another {
        /// The descriptor.
        fd: RawFd,
        /// Its interface.
        found: String,
        /// The first descriptor.
        first: RawFd,
        /// The interface of that.
        expected: String,
    },
    /// Two of the descriptors are one queue.
    #[error("two of the descriptors {0:?} are the same queue: expected one for each")]
    Twice(Vec<RawFd>),
    /// The system refused to set the TAP up.
    #[error("cannot set {what} of the TAP `{name}`")]
    SetUp {
        /// The interface.
        name: String,
        /// What was to be set.
        what: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl Tap {
    /// Attaches to the TAP called `name`, which exists and has one queue. No other process may have it.
    ///
    /// # Errors
    /// There is no such TAP, or it cannot be used.
    pub fn open(name: &str) -> Result<Self, TapError> {
        Self::open_queue(name, 0)
    }

    /// Attaches to the TAP called `name`, which exists and may have several queues, with `count` of them: more than one. Only the first
    /// is used at first.
    ///
    /// # Errors
    /// As [`Tap::open`].
    pub fn open_queues(name: &str, count: usize) -> Result<Vec<Self>, TapError> {
        let queues = (0..count).map(|_| Self::open_queue(name, SEVERAL)).collect::<Result<Vec<_>, _>>()?;
        leave_all_but_first(&queues)?;
        Ok(queues)
    }

    fn open_queue(name: &str, several: i16) -> Result<Self, TapError> {
        if !is_name(name) {
            return Err(TapError::Name(name.to_owned()));
        }
        let mut request = request(name, NEEDED | several);
        // The system would make one that nothing is connected to.
        // SAFETY: the name ends with a zero, as it is shorter than its place.
        if unsafe { libc::if_nametoindex(request.ifr_name.as_ptr()) } == 0 {
            return Err(TapError::Missing(name.to_owned()));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let opened = options.open(DEVICE);
        let file = opened.map_err(|source| TapError::Open { name: name.to_owned(), source })?;
        let queues = if several == 0 { "one queue" } else { "several queues (multi_queue)" };
        attach(&file, &mut request).map_err(|source| TapError::Attach { name: name.to_owned(), queues, source })?;
        Self { file, name: name.to_owned(), attached: AtomicBool::new(true) }.set_up()
    }

    /// The TAP behind descriptor `fd` of this process, which stays open. The TAP is one descriptor with two numbers afterwards: it does
    /// not block any more under either.
    ///
    /// # Errors
    /// It is not a TAP, or was opened in another way than is needed.
    pub fn from_descriptor(fd: RawFd) -> Result<Self, TapError> {
        Self::from_queue(fd, 0)
    }

    /// Queues of one TAP behind these descriptors, more than one, as [`Tap::from_descriptor`]. Only the first is used at first.
    ///
    /// # Errors
    /// As [`Tap::from_descriptor`], or they are not queues of one TAP.
    pub fn from_descriptors(fds: &[RawFd]) -> Result<Vec<Self>, TapError> {
        let queues = fds.iter().map(|fd| Self::from_queue(*fd, SEVERAL)).collect::<Result<Vec<_>, _>>()?;
        for (queue, &fd) in queues.iter().zip(fds) {
            if queue.name != queues[0].name {
                let (found, expected) = (queue.name.clone(), queues[0].name.clone());
                return Err(TapError::Another { fd, found, first: fds[0], expected });
            }
        }
        // A queue that is there twice leaves once, and takes the first with it if it is that.
        let left = leave_all_but_first(&queues);
        if left.is_ok() && queues.first().is_none_or(Self::is_attached) {
            return Ok(queues);
        }
        // They are the caller's.
        queues.iter().skip(1).for_each(|queue| drop(queue.set_used(true)));
        match left {
            Err(TapError::SetUp { source, name, what }) if source.raw_os_error() != Some(libc::EINVAL) => {
                Err(TapError::SetUp { source, name, what })
            }
            _ => Err(TapError::Twice(fds.to_vec())),
        }
    }

    fn from_queue(fd: RawFd, several: i16) -> Result<Self, TapError> {
        let file: File = duplicate(fd).map_err(|source| TapError::Descriptor { fd, source })?.into();
        let copy = file.as_raw_fd();
        let tap = Self { file, name: String::new(), attached: AtomicBool::new(true) };
        let (name, found) = tap.interface().map_err(|source| TapError::NotTap { fd, source })?;
        let expected = NEEDED | several;
        if found & (COMPARED | several) != expected {
            return Err(TapError::Flags { name, fd, found, expected });
        }
        let tap = Self { name, ..tap };
        // SAFETY: no pointers are passed.
        let flags = unsafe { libc::fcntl(copy, libc::F_GETFL) };
        // SAFETY: no pointers are passed.
        let set = checked(flags)
            .and_then(|()| checked(unsafe { libc::fcntl(copy, libc::F_SETFL, flags | libc::O_NONBLOCK) }));
        set.map_err(|source| tap.failed("O_NONBLOCK", source))?;
        tap.set_up()
    }

    /// Name and flags of the interface that it is attached to.
    fn interface(&self) -> io::Result<(String, i16)> {
        let mut request = request("", 0);
        // SAFETY: the kernel writes one `ifreq`, which lives through the call.
        checked(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNGETIFF as _, &raw mut request) })?;
        // SAFETY: the kernel has set the flags.
        Ok((name_of(&request), unsafe { request.ifr_ifru.ifru_flags }))
    }

    /// Name of the interface when it was opened.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the interface uses the queue, as the kernel has it.
    fn is_attached(&self) -> bool {
        self.interface().is_ok_and(|(_, flags)| flags & DETACH_QUEUE == 0)
    }

    fn set_up(self) -> Result<Self, TapError> {
        self.set(libc::TUNSETVNETHDRSZ, HEADER_BYTES as libc::c_int)
            .map_err(|source| self.failed("the size of packet headers", source))?;
        self.set(libc::TUNSETVNETLE, 1)
            .map_err(|source| self.failed("the order of bytes in packet headers", source))?;
        // A driver says what it can do.
        self.set_offloads(Offloads::default()).map_err(|source| self.failed("offloads", source))?;
        Ok(self)
    }

    fn failed(&self, what: &'static str, source: io::Error) -> TapError {
        TapError::SetUp { name: self.name.clone(), what, source }
    }

    /// Sets a number by a request that takes a pointer to it.
    fn set(&self, request: libc::Ioctl, value: libc::c_int) -> io::Result<()> {
        // SAFETY: the kernel reads one `int`, which lives through the call.
        checked(unsafe { libc::ioctl(self.file.as_raw_fd(), request as _, &raw const value) })
    }
}

impl Link for Tap {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn offloads(&self) -> u64 {
        feature::OFFLOADS
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let flag = |set: bool, flag: libc::c_uint| if set { flag } else { 0 };
        let flags = flag(offloads.checksum, libc::TUN_F_CSUM)
            | flag(offloads.tcp4, libc::TUN_F_TSO4)
            | flag(offloads.tcp6, libc::TUN_F_TSO6);
        // SAFETY: the request takes a number, not a pointer.
        checked(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(flags)) })
    }

    fn set_used(&self, used: bool) -> io::Result<()> {
        if self.attached.load(Ordering::Relaxed) == used {
            return Ok(());
        }
        let request = request("", if used { ATTACH_QUEUE } else { DETACH_QUEUE });
        // SAFETY: the kernel reads one `ifreq`, which lives through the call.
        let done = checked(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETQUEUE as _, &raw const request) });
        self.attached.store(used && done.is_ok(), Ordering::Relaxed);
        done.map_err(|error| match error.raw_os_error() {
            // What it was a queue of was deleted.
            Some(libc::EINVAL) if used => io::Error::from_raw_os_error(libc::ENODEV),
            _ => error,
        })
    }

    fn read(&self, header: &mut VirtioNetHdr, room: &mut Room<'_>) -> io::Result<usize> {
        read_whole(self.descriptor(), header, room)
    }

    fn write(&self, header: &VirtioNetHdr, frame: &mut Source<'_>) -> io::Result<Written> {
        write_whole(self.descriptor(), header, frame)
    }
}

/// Leaves the first of `queues` in use.
fn leave_all_but_first(queues: &[Tap]) -> Result<(), TapError> {
    let mut others = queues.iter().skip(1);
    others.try_for_each(|queue| queue.set_used(false).map_err(|source| queue.failed("the use of a queue", source)))
}

/// Makes `file` the other end of the interface that `request` names, with its flags.
fn attach(file: &File, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the kernel reads and writes one `ifreq`, which lives through the call.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut *request) })
}

/// Whether an interface can be called `name`, by the kernel's rules, and none would be made up for it.
fn is_name(name: &str) -> bool {
    let valid = |byte: u8| !matches!(byte, b'/' | b':' | b'%' | 0 | 0x0b) && !byte.is_ascii_whitespace();
    (1..NAME_BYTES).contains(&name.len()) && !matches!(name, "." | "..") && name.bytes().all(valid)
}

/// A request about the interface `name`, which is shorter than its place.
fn request(name: &str, flags: i16) -> libc::ifreq {
    // SAFETY: an all-zero `ifreq` is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name[..NAME_BYTES - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags;
    request
}

fn name_of(request: &libc::ifreq) -> String {
    let bytes = request.ifr_name.map(|byte| byte as u8);
    CStr::from_bytes_until_nul(&bytes).unwrap_or_default().to_string_lossy().into_owned()
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
#[path = "tap_test.rs"]
mod tests;
