//! Rust sources as trees of tokens, without their tests.

use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

use super::read;
use crate::error::{Error, Result};

/// A source file of a package.
pub struct Source {
    /// Relative to the root of the checkout.
    pub path: PathBuf,
    /// Its tokens, without attributes and code for tests only.
    pub tokens: Vec<TokenTree>,
}

impl Source {
    /// The folder of its package and the path in the package's `src`.
    pub fn place(&self) -> Option<(&Path, &Path)> {
        let src = self.path.ancestors().find(|folder| folder.ends_with("src"))?;
        Some((src.parent()?, self.path.strip_prefix(src).ok()?))
    }

    /// Whether its code has `word`, a name or a keyword.
    pub fn has_word(&self, word: &str) -> bool {
        has_word(&self.tokens, word)
    }
}

/// Reads the sources among `files` that are not for tests only: those below a `src`.
pub fn read_all(files: &[PathBuf]) -> Result<Vec<Source>> {
    let is_test = |path: &Path| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        name.ends_with("_test") || path.components().any(|part| part.as_os_str() == "testing")
    };
    let is_source = |path: &&PathBuf| {
        path.extension().is_some_and(|kind| kind == "rs")
            && path.components().any(|part| part.as_os_str() == "src")
            && !is_test(path)
    };
    files.iter().filter(is_source).map(|path| parse(path, &read(path)?)).collect()
}

/// Parses the text of the file at `path`.
pub fn parse(path: &Path, text: &str) -> Result<Source> {
    let tokens = text.parse::<TokenStream>().map_err(|error| Error::other(format!("{}: {error}", path.display())))?;
    Ok(Source { path: path.to_owned(), tokens: without_tests(tokens) })
}

fn has_word(tokens: &[TokenTree], word: &str) -> bool {
    tokens.iter().any(|token| match token {
        TokenTree::Ident(found) => found == word,
        TokenTree::Group(group) => has_word(&group.stream().into_iter().collect::<Vec<_>>(), word),
        _ => false,
    })
}

fn without_tests(tokens: TokenStream) -> Vec<TokenTree> {
    let mut left = Vec::new();
    let mut tokens = tokens.into_iter().peekable();
    let mut for_tests = false;
    while let Some(token) = tokens.next() {
        match &token {
            TokenTree::Punct(punct) if punct.as_char() == '#' => {
                let of_file = tokens.next_if(|next| matches!(next, TokenTree::Punct(punct) if punct.as_char() == '!'));
                let attribute = tokens.next_if(|next| is_group(next, Delimiter::Bracket));
                for_tests |=
                    of_file.is_none() && attribute.is_some_and(|attribute| is_for_tests(&attribute.to_string()));
            }
            // The attribute's item ends here.
            TokenTree::Punct(punct) if for_tests && punct.as_char() == ';' => for_tests = false,
            TokenTree::Group(group) if for_tests && group.delimiter() == Delimiter::Brace => for_tests = false,
            _ if for_tests => {}
            TokenTree::Group(group) => {
                let inner = without_tests(group.stream());
                left.push(Group::new(group.delimiter(), inner.into_iter().collect()).into());
            }
            _ => left.push(token),
        }
    }
    left
}

fn is_group(token: &TokenTree, delimiter: Delimiter) -> bool {
    matches!(token, TokenTree::Group(group) if group.delimiter() == delimiter)
}

fn is_for_tests(attribute: &str) -> bool {
    let attribute: String = attribute.split_whitespace().collect();
    attribute.starts_with("[cfg(")
        && (attribute.contains("test)") || attribute.contains("\"testing\""))
        && !attribute.contains("not(")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(text: &str) -> String {
        let source = parse("a.rs".as_ref(), text).unwrap();
        source.tokens.into_iter().collect::<TokenStream>().to_string()
    }

    #[test]
    fn code_for_tests_only_is_left_out() {
        assert_eq!(
            left("//! Doc.\nfn a() {} #[cfg(test)] mod tests { fn b() {} } fn c() {}"),
            "fn a () { } fn c () { }"
        );
        assert_eq!(left("#[cfg(any(test, feature = \"testing\"))] pub mod testing; fn a() {}"), "fn a () { }");
        assert_eq!(left("#[cfg(not(test))] fn a() {}"), "fn a () { }");
        assert_eq!(left("mod a { #[test] #[cfg(test)] fn b() {} fn c() {} }"), "mod a { fn c () { } }");
    }
}
