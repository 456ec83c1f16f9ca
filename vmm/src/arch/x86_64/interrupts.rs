//! Routes of interrupts in KVM's table.

use bellows_devices::interrupt::MsiMessage;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};

use super::layout::INTERRUPT_LINES;

/// The routes KVM sets up by itself: GSIs 0 to 15 reach the PIC and the I/O APIC, 16 to 23 the I/O APIC.
pub(crate) fn lines() -> impl Iterator<Item = kvm_irq_routing_entry> {
    let entry = |gsi: u32, irqchip: u32, pin: u32| kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_bindings::kvm_irq_routing_entry__bindgen_ty_1 { irqchip: kvm_irq_routing_irqchip { irqchip, pin } },
        ..Default::default()
    };
    let pic = (0..16).map(move |gsi| {
        let chip = if gsi < 8 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
        entry(gsi, chip, gsi % 8)
    });
    pic.chain((0..INTERRUPT_LINES).map(move |gsi| entry(gsi, KVM_IRQCHIP_IOAPIC, gsi)))
}

/// The route that makes `gsi` send `message`.
pub(crate) fn message(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut msi = kvm_irq_routing_msi { data: message.data, ..Default::default() };
    // The two halves of the address: truncation is what splits it.
    msi.address_lo = message.address as u32;
    msi.address_hi = (message.address >> 32) as u32;
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_bindings::kvm_irq_routing_entry__bindgen_ty_1 { msi },
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_lines_are_encoded_for_kvm() {
        assert_eq!(lines().count(), 16 + 24);
        let entry = message(30, MsiMessage { address: 0x1_fee0_1000, data: 0x22 });
        // SAFETY: `message` filled this field.
        let msi = unsafe { entry.u.msi };
        assert_eq!((entry.gsi, msi.address_lo, msi.address_hi, msi.data), (30, 0xfee0_1000, 1, 0x22));
    }
}
