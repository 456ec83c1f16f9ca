//! The layout of a function: its only BAR, its capabilities and its identity.

use std::ops::Range;

use bellows_memory::{field, wire};
use virtio_bindings::virtio_ids::{VIRTIO_ID_BALLOON, VIRTIO_ID_BLOCK, VIRTIO_ID_MEM, VIRTIO_ID_NET, VIRTIO_ID_VSOCK};
use vm_memory::Le32;

use super::common_config;
use crate::pci::config_space::{ConfigSpace, Identity, LayoutError};
use crate::pci::header::capability;
use crate::pci::msix::{CONTROL_ENABLE, CONTROL_MASK_ALL, MsixCapability};

/// Number of the BAR.
pub(super) const BAR: u8 = 0;
/// Its size.
pub(super) const BAR_BYTES: u32 = 0x8000;

/// Most queues of a device, so that the regions below suffice.
pub(super) const MAX_QUEUES: usize = 256;

pub(super) const COMMON: u64 = 0x0000;
pub(super) const ISR: u64 = 0x1000;
pub(super) const DEVICE: u64 = 0x2000;
pub(super) const NOTIFY: u64 = 0x3000;
pub(super) const MSIX_TABLE: u64 = 0x4000;
pub(super) const MSIX_PENDING: u64 = 0x6000;
const PAGE: u64 = 0x1000;

/// `notify_off_multiplier`: bytes from one queue's doorbell to the next.
pub(super) const NOTIFY_MULTIPLIER: u64 = 4;

/// A part of the BAR.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Region {
    Common,
    Isr,
    Device,
    Notify,
    MsixTable,
    MsixPending,
}

impl Region {
    /// The region that `offset` of the BAR lies in, and the offset in there.
    pub(super) const fn at(offset: u64) -> Option<(Self, u64)> {
        let (region, base) = match offset {
            COMMON..ISR => (Self::Common, COMMON),
            ISR..DEVICE => (Self::Isr, ISR),
            DEVICE..NOTIFY => (Self::Device, DEVICE),
            NOTIFY..MSIX_TABLE => (Self::Notify, NOTIFY),
            MSIX_TABLE..MSIX_PENDING => (Self::MsixTable, MSIX_TABLE),
            MSIX_PENDING..0x7000 => (Self::MsixPending, MSIX_PENDING),
            _ => return None,
        };
        Some((region, offset - base))
    }
}

/// Where in configuration space the capabilities are that the transport itself looks at.
#[derive(Clone, Debug)]
pub(super) struct Capabilities {
    /// MSI-X: `message_control`.
    pub(super) message_control: Range<u16>,
    /// Offset of `VIRTIO_PCI_CAP_PCI_CFG`.
    pub(super) pci_cfg: u16,
    /// And of its `pci_cfg_data`.
    pub(super) pci_cfg_data: Range<u16>,
}

impl Capabilities {
    fn new(msix: u16, pci_cfg: u16) -> Self {
        let within = |capability: u16, field: Range<u16>| capability + field.start..capability + field.end;
        Self {
            message_control: within(msix, field!(MsixCapability, message_control)),
            pci_cfg,
            pci_cfg_data: within(pci_cfg, field!(VirtioPciCfgCap, pci_cfg_data)),
        }
    }
}

/// Values of `cfg_type`, section 4.1.4.
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_PCI: u8 = 5;

