//! The interface between a PCI function and its bus.

/// Size of conventional configuration space (PCI Local Bus 3.0 section 6.1).
pub const CONVENTIONAL_BYTES: usize = 256;

/// A memory BAR.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BarSize {
    /// Its number, below 6.
    pub index: u8,
    /// Its size in bytes, a power of two.
    pub bytes: u64,
}

/// One function on a bus. Several vCPU threads may call it at once.
///
/// The function keeps its registers, and the bus maps its BARs. After each write that may have moved a BAR, the bus asks
/// [`PciFunction::bar_address`] for the new address, and reports the result with [`PciFunction::bar_mapped`].
pub trait PciFunction: Send + Sync {
    /// Reads configuration space. The access lies within its 4,096 bytes.
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// Writes configuration space. The access lies within its 4,096 bytes.
    fn write_config(&self, offset: u16, data: &[u8]);

    /// What reads of configuration space give until it is written the next time; behind that are zeros. `None` if a read does more
    /// than that, or if what it gives may change by itself.
    fn registers(&self) -> Option<[u8; CONVENTIONAL_BYTES]> {
        None
    }

    /// The BARs. They never change.
    fn bars(&self) -> Vec<BarSize> {
        Vec::new()
    }

    /// Writes the register of BAR `index`, as firmware would.
    fn place_bar(&self, _index: u8, _address: u64) {}

    /// The address of BAR `index` by its register; `None` while decoding is off.
    fn bar_address(&self, _index: u8) -> Option<u64> {
        None
    }

    /// The bus has mapped BAR `index` at this address, or has unmapped it.
    fn bar_mapped(&self, _index: u8, _address: Option<u64>) {}

    /// Reads BAR `index`. The access lies within it.
    fn read_bar(&self, _index: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    /// Writes BAR `index`. The access lies within it.
    fn write_bar(&self, _index: u8, _offset: u64, _data: &[u8]) {}

    /// Stops the function's own work. When this returns, the function does not touch guest memory until it is resumed. Its
    /// registers still answer. Does nothing if the function is suspended already.
    fn suspend(&self) {}

    /// Continues after [`PciFunction::suspend`]. Does nothing if the function is not suspended.
    fn resume(&self) {}

    /// The bus has removed the function for good. The function stops, releases its resources, and ignores accesses that are
    /// still in progress.
    fn removed(&self) {}
}
