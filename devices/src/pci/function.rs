//! What every PCI function is to its bus.

/// A memory BAR.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BarSize {
    /// Number of the BAR, below 6.
    pub index: u8,
    /// Its size in bytes, a power of two.
    pub bytes: u64,
}

/// One function on a bus. Calls come from several vCPU threads at once.
///
/// The function keeps its registers; the bus decides where BARs are really answered: it asks [`PciFunction::bar_address`]
/// after each write that may have moved one, and says what became of it by [`PciFunction::bar_mapped`].
pub trait PciFunction: Send + Sync {
    /// Reads configuration space; `offset` is below 4,096 and `data` does not reach past that.
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// Writes configuration space, within the same bounds.
    fn write_config(&self, offset: u16, data: &[u8]);

    /// The BARs; always the same.
    fn bars(&self) -> Vec<BarSize> {
        Vec::new()
    }

    /// Writes the register of BAR `index`, as firmware would.
    fn place_bar(&self, _index: u8, _address: u64) {}

    /// Where the registers say that BAR `index` is to be answered; `None` while decoding is off.
    fn bar_address(&self, _index: u8) -> Option<u64> {
        None
    }

    /// BAR `index` is answered at this address from now on, or nowhere.
    fn bar_mapped(&self, _index: u8, _address: Option<u64>) {}

    /// Reads BAR `index`; the access lies within it.
    fn read_bar(&self, _index: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    /// Writes BAR `index`; the access lies within it.
    fn write_bar(&self, _index: u8, _offset: u64, _data: &[u8]) {}

    /// Stops the function's own work: when this returns it touches no guest memory, until it is resumed. Registers go on
    /// answering. Does nothing to a function that is suspended already.
    fn suspend(&self) {}

    /// Goes on where [`PciFunction::suspend`] stopped. Does nothing to a function that is not suspended.
    fn resume(&self) {}

    /// The function was taken off its bus for good: it stops, lets go of everything, and ignores accesses that were under
    /// way.
    fn removed(&self) {}
}
