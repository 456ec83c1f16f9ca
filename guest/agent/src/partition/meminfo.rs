//! A node's `meminfo`.

/// The use of a node's memory, in bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct NodeMemory {
    /// All memory that the kernel manages.
    pub total_bytes: u64,
    /// Free memory.
    pub free_bytes: u64,
    /// Anonymous memory and tmpfs.
    pub anonymous_bytes: u64,
    /// Page cache of files with a disk behind them.
    pub file_bytes: u64,
}

/// Parses lines of `Node N Key: VALUE kB`; a key that is missing is 0.
pub fn parse(text: &str) -> NodeMemory {
    let bytes = |wanted: &str| {
        text.lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace().skip(2);
                (words.next()?.strip_suffix(':')? == wanted).then(|| words.next()?.parse::<u64>().ok()).flatten()
            })
            .next()
            .unwrap_or(0)
            .saturating_mul(1024)
    };
    // Shmem counts as FilePages, but has no file to go back to.
    let shared = bytes("Shmem");
    NodeMemory {
        total_bytes: bytes("MemTotal"),
        free_bytes: bytes("MemFree"),
        anonymous_bytes: bytes("AnonPages").saturating_add(shared),
        file_bytes: bytes("FilePages").saturating_sub(shared),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tmpfs_counts_with_anonymous_memory() {
        let text = "Node 1 MemTotal:        1048576 kB\nNode 1 MemFree:          500000 kB\n\
                    Node 1 FilePages:            30 kB\nNode 1 AnonPages:           100 kB\nNode 1 Shmem:     10 kB\n";
        let memory = parse(text);
        assert_eq!(memory.total_bytes, 1 << 30);
        assert_eq!(memory.free_bytes, 500_000 * 1024);
        assert_eq!(memory.anonymous_bytes, 110 * 1024);
        assert_eq!(memory.file_bytes, 20 * 1024);
    }

    #[test]
    fn malformed_text_counts_as_zero() {
        assert_eq!(parse("Node\nNode 1\nNode 1 MemTotal\nNode 1 MemTotal: x kB\n"), NodeMemory::default());
    }
}
