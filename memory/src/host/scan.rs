//! How much of a range of this process's memory has pages, without a look at each page.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr;
use std::sync::OnceLock;

/// `struct page_region` of `linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg` of `linux/fs.h`.
#[repr(C)]
#[derive(Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const PAGE_IS_PRESENT: u64 = 1 << 3;

const _: () = assert!(size_of::<PmScanArg>() == 96 && size_of::<PageRegion>() == 24);

/// Opens what [`present`] needs, where the process may still do so: later it may have no `/proc`.
pub(super) fn prepare() {
    pagemap();
}

/// The bytes of `bytes` at `address` that have a page mapped. The kernel walks over page tables and, where there are none, over
/// everything at once, so that little memory in a large range is found in little time. `None` if it cannot do that (before Linux 6.7,
/// or without `/proc`).
pub(super) fn present(address: u64, bytes: u64) -> Option<u64> {
    present_by(pagemap()?, address, bytes)
        .inspect_err(|error| crate::limited!(debug, %error, "cannot scan memory"))
        .ok()
}

fn present_by(pagemap: &File, address: u64, bytes: u64) -> io::Result<u64> {
    let mut regions = [PageRegion::default(); 64];
    let end = address.checked_add(bytes).ok_or(io::ErrorKind::InvalidInput)?;
    let (mut at, mut found) = (address, 0);
    while at < end {
        let mut scan = PmScanArg {
            size: size_of::<PmScanArg>() as u64,
            start: at,
            end,
            vec: ptr::from_mut(&mut regions) as u64,
            vec_len: regions.len() as u64,
            category_mask: PAGE_IS_PRESENT,
            return_mask: PAGE_IS_PRESENT,
            ..PmScanArg::default()
        };
        // SAFETY: `scan` has the kernel's layout (asserted above) and outlives the call, and so does `regions`, which has room for
        // `vec_len` entries. The range is only looked up.
        let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) };
        let Ok(count) = usize::try_from(count) else { return Err(io::Error::last_os_error()) };
        let filled = regions.get(..count).ok_or(io::ErrorKind::InvalidData)?;
        found += filled.iter().map(|region| region.end.saturating_sub(region.start)).sum::<u64>();
        if scan.walk_end <= at {
            return Err(io::ErrorKind::InvalidData.into());
        }
        at = scan.walk_end;
    }
    Ok(found)
}

/// The page map of this process, if it has one.
fn pagemap() -> Option<&'static File> {
    static FILE: OnceLock<Option<File>> = OnceLock::new();
    FILE.get_or_init(|| File::open("/proc/self/pagemap").ok()).as_ref()
}

#[cfg(test)]
mod tests {
    use super::super::sys::{Access, Area, PAGE, resident_by_page};
    use super::*;

    /// Memory of small pages in which the pages of `touched` have been written to.
    fn area(pages: usize, touched: impl IntoIterator<Item = usize>) -> Area {
        let area = Area::reserve(pages * PAGE, Access::Write).unwrap();
        area.advise(0..pages * PAGE, libc::MADV_NOHUGEPAGE).unwrap();
        let memory = File::options().write(true).open("/proc/self/mem").unwrap();
        for page in touched {
            std::os::unix::fs::FileExt::write_all_at(&memory, &[1], area.address() + (page * PAGE) as u64).unwrap();
        }
        area
    }

    /// By a scan, which takes Linux 6.7.
    fn found(area: &Area, from: usize, to: usize) -> u64 {
        let (start, bytes) = (area.address() + (from * PAGE) as u64, ((to - from) * PAGE) as u64);
        present_by(pagemap().unwrap(), start, bytes).unwrap() / PAGE as u64
    }

    #[test]
    fn what_has_pages_is_found_however_it_is_scattered() {
        // More runs than one call reports.
        let area = area(4096, (0..1000).map(|number| number * 3).chain([4095]));
        assert_eq!(found(&area, 0, 4096), 1001);
        assert_eq!((found(&area, 0, 1), found(&area, 1, 3), found(&area, 1, 7)), (1, 0, 2));
        assert_eq!((found(&area, 3000, 4095), found(&area, 3000, 4096)), (0, 1));
        assert_eq!(resident_by_page(area.address(), 4096 * PAGE).unwrap(), 1001 * PAGE as u64);
        // More than it asks for at once.
        let pages = (192 << 20) / PAGE;
        let area = self::area(pages, [0, (64 << 20) / PAGE - 1, (64 << 20) / PAGE, pages - 1]);
        assert_eq!(resident_by_page(area.address(), pages * PAGE).unwrap(), 4 * PAGE as u64);
        let empty = Area::reserve(1 << 40, Access::Write).unwrap();
        assert_eq!(found(&empty, 0, (1 << 40) / PAGE), 0, "a terabyte of nothing");
    }

    #[test]
    fn a_kernel_that_cannot_scan_says_so() {
        let other = File::open("/dev/null").unwrap();
        assert!(present_by(&other, 0, PAGE as u64).is_err());
        assert!(present_by(pagemap().unwrap(), u64::MAX, PAGE as u64).is_err());
    }
}
