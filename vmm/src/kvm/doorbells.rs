//! Doorbells: guest writes that KVM turns into eventfd signals.

use std::io;
use std::sync::Arc;

use bellows_devices::bus::Doorbells;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

/// [`Doorbells`] over KVM's ioeventfd. A write of any length and value signals.
pub struct KvmDoorbells {
    vm: Arc<VmFd>,
}

impl KvmDoorbells {
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm }
    }
}

impl Doorbells for KvmDoorbells {
    fn wire(&self, address: u64, fd: &EventFd) -> io::Result<()> {
        self.vm.register_ioevent(fd, &IoEventAddress::Mmio(address), NoDatamatch).map_err(io::Error::from)
    }

    fn unwire(&self, address: u64, fd: &EventFd) -> io::Result<()> {
        self.vm.unregister_ioevent(fd, &IoEventAddress::Mmio(address), NoDatamatch).map_err(io::Error::from)
    }
}
