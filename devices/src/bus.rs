//! Address spaces that guest accesses are dispatched on: port I/O and memory-mapped I/O.

/// Something that answers guest reads and writes in a range of an address space.
///
/// `offset` counts from the start of the range. Accesses come from vCPU threads, several at once; `data` is 1, 2, 4 or 8
/// bytes long and little-endian, and may reach past what the device implements: unknown parts read as zeros (all ones
/// where the PCI specification says so) and writes to them are dropped.
pub trait BusDevice: Send + Sync {
    /// Answers a guest read.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes a guest write.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Where the guest writes to wake a queue: a write of any value of 2 bytes to a guest-physical address signals an eventfd
/// without leaving to the monitor (KVM's ioeventfd).
pub trait Doorbells: Send + Sync {
    /// Wires `fd` to guest writes at `address`.
    ///
    /// # Errors
    /// The hypervisor refused, for example because the address is wired already.
    fn wire(&self, address: u64, fd: &vmm_sys_util::eventfd::EventFd) -> std::io::Result<()>;

    /// Undoes [`Doorbells::wire`] with the same arguments.
    ///
    /// # Errors
    /// Nothing was wired there.
    fn unwire(&self, address: u64, fd: &vmm_sys_util::eventfd::EventFd) -> std::io::Result<()>;
}
