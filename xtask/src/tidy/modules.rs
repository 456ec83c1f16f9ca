//! No circle of imports: of two sibling modules at most one imports the other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proc_macro2::{Delimiter, TokenTree};

use super::rust::Source;

/// A module's path in its crate: `["virtio", "blk"]`; the crate's root is empty.
type ModulePath = Vec<String>;

/// Names all circles, by crate.
pub fn check(sources: &[Source]) -> Vec<String> {
    let mut packages: BTreeMap<&Path, Package> = BTreeMap::new();
    for source in sources {
        if let Some((package, path)) = source.place() {
            packages.entry(package).or_default().add(module_path(path), &source.tokens);
        }
    }
    packages.iter().flat_map(|(folder, package)| package.circles(&folder.display().to_string())).collect()
}

/// The module that the file at `path` (below `src`) holds.
fn module_path(path: &Path) -> ModulePath {
    let parts = path.with_extension("");
    let mut parts: ModulePath = parts.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod" || parts.len() == 1 && (last == "lib" || last == "main")) {
        parts.pop();
    }
    parts
}

#[derive(Default)]
struct Package {
    /// The paths that each module names, as written.
    modules: BTreeMap<ModulePath, Vec<Vec<String>>>,
}

impl Package {
    fn add(&mut self, module: ModulePath, tokens: &[TokenTree]) {
        // A crate may have both a library and a program as its root.
        collect(tokens, self.modules.entry(module).or_default());
    }

    fn circles(&self, folder: &str) -> Vec<String> {
        // By the common parent: which child imports which, and the file that does.
        let mut known: BTreeMap<ModulePath, BTreeMap<String, BTreeMap<String, String>>> = BTreeMap::new();
        for (module, paths) in &self.modules {
            for target in paths.iter().filter_map(|path| self.resolve(module, path)) {
                let common = module.iter().zip(&target).take_while(|(one, other)| one == other).count();
                if let (Some(from), Some(to)) = (module.get(common), target.get(common)) {
                    let users = known.entry(module[..common].to_vec()).or_default().entry(from.clone()).or_default();
                    users.entry(to.clone()).or_insert_with(|| module.join("::"));
                }
            }
        }
        let mut circles = Vec::new();
        for (parent, edges) in &known {
            circles.extend(circle(edges).map(|circle| {
                let place = [&[folder.to_owned()], parent.as_slice()].concat().join("::");
                format!("modules of {place} import each other in a circle: {circle}")
            }));
        }
        circles
    }

    /// The module that defines the item at `path`, seen from `module`; `None` outside the crate.
    fn resolve(&self, module: &ModulePath, path: &[String]) -> Option<ModulePath> {
        let (mut place, mut rest) = match path.first()?.as_str() {
            "crate" => (Vec::new(), &path[1..]),
            "self" => (module.clone(), &path[1..]),
            _ => {
                let up = path.iter().take_while(|part| *part == "super").count();
                (module[..module.len().checked_sub(up)?].to_vec(), &path[up..])
            }
        };
        // Each step enters a module or follows a re-export; a few steps suffice for any real path.
        for _ in 0..16 {
            let Some((next, behind)) = rest.split_first() else { break };
            let inner = [place.as_slice(), std::slice::from_ref(next)].concat();
            if self.modules.contains_key(&inner) {
                (place, rest) = (inner, behind);
                continue;
            }
            let exported = self.modules.get(&place)?.iter().find(|path| path.len() > 1 && path.last() == Some(next));
            match exported.and_then(|path| self.child_of(&place, path)) {
                Some(child) => place = child,
                None => break,
            }
        }
        Some(place)
    }

    /// The first module of a path in `module`, if it is a child of that.
    fn child_of(&self, module: &ModulePath, path: &[String]) -> Option<ModulePath> {
        let first = if path.first()? == "self" { path.get(1)? } else { path.first()? };
        let child = [module.as_slice(), std::slice::from_ref(first)].concat();
        self.modules.contains_key(&child).then_some(child)
    }
}

