//! Kicks a vCPU out of `KVM_RUN`: a flag that KVM looks at on entry, and a signal for a vCPU that is inside already.
//!
//! The signal is `SIGRTMIN`; its handler, the only one that this library installs for the whole process, does nothing. It is
//! sent to vCPU threads alone.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use bellows_memory::sync::Mutex;
use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

/// Where a vCPU is, and the means to get it out.
#[derive(Default)]
pub(crate) struct Kick {
    inside: AtomicBool,
    target: Mutex<Option<Target>>,
}

/// The thread that runs a vCPU, and the page it shares with KVM.
struct Target {
    thread: libc::pthread_t,
    run: NonNull<kvm_run>,
}

// SAFETY: `run` is only used for its `immediate_exit` byte, atomically, and only while the target is attached.
unsafe impl Send for Target {}

/// The page that a vCPU shares with KVM, in a mapping of our own: kvm-ioctls makes references to its own one.
pub(crate) struct RunPage(NonNull<kvm_run>);

// SAFETY: it is plain memory, and each user states how it shares it.
unsafe impl Send for RunPage {}

/// A `kvm_run` fits in one page; we do not use the pages behind it.
const RUN_PAGE_BYTES: usize = 4096;
const _: () = assert!(size_of::<kvm_run>() <= RUN_PAGE_BYTES);

impl RunPage {
    /// Maps the page of `vcpu`.
    ///
    /// # Errors
    /// The system refused.
    pub(crate) fn map(vcpu: &VcpuFd) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new shared mapping of a descriptor that supports it, at an address that the system chooses.
        let page = unsafe {
            libc::mmap(std::ptr::null_mut(), RUN_PAGE_BYTES, protection, libc::MAP_SHARED, vcpu.as_raw_fd(), 0)
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(page.cast()).map(Self).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    /// The page, mapped for as long as this lives.
    pub(crate) fn as_ptr(&self) -> NonNull<kvm_run> {
        self.0
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: `map` mapped it, and no pointer to it is left.
        unsafe { libc::munmap(self.0.as_ptr().cast(), RUN_PAGE_BYTES) };
    }
}

/// Detaches the target when dropped.
pub(crate) struct Attached<'a>(&'a Kick);

impl Kick {
    /// Makes kicks reach the calling thread for as long as the guard lives.
    ///
    /// # Safety
    /// `run` must stay mapped until the guard is dropped, and the guard must be dropped before the calling thread ends.
    pub(crate) unsafe fn attach(&self, run: NonNull<kvm_run>) -> io::Result<Attached<'_>> {
        // This thread's creator may have blocked every signal.
        unblock_signal(SIGRTMIN()).map_err(|error| io::Error::other(error.to_string()))?;
        // SAFETY: pthread_self has no preconditions.
        let thread = unsafe { libc::pthread_self() };
        *self.target.lock() = Some(Target { thread, run });
        Ok(Attached(self))
    }

    /// Makes a vCPU that is inside the guest, or about to enter it, leave with `EINTR`.
    pub(crate) fn kick(&self) {
        if let Some(target) = &*self.target.lock() {
            target.immediate_exit().store(1, Ordering::SeqCst);
            // SAFETY: the thread is alive: it detaches under this lock before it ends.
            unsafe { libc::pthread_kill(target.thread, SIGRTMIN()) };
        }
    }

    pub(crate) fn is_inside(&self) -> bool {
        self.inside.load(Ordering::SeqCst)
    }

    pub(crate) fn set_inside(&self, inside: bool) {
        self.inside.store(inside, Ordering::SeqCst);
    }
}

impl Target {
    fn immediate_exit(&self) -> &AtomicU8 {
        immediate_exit(&self.run)
    }
}

/// The byte in the page shared with KVM that makes the next entry return at once.
pub(crate) fn immediate_exit(run: &NonNull<kvm_run>) -> &AtomicU8 {
    // SAFETY: `run` points to a mapped `kvm_run` (contract of `Kick::attach`); other threads and the kernel touch this byte
    // only atomically, and the vCPU's own thread too.
    unsafe { AtomicU8::from_ptr(&raw mut (*run.as_ptr()).immediate_exit) }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        *self.0.target.lock() = None;
    }
}

/// Installs the kick signal's handler, once per process.
pub(crate) fn install_handler() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| register_signal_handler(SIGRTMIN(), nothing).map_err(|error| error.errno()))
        .map_err(io::Error::from_raw_os_error)
}
