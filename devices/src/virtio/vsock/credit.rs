//! Credit: how much each side of a connection may send before the other has made room, VIRTIO 1.2 section 5.10.6.3.
//!
//! All counters run modulo 2^32, as on the wire.

/// Credit of the host for data to the guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct SendCredit {
    buf_alloc: u32,
    fwd_cnt: u32,
    tx_cnt: u32,
}

impl SendCredit {
    /// Takes the guest's latest values.
    pub const fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.buf_alloc = buf_alloc;
        self.fwd_cnt = fwd_cnt;
    }

    /// Bytes that may be sent now. 0 while the guest's values are impossible, such as more bytes taken than were sent.
    #[must_use]
    pub const fn available(&self) -> u32 {
        self.buf_alloc.saturating_sub(self.tx_cnt.wrapping_sub(self.fwd_cnt))
    }

    /// Counts `bytes` as sent; no more than [`Self::available`].
    pub fn sent(&mut self, bytes: u32) {
        debug_assert!(bytes <= self.available());
        self.tx_cnt = self.tx_cnt.wrapping_add(bytes);
    }
}

/// Credit of the guest for data to the host.
#[derive(Clone, Copy, Debug)]
pub struct ReceiveWindow {
    buf_alloc: u32,
    rx_cnt: u32,
    fwd_cnt: u32,
    advertised_fwd_cnt: u32,
}

/// The guest sent more than its credit.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{len} bytes were sent: expected at most {free}, the credit left")]
pub struct CreditExceeded {
    /// Bytes in the packet.
    pub len: u32,
    /// Bytes of credit left.
    pub free: u32,
}

impl ReceiveWindow {
    /// A window of `buf_alloc` bytes, all free.
    #[must_use]
    pub const fn new(buf_alloc: u32) -> Self {
        Self { buf_alloc, rx_cnt: 0, fwd_cnt: 0, advertised_fwd_cnt: 0 }
    }

    /// Bytes of buffer behind the window.
    #[must_use]
    pub const fn buf_alloc(&self) -> u32 {
        self.buf_alloc
    }

    /// Bytes received and not yet forwarded.
    #[must_use]
    pub const fn held(&self) -> u32 {
        self.rx_cnt.wrapping_sub(self.fwd_cnt)
    }

    /// Takes a packet of `len` bytes.
    ///
    /// # Errors
    /// The guest had no credit for it; nothing changed.
    pub fn receive(&mut self, len: u32) -> Result<(), CreditExceeded> {
        let free = self.buf_alloc.saturating_sub(self.held());
        if len > free {
            return Err(CreditExceeded { len, free });
        }
        self.rx_cnt = self.rx_cnt.wrapping_add(len);
        Ok(())
    }

    /// Counts `bytes` as handed on to the host's application; no more than are held.
    pub fn forwarded(&mut self, bytes: u32) {
        debug_assert!(bytes <= self.held());
        self.fwd_cnt = self.fwd_cnt.wrapping_add(bytes);
    }

    /// Whether the guest believes that over half of the buffer is in use although it is not.
    #[must_use]
    pub const fn wants_update(&self) -> bool {
        self.advertised_fwd_cnt != self.fwd_cnt
            && self.rx_cnt.wrapping_sub(self.advertised_fwd_cnt) > self.buf_alloc / 2
    }

    /// `buf_alloc` and `fwd_cnt` for the header of a packet that is about to be sent.
    pub const fn advertise(&mut self) -> (u32, u32) {
        self.advertised_fwd_cnt = self.fwd_cnt;
        (self.buf_alloc, self.fwd_cnt)
    }
}
