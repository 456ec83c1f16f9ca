//! A file fits in one reading, or says why it does not.

use std::path::{Path, PathBuf};

use super::read;
use crate::error::Result;

/// Longest file that needs no reason, in lines.
const MAX_LINES: usize = 500;
/// The start of a reason, in a comment of the file.
const REASON: &str = "Longer than 500 lines:";
/// The kinds of files that people read from top to bottom.
const EXTENSIONS: [&str; 4] = ["rs", "py", "c", "h"];

/// Names the files that are too long.
pub fn check(files: &[PathBuf]) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let is_source =
        |path: &&PathBuf| path.extension().is_some_and(|kind| EXTENSIONS.iter().any(|known| kind == *known));
    for path in files.iter().filter(is_source) {
        wrong.extend(too_long(path, &read(path)?));
    }
    Ok(wrong)
}

fn too_long(path: &Path, text: &str) -> Option<String> {
    let lines = text.lines().count();
    (lines > MAX_LINES && !text.contains(REASON)).then(|| {
        format!(
            "{} has {lines} lines: expected at most {MAX_LINES}, or a comment that begins with `{REASON}`",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_files_need_a_reason() {
        let long = "\n".repeat(MAX_LINES + 1);
        assert_eq!(too_long("a.rs".as_ref(), &long[1..]), None);
        assert!(too_long("a.rs".as_ref(), &long).is_some_and(|wrong| wrong.contains("a.rs has 501 lines")));
        assert_eq!(too_long("a.rs".as_ref(), &format!("// {REASON} one table.{long}")), None);
    }
}
