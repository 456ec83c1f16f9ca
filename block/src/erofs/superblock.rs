//! The first blocks of an image: superblock, checksum and device table.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::format::{
    BLOCK_BITS, BLOCK_SIZE, COMPAT_CHECKSUM, COMPAT_MTIME, DeviceSlot, INCOMPAT_CHUNKED, INCOMPAT_ZERO_PADDING, MAGIC,
    SUPERBLOCK_OFFSET, SuperBlock,
};

/// Offset of the device table: right behind the superblock.
const DEVICE_TABLE_OFFSET: usize = SUPERBLOCK_OFFSET + size_of::<SuperBlock>();

/// Size in bytes, a multiple of a block, of the superblock with a table of `devices` devices.
pub(super) const fn header_bytes(devices: usize) -> usize {
    (DEVICE_TABLE_OFFSET + devices * size_of::<DeviceSlot>()).next_multiple_of(BLOCK_SIZE as usize)
}

/// The first blocks of an image: `superblock`, completed with magic, block size and checksum, and the table of `devices`.
pub(super) fn encode(mut superblock: SuperBlock, devices: &[DeviceSlot]) -> Vec<u8> {
    superblock.magic = MAGIC.into();
    superblock.feature_compat = (COMPAT_CHECKSUM | COMPAT_MTIME).into();
    superblock.blkszbits = BLOCK_BITS;
    if !devices.is_empty() {
        #[allow(clippy::cast_possible_truncation, reason = "the writer checks the number of devices")]
        (superblock.extra_devices = U16::new(devices.len() as u16));
        superblock.devt_slotoff = U16::new((DEVICE_TABLE_OFFSET / size_of::<DeviceSlot>()) as u16);
    }
    superblock.checksum = U32::ZERO;
    let mut blocks = vec![0; SUPERBLOCK_OFFSET];
    blocks.extend(superblock.as_bytes());
    blocks.extend(devices.as_bytes());
    blocks.resize(header_bytes(devices.len()), 0);
    superblock.checksum = crc32c(&blocks[SUPERBLOCK_OFFSET..BLOCK_SIZE as usize]).into();
    blocks[SUPERBLOCK_OFFSET..DEVICE_TABLE_OFFSET].copy_from_slice(superblock.as_bytes());
    blocks
}

/// Reads the first block of an image whose data is its own.
///
/// # Errors
/// What is wrong with the superblock, or which feature it needs that layers don't have.
pub(super) fn decode(block: &[u8; BLOCK_SIZE as usize]) -> Result<SuperBlock, &'static str> {
    let (superblock, rest) = SuperBlock::read_from_prefix(&block[SUPERBLOCK_OFFSET..]).map_err(|_| "is too short")?;
    if superblock.magic != MAGIC {
        return Err("is not that of an EROFS image");
    }
    if superblock.feature_compat.get() & COMPAT_CHECKSUM != 0 {
        let unsigned = SuperBlock { checksum: U32::ZERO, ..superblock };
        if superblock.checksum != crc32c(&[unsigned.as_bytes(), rest].concat()) {
            return Err("is damaged: its checksum is another");
        }
    }
    if superblock.blkszbits != BLOCK_BITS || superblock.dirblkbits != 0 {
        return Err("has blocks of another size than 4096 bytes");
    }
    if superblock.feature_incompat.get() & !(INCOMPAT_ZERO_PADDING | INCOMPAT_CHUNKED) != 0 {
        return Err("has features that layers can't have, such as compression or further devices");
    }
    Ok(superblock)
}

/// CRC-32C as Linux's `crc32c(~0, ...)` computes it: without the final inversion.
fn crc32c(data: &[u8]) -> u32 {
    data.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_castagnoli() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }
}