/// Collects the paths that `tokens` name: `a::{b, c::d}` are `a::b` and `a::c::d`.
fn collect(tokens: &[TokenTree], paths: &mut Vec<Vec<String>>) {
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Ident(_) => at += path(&tokens[at..], &[], paths),
            TokenTree::Group(group) => {
                collect(&group.stream().into_iter().collect::<Vec<_>>(), paths);
                at += 1;
            }
            _ => at += 1,
        }
    }
}

/// Collects the path that `tokens` begin with, behind `prefix`; returns how many tokens it has.
fn path(tokens: &[TokenTree], prefix: &[String], paths: &mut Vec<Vec<String>>) -> usize {
    let mut parts = prefix.to_vec();
    let mut at = 0;
    loop {
        match tokens.get(at) {
            Some(TokenTree::Ident(word)) => parts.push(word.to_string()),
            Some(TokenTree::Group(group)) if at > 0 && group.delimiter() == Delimiter::Brace => {
                let inner: Vec<_> = group.stream().into_iter().collect();
                let mut next = 0;
                while next < inner.len() {
                    next += if matches!(inner[next], TokenTree::Ident(_)) {
                        path(&inner[next..], &parts, paths)
                    } else {
                        1
                    };
                }
                return at + 1;
            }
            _ => break,
        }
        at += 1;
        let is_colon = |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
        if !(is_colon(at) && is_colon(at + 1)) {
            break;
        }
        at += 2;
    }
    if parts.len() > 1 {
        paths.push(parts);
    }
    at.max(1)
}

/// Describes one circle among modules, each of which maps to its imports and the files with them.
fn circle(edges: &BTreeMap<String, BTreeMap<String, String>>) -> Option<String> {
    fn walk<'a>(
        edges: &'a BTreeMap<String, BTreeMap<String, String>>,
        at: &'a str,
        way: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
    ) -> Option<String> {
        if let Some(start) = way.iter().position(|known| *known == at) {
            let steps = way[start..].iter().zip(way[start + 1..].iter().chain([&at]));
            let said = steps.map(|(from, to)| format!("{from} -> {to} (in {})", edges[*from][*to]));
            return Some(said.collect::<Vec<_>>().join(", "));
        }
        if !done.insert(at) {
            return None;
        }
        way.push(at);
        let found = edges.get(at).and_then(|known| known.keys().find_map(|next| walk(edges, next, way, done)));
        way.pop();
        found
    }
    let mut done = BTreeSet::new();
    edges.keys().find_map(|start| walk(edges, start, &mut Vec::new(), &mut done))
}

#[cfg(test)]
mod tests {
    use super::super::rust::parse;
    use super::*;

    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<_> = files.iter().map(|(path, text)| parse(path.as_ref(), text).unwrap()).collect();
        check(&sources)
    }

    #[test]
    fn a_chain_is_not_a_circle() {
        let files = [
            ("a/src/lib.rs", "mod one; mod two; pub use one::One;"),
            ("a/src/one.rs", "use crate::two::{self, Two}; struct One;"),
            ("a/src/two.rs", "struct Two; fn two() -> std::io::Result<()> {}"),
        ];
        assert_eq!(circles(&files), [""; 0]);
    }

    #[test]
    fn exports_of_the_root_and_names_in_code_lead_to_circles_too() {
        let files = [
            ("a/src/lib.rs", "mod one; mod two; pub use one::{One, Other as Another};"),
            ("a/src/one.rs", "use crate::two::Two;"),
            ("a/src/two.rs", "fn two(one: &crate::One) {}"),
        ];
        assert_eq!(
            circles(&files),
            ["modules of a import each other in a circle: one -> two (in one), two -> one (in two)"]
        );
    }

    #[test]
    fn circles_of_three_and_of_folders_are_found() {
        let files = [
            ("a/src/b/mod.rs", "mod c; mod d; mod e; mod a;"),
            ("a/src/b/a.rs", ""),
            ("a/src/b/c.rs", "use super::{a, d};"),
            ("a/src/b/d/mod.rs", "mod deep;"),
            ("a/src/b/d/deep.rs", "use super::super::e::{f::{G}};"),
            ("a/src/b/e.rs", "use crate::b::c::C;"),
        ];
        assert_eq!(
            circles(&files),
            [
                "modules of a::b import each other in a circle: c -> d (in b::c), d -> e (in b::d::deep), e -> c (in b::e)"
            ]
        );
    }
}