/// The configuration space of a device of this type with these numbers of queues and MSI-X vectors.
pub(super) fn config_space(
    device_type: u16,
    queues: u16,
    vectors: u16,
) -> Result<(ConfigSpace, Capabilities), LayoutError> {
    let mut space = ConfigSpace::new(identity(device_type));
    space.add_memory_bar(BAR, BAR_BYTES)?;

    let msix = MsixCapability {
        cap_id: capability::MSIX,
        message_control: (vectors - 1).into(),
        table: (MSIX_TABLE as u32 | u32::from(BAR)).into(),
        pending: (MSIX_PENDING as u32 | u32::from(BAR)).into(),
        ..Default::default()
    };
    let writable = MsixCapability { message_control: (CONTROL_ENABLE | CONTROL_MASK_ALL).into(), ..Default::default() };
    let msix = space.add_capability(&msix, &writable)?;

    let fixed = VirtioPciCap::default();
    space.add_capability(&VirtioPciCap::new::<VirtioPciCap>(TYPE_COMMON, COMMON, common_config::BYTES), &fixed)?;
    space.add_capability(&VirtioPciCap::new::<VirtioPciCap>(TYPE_ISR, ISR, 1), &fixed)?;
    space.add_capability(&VirtioPciCap::new::<VirtioPciCap>(TYPE_DEVICE, DEVICE, PAGE), &fixed)?;
    let notify_bytes = u64::from(queues) * NOTIFY_MULTIPLIER;
    let notify = VirtioPciNotifyCap {
        cap: VirtioPciCap::new::<VirtioPciNotifyCap>(TYPE_NOTIFY, NOTIFY, notify_bytes),
        notify_off_multiplier: (NOTIFY_MULTIPLIER as u32).into(),
    };
    space.add_capability(&notify, &VirtioPciNotifyCap::default())?;
    let window = VirtioPciCfgCap { cap: VirtioPciCap::new::<VirtioPciCfgCap>(TYPE_PCI, 0, 0), ..Default::default() };
    // The driver chooses BAR, offset and length, and moves data through `pci_cfg_data`.
    let writable = VirtioPciCfgCap {
        cap: VirtioPciCap { bar: 0xff, offset: u32::MAX.into(), length: u32::MAX.into(), ..fixed },
        pci_cfg_data: [0xff; 4],
    };
    let pci_cfg = space.add_capability(&window, &writable)?;
    Ok((space, Capabilities::new(msix, pci_cfg)))
}

wire! {
    /// `struct virtio_pci_cap`, section 4.1.4.
    struct VirtioPciCap {
        cap_vndr: u8,
        cap_next: u8,
        cap_len: u8,
        cfg_type: u8,
        bar: u8,
        id: u8,
        padding: [u8; 2],
        offset: Le32,
        length: Le32,
    }

    /// `struct virtio_pci_notify_cap`, section 4.1.4.4.
    struct VirtioPciNotifyCap {
        cap: VirtioPciCap,
        notify_off_multiplier: Le32,
    }

    /// `struct virtio_pci_cfg_cap`, section 4.1.4.9.
    struct VirtioPciCfgCap {
        cap: VirtioPciCap,
        pci_cfg_data: [u8; 4],
    }
}

impl VirtioPciCap {
    /// The beginning of a capability `C` for `length` bytes at `offset` of the BAR, which is below 4 GiB long.
    fn new<C>(cfg_type: u8, offset: u64, length: u64) -> Self {
        Self {
            cap_vndr: capability::VENDOR,
            cap_len: size_of::<C>() as u8,
            cfg_type,
            bar: BAR,
            offset: (offset as u32).into(),
            length: (length as u32).into(),
            ..Default::default()
        }
    }
}

fn identity(device_type: u16) -> Identity {
    const VENDOR: u16 = 0x1af4;
    let class = match u32::from(device_type) {
        VIRTIO_ID_NET => [0x02, 0x00, 0x00],
        VIRTIO_ID_BLOCK => [0x01, 0x80, 0x00],
        VIRTIO_ID_VSOCK => [0x07, 0x80, 0x00],
        VIRTIO_ID_MEM | VIRTIO_ID_BALLOON => [0x05, 0x80, 0x00],
        _ => [0xff, 0x00, 0x00],
    };
    let device = 0x1040 + device_type;
    // Revision 1 and a subsystem from 0x40 on mark a device as modern, not transitional.
    Identity { vendor: VENDOR, device, revision: 1, class, subsystem_vendor: VENDOR, subsystem: device }
}

/// The driver's window through configuration space, section 4.1.4.9.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Window {
    pub(super) offset: u64,
    pub(super) len: usize,
}

/// What the window is set to, if that is an access there can be.
pub(super) fn window(space: &ConfigSpace, pci_cfg: u16) -> Option<Window> {
    let cap: VirtioPciCap = space.obj_at(pci_cfg);
    let (offset, len) = (cap.offset.to_native(), cap.length.to_native());
    let fits = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len) && offset < BAR_BYTES;
    (cap.bar == BAR && fits).then_some(Window { offset: u64::from(offset), len: len as usize })
}
