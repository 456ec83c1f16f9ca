//! Reading mappings of files without a system call.
//!
//! A page of a mapped file can vanish: the file becomes shorter, or its medium cannot be read. Whoever touches it then gets SIGBUS, which
//! ends the process. [`catch_faults`] installs a handler for the whole process that knows the mappings that are read here: it puts a
//! page of zeros in the place of the one that is missing, and marks the mapping as lost. A fault anywhere else goes where it went before.

use std::io;
use std::ops::Range;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use vm_memory::VolatileSlice;

use super::sys::{Access, Area, PAGE, check, map};

/// Most mappings that are watched at a time: what a process may have open in layers of all of its VMs.
const MOST: usize = 4096;

/// Has faults in watched mappings caught, from now on and in all threads, by a handler of SIGBUS. To do so is for the program and not for
/// a library to decide. Again is fine.
///
/// # Errors
/// The system refused.
pub fn catch_faults() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| install().map_err(|error| error.raw_os_error().unwrap_or(libc::EINVAL)));
    installed.map_err(io::Error::from_raw_os_error)
}

/// Whether [`catch_faults`] has been called.
#[must_use]
pub fn faults_are_caught() -> bool {
    BEFORE.get().is_some()
}

/// A mapping that this process may read.
#[derive(Debug)]
pub struct WatchedArea {
    // Before the mapping, whose addresses may be another's once it is gone.
    watch: Watch,
    area: Area,
}

impl WatchedArea {
    /// Watches a mapping, if faults are caught and not too many mappings are watched.
    ///
    /// # Errors
    /// The mapping itself, which is not watched then.
    pub fn new(area: Area) -> Result<Self, Area> {
        let start = area.start().as_ptr().addr();
        match faults_are_caught().then(|| Watch::new(start..start + area.bytes())).flatten() {
            Some(watch) => Ok(Self { watch, area }),
            None => Err(area),
        }
    }

    /// The mapping.
    #[must_use]
    pub fn area(&self) -> &Area {
        &self.area
    }

    /// Fills `to` from the byte at `offset` on.
    ///
    /// # Errors
    /// Not all of it is in the mapping; or a page was missing, now or before: what `to` holds is undefined then.
    pub fn copy_to(&self, offset: usize, to: &VolatileSlice<'_>) -> io::Result<()> {
        if to.is_empty() {
            return Ok(());
        }
        let end = offset.checked_add(to.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        let from = self.area.at(&(offset..end)).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        // SAFETY: the bytes lie in the mapping, which lives as long as `self`; where the file has none, the handler puts zeros. Others
        // may change the file meanwhile, so they are copied as volatile memory.
        let from = unsafe { VolatileSlice::new(from.as_ptr(), to.len()) };
        from.copy_to_volatile_slice(*to);
        if self.is_lost() { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }

    /// The byte at `offset`.
    ///
    /// # Errors
    /// As for [`WatchedArea::copy_to`].
    pub fn byte(&self, offset: usize) -> io::Result<u8> {
        let mut byte = [0];
        self.copy_to(offset, &VolatileSlice::from(&mut byte[..]))?;
        Ok(byte[0])
    }

    /// Brings the pages of `range` in, so that no copy waits for them.
    ///
    /// # Errors
    /// A page cannot be had.
    pub fn populate(&self, range: Range<usize>) -> io::Result<()> {
        match self.area.advise(range, libc::MADV_POPULATE_READ) {
            // Before Linux 5.14 each copy brings in what it needs.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            result => result,
        }
    }

    /// Whether a page of it was missing.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.watch.0.lost.load(Ordering::Acquire)
    }
}

/// The place of a mapping in the table, until this is dropped.
#[derive(Debug)]
struct Watch(&'static Place);

/// The handler takes no lock, so each place is some atomics.
#[derive(Debug)]
struct Place {
    /// [`FREE`], [`CLAIMED`] while the others are set, or [`WATCHED`].
    state: AtomicUsize,
    start: AtomicUsize,
    end: AtomicUsize,
    lost: AtomicBool,
}

const FREE: usize = 0;
const CLAIMED: usize = 1;
const WATCHED: usize = 2;

static TABLE: [Place; MOST] = [const {
    Place {
        state: AtomicUsize::new(FREE),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        lost: AtomicBool::new(false),
    }
}; MOST];

/// Places that have ever been used are below this.
static USED: AtomicUsize = AtomicUsize::new(0);

impl Watch {
    fn new(range: Range<usize>) -> Option<Self> {
        let claim =
            |place: &Place| place.state.compare_exchange(FREE, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok();
        let (index, place) = TABLE.iter().enumerate().find(|(_, place)| claim(place))?;
        place.start.store(range.start, Ordering::Relaxed);
        place.end.store(range.end, Ordering::Relaxed);
        place.lost.store(false, Ordering::Relaxed);
        USED.fetch_max(index + 1, Ordering::Relaxed);
        place.state.store(WATCHED, Ordering::Release);
        Some(Self(place))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.state.store(FREE, Ordering::Release);
    }
}

/// What was to happen with SIGBUS before.
static BEFORE: OnceLock<Action> = OnceLock::new();

struct Action(libc::sigaction);

// SAFETY: it is plain data: numbers, and the address of a function.
unsafe impl Send for Action {}
// SAFETY: as above, and nothing changes it.
unsafe impl Sync for Action {}

fn install() -> io::Result<()> {
    // SAFETY: all zeros are a valid value: numbers, an empty set, and no function.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: reads the present action into `before`, which outlives the call.
    check(unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut before) })?;
    // Known before the handler may run.
    let _ = BEFORE.set(Action(before));
    // SAFETY: as above.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `handle` has the signature that SA_SIGINFO asks for, and does nothing that a signal handler may not: it reads atomics
    // and makes system calls.
    check(unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) })
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid structure (SA_SIGINFO).
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    if (code == libc::BUS_ADRERR || code == libc::BUS_MCEERR_AR) && replace(address) {
        return;
    }
    pass_on(signal, info, context);
}

