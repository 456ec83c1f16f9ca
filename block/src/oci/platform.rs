//! Platforms of images, and which of several builds suits a processor best.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// What an image was built for, written `linux/amd64` or `linux/arm/v7`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Platform {
    /// Operating system, in Go's words: `linux`.
    pub os: String,
    /// Processor, in Go's words: `amd64`.
    pub architecture: String,
    /// Which one of its kind: `v7`. Without it what this host's processor runs is meant, or the usual one of another kind.
    pub variant: Option<String>,
}

/// A text that is not a platform.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` is not a platform: expected OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, such as linux/arm64")]
pub struct ParsePlatformError(String);

/// A platform as an image's documents have it. What they leave out is the host's.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct RawPlatform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    /// What the operating system has to have beside what all have.
    #[serde(rename = "os.features")]
    features: Option<Vec<String>>,
}

/// How well an image fits: the greater, the better.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Rank {
    /// It needs no special feature.
    plain: bool,
    level: Level,
}

/// A variant of a processor: each runs what was built for lower ones of its kind.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Level {
    major: u8,
    minor: u8,
}

impl RawPlatform {
    /// The platform that is meant, in the usual words (containerd, `platforms.Normalize`).
    pub fn complete(&self) -> Platform {
        let Platform { os: host_os, architecture: host_architecture, .. } = Platform::host();
        let word = |word: &Option<String>| word.as_deref().map(str::to_lowercase).filter(|word| !word.is_empty());
        let os = word(&self.os).unwrap_or(host_os);
        let architecture = word(&self.architecture).unwrap_or(host_architecture);
        let variant = word(&self.variant);
        let (architecture, variant) = match (architecture.as_str(), variant) {
            ("x86_64" | "x86-64", variant) => ("amd64".to_owned(), variant),
            ("i386", _) => ("386".to_owned(), None),
            ("aarch64", variant) => ("arm64".to_owned(), variant),
            ("armhf", _) => ("arm".to_owned(), Some("v7".to_owned())),
            ("armel", _) => ("arm".to_owned(), Some("v6".to_owned())),
            (_, variant) => (architecture, variant),
        };
        let os = if os == "macos" { "darwin".to_owned() } else { os };
        Platform { os, architecture, variant }
    }

    /// Ranks an image for this platform where `wanted` is asked for: `None` if it cannot run there.
    pub fn rank(&self, wanted: &Platform) -> Option<Rank> {
        let plain = self.features.as_ref().is_none_or(Vec::is_empty);
        wanted.level_of(&self.complete(), Level::of_cpu()).map(|level| Rank { plain, level })
    }
}

impl Platform {
    /// The platform of guests on this host.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// The level of an image for `offered`, if this platform runs it; `cpu` is this host's.
    fn level_of(&self, offered: &Self, cpu: Level) -> Option<Level> {
        if (&self.os, &self.architecture) != (&offered.os, &offered.architecture) {
            return None;
        }
        let usual = Level::usual(&self.architecture);
        let level = |variant: &Option<String>, missing| match variant {
            Some(variant) => Level::parse(variant),
            None => missing,
        };
        let most = if self.architecture == Self::host().architecture { usual.max(Some(cpu)) } else { usual };
        match (level(&self.variant, most), level(&offered.variant, usual)) {
            (Some(most), Some(level)) => (level <= most).then_some(level),
            // Variants whose order is not known.
            _ if self.variant == offered.variant => Some(Level::MAX),
            _ => self.variant.is_none().then_some(Level::MIN),
        }
    }
}

impl Level {
    const MIN: Self = Self { major: 0, minor: 0 };
    const MAX: Self = Self { major: u8::MAX, minor: 0 };

    /// Reads `v3`, `8` or `v8.2`.
    fn parse(variant: &str) -> Option<Self> {
        let digits = variant.strip_prefix('v').unwrap_or(variant);
        let (major, minor) = digits.split_once('.').unwrap_or((digits, "0"));
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }

    /// What is meant where no variant is named.
    fn usual(architecture: &str) -> Option<Self> {
        let major = match architecture {
            "amd64" => 1,
            "arm" => 7,
            "arm64" => 8,
            _ => return None,
        };
        Some(Self { major, minor: 0 })
    }

