//! PCI, virtio-pci and the virtio devices of a Bellows VM.
