//! The difference of two root file systems as an OCI layer, from one tar to another: no root rights needed.
//!
//! Source: OCI image specification, `layer.md`, "Representing Changes".

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tar::{Archive, Builder, Entry, EntryType, Header};

/// All that makes one entry differ from another.
#[derive(Debug, PartialEq, Eq)]
struct Fingerprint {
    kind: u8,
    mode: u32,
    owner: (u64, u64),
    time: u64,
    link: Option<PathBuf>,
    device: Option<(u32, u32)>,
    attributes: Vec<(String, Vec<u8>)>,
    content: [u8; 32],
}

/// The layer that turns `lower` into `upper`; both are uncompressed tars.
pub fn layer(lower: &[u8], upper: &[u8]) -> io::Result<Vec<u8>> {
    let (before, after) = (fingerprints(lower)?, fingerprints(upper)?);
    let mut wanted = BTreeSet::new();
    for (path, fingerprint) in &after {
        if before.get(path) != Some(fingerprint) {
            want(path, &after, &mut wanted);
        }
    }
    let gone: Vec<&PathBuf> = before.keys().filter(|path| !after.contains_key(*path)).collect();
    let topmost = gone.iter().filter(|path| path.parent().is_none_or(|parent| !gone.contains(&&parent.to_path_buf())));

    let mut out = Builder::new(Vec::new());
    let mut archive = Archive::new(upper);
    for entry in archive.entries()? {
        let mut entry = entry?;
        if wanted.contains(&clean(&entry.path()?)) {
            copy(&mut entry, &mut out)?;
        }
    }
    for path in topmost {
        whiteout(&mut out, path)?;
    }
    out.into_inner()
}

/// Adds an empty `.wh.` file that hides `path` of the layers below.
pub fn whiteout(out: &mut Builder<Vec<u8>>, path: &Path) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    out.append_data(&mut header, path.with_file_name(format!(".wh.{name}")), io::empty())
}

/// A path comes with the directories above it, or their modes and owners would be lost, and a hard link with its target.
fn want(path: &Path, all: &BTreeMap<PathBuf, Fingerprint>, wanted: &mut BTreeSet<PathBuf>) {
    for ancestor in path.ancestors() {
        wanted.insert(ancestor.to_path_buf());
    }
    if let Some(Fingerprint { kind: b'1', link: Some(target), .. }) = all.get(path)
        && !wanted.contains(target)
    {
        want(target, all, wanted);
    }
}

fn clean(path: &Path) -> PathBuf {
    path.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect()
}

fn fingerprints(tar: &[u8]) -> io::Result<BTreeMap<PathBuf, Fingerprint>> {
    let mut all = BTreeMap::new();
    for entry in Archive::new(tar).entries()? {
        let mut entry = entry?;
        let attributes = attributes(&mut entry)?;
        let path = clean(&entry.path()?);
        let is_hard_link = entry.header().entry_type() == EntryType::Link;
        let link = entry.link_name()?.map(|link| if is_hard_link { clean(&link) } else { link.into_owned() });
        let mut content = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match entry.read(&mut buffer)? {
                0 => break,
                length => content.update(&buffer[..length]),
            }
        }
        let header = entry.header();
        let device = match header.entry_type() {
            EntryType::Char | EntryType::Block => header.device_major()?.zip(header.device_minor()?),
            _ => None,
        };
        let fingerprint = Fingerprint {
            kind: header.entry_type().as_byte(),
            mode: header.mode()?,
            owner: (header.uid()?, header.gid()?),
            time: header.mtime()?,
            link,
            device,
            attributes,
            content: content.finalize().into(),
        };
        all.insert(path, fingerprint);
    }
    Ok(all)
}

/// The extended attributes, as PAX records.
fn attributes<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for record in entry.pax_extensions()?.into_iter().flatten() {
        let record = record?;
        if let Ok(key) = record.key()
            && key.starts_with("SCHILY.xattr.")
        {
            found.push((key.to_owned(), record.value_bytes().to_vec()));
        }
    }
    Ok(found)
}

fn copy<R: Read>(entry: &mut Entry<'_, R>, out: &mut Builder<Vec<u8>>) -> io::Result<()> {
    let attributes = attributes(entry)?;
    if !attributes.is_empty() {
        out.append_pax_extensions(attributes.iter().map(|(key, value)| (key.as_str(), value.as_slice())))?;
    }
    let mut header = entry.header().clone();
    let path = entry.path()?.into_owned();
    match entry.link_name()? {
        Some(link) if matches!(header.entry_type(), EntryType::Link | EntryType::Symlink) => {
            out.append_link(&mut header, path, &link)
        }
        _ => out.append_data(&mut header, path, entry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar(files: &[(&str, &str)]) -> Vec<u8> {
        let mut out = Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = Header::new_gnu();
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            if path.ends_with('/') {
                header.set_entry_type(EntryType::Directory);
            }
            header.set_size(content.len() as u64);
            out.append_data(&mut header, path, content.as_bytes()).unwrap();
        }
        out.into_inner().unwrap()
    }

    fn names(tar: &[u8]) -> Vec<String> {
        let mut archive = Archive::new(tar);
        archive.entries().unwrap().map(|entry| clean(&entry.unwrap().path().unwrap()).display().to_string()).collect()
    }

    #[test]
    fn holds_what_changed_with_its_directories_and_whiteouts() {
        let lower = tar(&[("d/", ""), ("d/same", "1"), ("d/changed", "1"), ("gone/", ""), ("gone/inner", "1")]);
        let upper = tar(&[("d/", ""), ("d/same", "1"), ("d/changed", "2"), ("new", "1")]);
        assert_eq!(names(&layer(&lower, &upper).unwrap()), ["d", "d/changed", "new", ".wh.gone"]);
    }

    #[test]
    fn equal_trees_make_an_empty_layer() {
        let tree = tar(&[("d/", ""), ("d/same", "1")]);
        assert!(names(&layer(&tree, &tree).unwrap()).is_empty());
    }
}
