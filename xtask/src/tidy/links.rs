//! Pages link to files that exist.

use std::path::{Path, PathBuf};

use super::read;
use crate::error::Result;
use crate::workspace;

/// Names broken links.
pub fn check(files: &[PathBuf]) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for page in files.iter().filter(|path| path.extension().is_some_and(|kind| kind == "md")) {
        let folder = workspace::root().join(page.parent().unwrap_or(Path::new("")));
        let text = read(page)?;
        let missing = targets(&text).filter(|target| !folder.join(target).exists());
        wrong.extend(missing.map(|target| format!("{} links to `{target}`: no such file", page.display())));
    }
    Ok(wrong)
}

/// The files that a page links to, without fragments.
fn targets(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| {
        let (target, _) = rest.split_once(')')?;
        let file = target.split('#').next().unwrap_or_default();
        (!file.is_empty() && !file.contains("://") && !file.starts_with("mailto:")).then_some(file)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_within_a_page_and_to_other_hosts_are_not_checked() {
        let page = "[a](docs/a.md), [b](docs/b.md#part), ![c](c.svg), [d](#here), [e](https://example.com/)";
        assert_eq!(targets(page).collect::<Vec<_>>(), ["docs/a.md", "docs/b.md", "c.svg"]);
    }
}
