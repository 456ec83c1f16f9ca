//! Unsafe code is only in the files that the map lists.

use std::collections::BTreeSet;
use std::path::Path;

use super::read;
use super::rust::Source;
use crate::error::Result;

/// The map, and its section that lists files with unsafe code: `` - `path`: why ``.
const MAP: &str = "ARCHITECTURE.md";
const SECTION: &str = "## Unsafe code";

/// The keyword of unsafe code.
const KEYWORD: &str = "unsafe";

/// Names files with unsafe code that the map does not list, and the reverse.
pub fn check(sources: &[Source]) -> Result<Vec<String>> {
    let listed: BTreeSet<String> = listed(&read(Path::new(MAP))?).map(str::to_owned).collect();
    let found: BTreeSet<String> = sources
        .iter()
        .filter(|source| source.has_word(KEYWORD))
        .map(|source| source.path.display().to_string())
        .collect();
    let unlisted = found
        .difference(&listed)
        .map(|path| format!("{path} holds unsafe code: expected only in the files that {MAP} lists below `{SECTION}`"));
    let safe =
        listed.difference(&found).map(|path| format!("{MAP} lists {path} below `{SECTION}`: it has no unsafe code"));
    Ok(unlisted.chain(safe).collect())
}

fn listed(map: &str) -> impl Iterator<Item = &str> {
    let section = map.split_once(SECTION).map_or("", |(_, rest)| rest);
    let section = section.split("\n## ").next().unwrap_or_default();
    section.lines().filter_map(|line| line.strip_prefix("- `")?.split('`').next())
}

#[cfg(test)]
mod tests {
    use super::super::rust::parse;
    use super::*;

    #[test]
    fn the_map_is_read_and_prose_does_not_count_as_code() {
        let map = format!(
            "# Map\n- `x.rs`: no\n{SECTION}\n\nText.\n\n- `a.rs`: why\n- `b.rs`: why\n\n## Next\n- `c.rs`: no\n"
        );
        assert_eq!(listed(&map).collect::<Vec<_>>(), ["a.rs", "b.rs"]);
        let is_unsafe = |text| parse("a.rs".as_ref(), text).unwrap().has_word(KEYWORD);
        assert!(
            is_unsafe("fn a() { if true { unsafe { b() } } }") && is_unsafe("macro_rules! a { () => { unsafe {} } }")
        );
        assert!(!is_unsafe("// unsafe\nfn a() { \"unsafe\"; }\n#[cfg(test)] mod tests { fn b() { unsafe {} } }"));
    }
}
