//! `--scratch SIZE[:PATH]`: a disk that an instance writes to.

use std::str::FromStr;

use bellows_memory::ByteSize;
use bellows_vmm::{ScratchSpec, ValueError};

/// Where an instance finds its scratch disk if nothing else is said.
pub(crate) const PLACE: &str = "/tmp";

/// A scratch disk, and its place in the instance.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ScratchArg(pub(crate) ScratchSpec);

impl FromStr for ScratchArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (size, place) = text.split_once(':').unwrap_or((text, PLACE));
        let expected = |error| format!("{error}: expected SIZE or SIZE:PATH, such as 1G or 1G:/data");
        let size: ByteSize = size.parse().map_err(expected)?;
        let place = place.parse().map_err(|error: ValueError| error.to_string())?;
        ScratchSpec::new(size, place).map(Self).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_disk_has_a_size_and_a_place() {
        for (text, size, place) in [
            ("1G", ByteSize::gib(1), "/tmp"),
            ("64M:/data/new", ByteSize::mib(64), "/data/new"),
            ("2M:/a:b", ByteSize::mib(2), "/a:b"),
        ] {
            let ScratchArg(spec) = text.parse().unwrap();
            assert_eq!((spec.size(), spec.path.as_str()), (size, place), "{text}");
        }
        for (text, part) in [
            ("", "expected SIZE or SIZE:PATH"),
            ("/data", "expected SIZE or SIZE:PATH"),
            ("/data:1G", "expected SIZE or SIZE:PATH"),
            ("1G:", "place for a volume"),
            ("1G:data", "place for a volume"),
            ("1G:/proc", "place for a volume"),
            ("1G:/", "place for a volume"),
            ("512K", "expected 1 MiB to 8 TiB"),
            ("9T", "expected 1 MiB to 8 TiB"),
        ] {
            let refused = text.parse::<ScratchArg>().unwrap_err();
            assert!(refused.contains(part), "{text}: {refused}");
        }
    }
}