    /// This host's processor (x86-64 psABI, "Micro-architecture levels").
    #[cfg(target_arch = "x86_64")]
    fn of_cpu() -> Self {
        macro_rules! has {
            ($($feature:tt)*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
        }
        let levels = [
            has!("cmpxchg16b" "popcnt" "sse3" "sse4.1" "sse4.2" "ssse3"),
            has!("avx" "avx2" "bmi1" "bmi2" "f16c" "fma" "lzcnt" "movbe"),
            has!("avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl"),
        ];
        let above = levels.into_iter().take_while(|has| *has).count();
        Self { major: u8::try_from(1 + above).unwrap_or(1), minor: 0 }
    }

    /// This host's processor; only the usual one is counted on.
    #[cfg(not(target_arch = "x86_64"))]
    fn of_cpu() -> Self {
        Self::MIN
    }
}

impl FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(text: &str) -> Result<Self, ParsePlatformError> {
        let words: Vec<_> = text.split('/').collect();
        let valid = |word: &&str| {
            !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        let (os, architecture, variant) = match words[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => ("", "", None),
        };
        if words.iter().all(valid) && !os.is_empty() {
            let raw = RawPlatform {
                os: Some(os.to_owned()),
                architecture: Some(architecture.to_owned()),
                variant,
                features: None,
            };
            return Ok(raw.complete());
        }
        Err(ParsePlatformError(text.chars().take(100).collect()))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    /// The one of `offered` that fits best, on an x86-64 of level `cpu`.
    fn best<'a>(wanted: &str, offered: &[&'a str], cpu: u8) -> Option<&'a str> {
        let cpu = Level { major: cpu, minor: 0 };
        let level = |text: &str| platform(wanted).level_of(&platform(text), cpu);
        offered.iter().copied().filter(|text| level(text).is_some()).max_by_key(|text| level(text))
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_best_variant_that_the_processor_runs_is_taken() {
        let all = ["linux/amd64/v2", "linux/amd64/v4", "linux/amd64", "linux/amd64/v3", "linux/arm64"];
        for (cpu, expected) in [(1, "linux/amd64"), (2, "linux/amd64/v2"), (3, "linux/amd64/v3"), (4, "linux/amd64/v4")]
        {
            assert_eq!(best("linux/amd64", &all, cpu), Some(expected));
            assert_eq!(best(&format!("linux/amd64/v{cpu}"), &all, 1), Some(expected));
        }
        assert_eq!(best("linux/amd64", &["linux/amd64/v3"], 2), None);
        assert_eq!(best("linux/amd64", &["linux/386"], 4), None);
        assert!(Level::of_cpu() >= Level::usual("amd64").unwrap());
    }

    #[test]
    fn other_processors_are_the_usual_ones() {
        let arm = ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm/v8"];
        assert_eq!(best("linux/arm", &arm, 4), Some("linux/arm/v7"));
        assert_eq!(best("linux/arm/v6", &arm, 4), Some("linux/arm/v6"));
        assert_eq!(best("linux/arm/v7", &["linux/arm/v6", "linux/arm/v5"], 4), Some("linux/arm/v6"));
        assert_eq!(best("linux/arm/v6", &["linux/arm"], 4), None);
        let arm64 = ["linux/arm64/v8", "linux/arm64/v9", "linux/arm64/v8.2"];
        assert_eq!(best("linux/arm64/v9", &arm64, 4), Some("linux/arm64/v9"));
        assert_eq!(best("linux/arm64/v8.5", &arm64, 4), Some("linux/arm64/v8.2"));
        assert_eq!(best("linux/arm64", &arm64, 4), Some("linux/arm64/v8"));
        // A kind whose variants have no known order.
        assert_eq!(best("linux/riscv64", &["linux/riscv64/rva23u64"], 4), Some("linux/riscv64/rva23u64"));
        assert_eq!(best("linux/riscv64", &["linux/riscv64/rva23u64", "linux/riscv64"], 4), Some("linux/riscv64"));
        assert_eq!(best("linux/riscv64/rva20u64", &["linux/riscv64/rva23u64"], 4), None);
    }

    #[test]
    fn what_documents_leave_out_is_the_hosts() {
        let complete = |text: &str| serde_json::from_str::<RawPlatform>(text).unwrap().complete();
        let host = Platform::host();
        for text in
            ["{}", r#"{"os": "", "architecture": ""}"#, r#"{"os": null, "architecture": null, "variant": null}"#]
        {
            assert_eq!(complete(text), host);
        }
        for (text, expected) in [
            (r#"{"os": "Linux", "architecture": "x86_64"}"#, "linux/amd64"),
            (r#"{"os": "linux", "architecture": "aarch64", "variant": ""}"#, "linux/arm64"),
            (r#"{"os": "linux", "architecture": "armhf", "os.version": "1"}"#, "linux/arm/v7"),
            (r#"{"os": "linux", "architecture": "i386", "variant": "x"}"#, "linux/386"),
            (r#"{"os": "unknown", "architecture": "unknown"}"#, "unknown/unknown"),
        ] {
            assert_eq!(complete(text).to_string(), expected);
        }
        let rank = |text: &str| serde_json::from_str::<RawPlatform>(text).unwrap().rank(&host);
        assert!(rank(r#"{"os.features": ["special"]}"#) < rank("{}") && rank(r#"{"os.features": null}"#) == rank("{}"));
    }

    proptest! {
        /// Whoever runs a level runs those below, and the order in which they are offered does not matter.
        #[test]
        fn more_capable_processors_take_nothing_worse(
            offered in prop::collection::vec(1..6_u8, 1..6), wanted in 1..5_u8, reversed in any::<bool>()
        ) {
            let mut texts: Vec<_> = offered.iter().map(|level| format!("linux/arm64/v{level}")).collect();
            if reversed {
                texts.reverse();
            }
            let texts: Vec<_> = texts.iter().map(String::as_str).collect();
            let found = best(&format!("linux/arm64/v{wanted}"), &texts, 1);
            let expected = offered.iter().filter(|level| **level <= wanted).max();
            prop_assert_eq!(found.map(str::to_owned), expected.map(|level| format!("linux/arm64/v{level}")));
        }
    }
}
