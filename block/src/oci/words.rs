//! What images and registries say of themselves, in messages.

use std::fmt::Display;

/// Characters that are quoted of a text: its beginning, and its end, where parsers say at what they stumbled.
const SHOWN: (usize, usize) = (150, 50);
/// Most things that a message lists.
pub(super) const MAX_LIST: usize = 20;

/// Words of somebody else's, fit for a terminal: on one line, and not whole where they are long.
pub(super) fn quoted(words: impl Display) -> String {
    let text: Vec<char> = words.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let (start, end) = SHOWN;
    if text.len() <= start + end {
        return text.into_iter().collect();
    }
    let (start, end) = (&text[..start], &text[text.len() - end..]);
    start.iter().chain(&['.'; 3]).chain(end).collect()
}

/// Words for a message, the first of many.
pub(super) fn listed(words: &[String]) -> String {
    let more = if words.len() > MAX_LIST { ", ..." } else { "" };
    format!("{}{more}", words[..words.len().min(MAX_LIST)].join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_short_and_printable() {
        assert_eq!(quoted("linux/amd64"), "linux/amd64");
        assert_eq!(quoted("a\nb\u{1b}[31m"), "a b [31m");
        assert_eq!(quoted("x".repeat(200)), "x".repeat(200));
        let long = quoted(format!("{}{} at line 1", "\u{e9}".repeat(1 << 20), "y".repeat(200)));
        assert_eq!(long.chars().count(), 203);
        assert!(long.starts_with("\u{e9}") && long.ends_with("y at line 1"), "{long}");
    }

    #[test]
    fn lists_are_short() {
        let words: Vec<_> = (0..100).map(|number| number.to_string()).collect();
        assert_eq!(listed(&words[..2]), "0, 1");
        assert!(listed(&words).ends_with("18, 19, ..."));
    }
}
