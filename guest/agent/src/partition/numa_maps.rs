//! `/proc/<pid>/numa_maps`.

/// Bytes that a process maps from `node`: the sum of `N<node>=<pages>` times the page size of each mapping.
pub fn bytes_on(text: &str, node: u32) -> u64 {
    let key = format!("N{node}=");
    text.lines()
        .map(|line| {
            let value =
                |key: &str| line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.parse::<u64>().ok());
            let pages = value(&key).unwrap_or(0);
            pages.saturating_mul(value("kernelpagesize_kB=").unwrap_or(4)).saturating_mul(1024)
        })
        .fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_count_with_their_size() {
        let text = "55a4 bind:1 file=/bin/x mapped=3 N0=1 N1=2 kernelpagesize_kB=4\n\
                    7f00 bind:1 anon=5 dirty=5 N1=5 kernelpagesize_kB=4\n\
                    7f80 bind:1 file=/huge huge N1=1 kernelpagesize_kB=2048\n\
                    7ffd default\n";
        assert_eq!(bytes_on(text, 1), 7 * 4096 + (2 << 20));
        assert_eq!(bytes_on(text, 0), 4096);
        assert_eq!(bytes_on(text, 10), 0);
    }

    #[test]
    fn absurd_counts_do_not_overflow() {
        let line = format!("0 default N1={} kernelpagesize_kB={}\n", u64::MAX, u64::MAX);
        assert_eq!(bytes_on(&line.repeat(2), 1), u64::MAX);
    }
}
