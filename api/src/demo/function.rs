//! The expected output of the demonstration's function: the computation of its `handler.py`, done on the host.

use bellows_block::Digest;

const MIB: usize = 1 << 20;
/// Numbers that the function sorts.
const ITEMS: usize = 100_000;
const PAGE: usize = 4096;

/// The line's beginning for a data set of `mebibytes`, at least 8.
pub(super) fn expected_result(mebibytes: u32) -> String {
    let bytes = mebibytes as usize * MIB;
    // The function hashes the first and the last 4 MiB of its data set.
    let mut sample = Vec::with_capacity(8 * MIB);
    for page in (0..4 * MIB).chain(bytes.saturating_sub(4 * MIB)..bytes).step_by(PAGE) {
        let start = sample.len();
        sample.extend((0..PAGE).map(|index| index as u8));
        sample[start..start + 8].copy_from_slice(&(page as u64).to_le_bytes());
    }
    let numbers: Vec<u8> = sorted_numbers().into_iter().flat_map(u64::to_le_bytes).collect();
    sample[..numbers.len()].copy_from_slice(&numbers);
    format!("result: sha256={} mib={mebibytes} ", Digest::of(&sample).hex())
}

/// Sorted numbers from a linear congruential generator.
fn sorted_numbers() -> Vec<u64> {
    let mut value = 42_u64;
    let mut numbers: Vec<u64> = std::iter::repeat_with(|| {
        value = value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        value
    })
    .take(ITEMS)
    .collect();
    numbers.sort_unstable();
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_is_the_functions() {
        // From a run of the function itself with an argument of 16.
        assert_eq!(expected_result(16), EXPECTED_16);
    }

    const EXPECTED_16: &str = "result: sha256=65d5af8282e5c9dd88041ae1da9a895c4d22260c9fa58d50c88c8d0e0759301c mib=16 ";
}