/// Puts zeros in place of the page at `address`, if it is one of a watched mapping.
fn replace(address: usize) -> bool {
    let used = USED.load(Ordering::Relaxed).min(MOST);
    let watched = TABLE.iter().take(used).find(|place| {
        place.state.load(Ordering::Acquire) == WATCHED
            && (place.start.load(Ordering::Relaxed)..place.end.load(Ordering::Relaxed)).contains(&address)
    });
    let Some(place) = watched else { return false };
    place.lost.store(true, Ordering::Release);
    let page = ptr::without_provenance_mut(address & !(PAGE - 1));
    // SAFETY: the kernel's address of this thread's `errno`, which what was interrupted may be about to read.
    let errno = unsafe { &mut *libc::__errno_location() };
    let before = *errno;
    // The page is one of a mapping that is read as volatile memory only, and whose owner lives: the thread that was interrupted is reading
    // it.
    let mapped = map(page, PAGE, Access::Read.protection(), libc::MAP_FIXED | libc::MAP_NORESERVE).is_ok();
    *errno = before;
    mapped
}

/// Does what would have been done without this handler.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(Action(before)) = BEFORE.get() else { return };
    match before.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // The instruction faults again, and then the kernel does it.
            // SAFETY: a valid action, from the kernel itself.
            unsafe { libc::sigaction(signal, before, ptr::null_mut()) };
        }
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: whoever installed it said that it has this signature (SA_SIGINFO).
            let handler = unsafe { std::mem::transmute::<usize, Handler>(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: whoever installed it said that it has this signature.
            let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler) };
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::process::Command;

    use super::*;

    const BYTES: usize = 16 * PAGE;

    fn file() -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&pattern()).unwrap();
        file
    }

    fn pattern() -> Vec<u8> {
        (0..BYTES).map(|n| (n % 251) as u8).collect()
    }

    fn watched(file: &File) -> WatchedArea {
        catch_faults().unwrap();
        let area = Area::reserve(2 << 20, Access::Read).unwrap();
        area.map_file(0..BYTES, file).unwrap();
        WatchedArea::new(area).unwrap()
    }

    fn copy(area: &WatchedArea, range: Range<usize>) -> io::Result<Vec<u8>> {
        let mut data = vec![0xaa; range.len()];
        area.copy_to(range.start, &VolatileSlice::from(&mut data[..]))?;
        Ok(data)
    }

    #[test]
    fn what_is_there_is_copied() {
        let (file, pattern) = (file(), pattern());
        let area = watched(&file);
        area.populate(0..BYTES).unwrap();
        assert_eq!(copy(&area, 5..BYTES - 7).unwrap(), pattern[5..BYTES - 7]);
        assert_eq!(copy(&area, BYTES..BYTES + 3).unwrap(), [0; 3], "behind the file is nothing yet");
        assert_eq!((area.byte(7).unwrap(), area.byte(2 << 20).is_err()), (7, true));
        assert!(copy(&area, (2 << 20) - 1..(2 << 20) + 1).is_err());
        assert!(copy(&area, usize::MAX..usize::MAX).unwrap().is_empty());
        assert!(!area.is_lost());
    }

    #[test]
    fn a_missing_page_is_an_error_from_then_on_for_its_mapping_alone() {
        let (one, other) = (file(), file());
        let (area, neighbour) = (watched(&one), watched(&other));
        one.set_len(PAGE as u64).unwrap();
        assert_eq!(copy(&area, 0..PAGE).unwrap(), pattern()[..PAGE], "what is left");
        let error = copy(&area, PAGE / 2..3 * PAGE).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        assert!(copy(&area, 0..PAGE).is_err(), "lost for good");
        assert_eq!(copy(&neighbour, 0..BYTES).unwrap(), pattern());
        assert!(area.populate(4 * PAGE..5 * PAGE).is_err());
        drop(area);
        let again = watched(&one);
        assert!(!again.is_lost(), "the place of another is as new");
    }

    #[test]
    fn a_file_may_shrink_during_copies_from_many_threads() {
        for _ in 0..50 {
            let file = file();
            let area = watched(&file);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| while copy(&area, 0..BYTES).is_ok_and(|data| data == pattern()) {});
                }
                file.set_len(0).unwrap();
            });
            assert!(area.is_lost());
        }
    }

    /// In a process of its own: it is to die.
    #[test]
    fn a_fault_elsewhere_ends_the_process_as_ever() {
        const CHILD: &str = "BELLOWS_FAULT_ELSEWHERE";
        if std::env::var_os(CHILD).is_some() {
            let file = file();
            let _area = watched(&file);
            let other = Area::reserve(2 << 20, Access::Read).unwrap();
            other.map_file(0..BYTES, &file).unwrap();
            file.set_len(0).unwrap();
            // SAFETY: the byte is mapped, by a file that has no page for it.
            unsafe { other.start().as_ptr().read_volatile() };
            std::process::exit(0);
        }
        let this = std::env::current_exe().unwrap();
        let test = "host::fault::tests::a_fault_elsewhere_ends_the_process_as_ever";
        let output = Command::new(this).args([test, "--exact"]).env(CHILD, "1").output().unwrap();
        let status = output.status;
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        assert_eq!(signal, Some(libc::SIGBUS), "{status} {}", String::from_utf8_lossy(&output.stdout));
    }
}
