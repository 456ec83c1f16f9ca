//! What a directory or an archive is, told by what is in it. What must be an image is never taken for a root file system just
//! because it cannot be read as one.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde_json::Value;

use super::docker::MANIFEST;
use super::error::OciError;
use super::file_set::{MAX_DOCUMENT, open_regular};
use super::layout::{INDEX, MARK};
use crate::archive::{ArchiveError, EntryName, TarKind, TarStream, components};

/// What lists the images of an archive as Docker wrote it before 1.10.
const REPOSITORIES: &str = "repositories";
/// What skopeo puts beside the manifest in a directory.
const VERSION: &str = "version";
const DOCUMENTS: [&str; 5] = [MARK, INDEX, MANIFEST, REPOSITORIES, VERSION];

/// How images are kept in files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Form {
    /// An OCI image layout.
    Layout,
    /// What `docker save` writes.
    Docker,
    /// Skopeo's `dir:`.
    Dir,
    /// No image, but the content of one.
    RootFs,
}

impl Form {
    /// Looks through an archive, which messages call `path`; `pass` goes past the data of its present entry.
    pub fn of_archive<R: Read>(
        path: &Path,
        mut archive: TarStream<R>,
        pass: impl Fn(&mut TarStream<R>) -> Result<(), ArchiveError>,
    ) -> Result<Self, OciError> {
        let error = |source| OciError::Archive { path: path.to_owned(), source: Box::new(source) };
        let (mut root, mut below) = (Signs::default(), Signs::default());
        let mut only = Only::default();
        while let Some(entry) = archive.next().map_err(error)? {
            // Names that are none are refused by name when the archive is imported.
            let name = components(&entry.name).unwrap_or_default();
            let Some((first, rest)) = name.split_first() else { continue };
            only.add(first, entry.kind == TarKind::Directory || !rest.is_empty());
            let document =
                name.last().filter(|name| name_of_document(name).is_some() && entry.kind == TarKind::File(None));
            let data = document.and_then(|_| read_document(&mut archive));
            root.add(&name, || data.clone());
            below.add(rest, || data.clone());
            pass(&mut archive).map_err(error)?;
        }
        if archive.offset() == 0 {
            return Err(OciError::Empty { path: path.to_owned() });
        }
        Self::of_signs(path, &root, || only.directory().map(|directory| (directory, below)))
    }

    /// Looks through the directory `path`.
    pub fn of_directory(path: &Path) -> Result<Self, OciError> {
        let read = |source| OciError::Read { path: path.to_owned(), source };
        let (root, only) = Signs::of_directory(path).map_err(read)?;
        Self::of_signs(path, &root, || {
            let directory = only.directory()?;
            let (below, _) = Signs::of_directory(&path.join(OsStr::from_bytes(&directory))).ok()?;
            Some((directory, below))
        })
    }

    /// What has the signs `root`; `below` gives those in the only directory there, if it has nothing else.
    fn of_signs(path: &Path, root: &Signs, below: impl FnOnce() -> Option<(Vec<u8>, Signs)>) -> Result<Self, OciError> {
        match root.form(path)? {
            Self::RootFs => match below() {
                Some((directory, below)) if !matches!(below.form(path), Ok(Self::RootFs)) => {
                    Err(OciError::Below { path: path.to_owned(), directory: EntryName::new(&directory) })
                }
                _ => Ok(Self::RootFs),
            },
            form => Ok(form),
        }
    }
}

/// What images have and root file systems have not.
#[derive(Debug, Default)]
struct Signs {
    /// Those of [`DOCUMENTS`] that are there; `None` instead of the content where that could not be read.
    documents: BTreeMap<&'static str, Option<Vec<u8>>>,
    /// A blob of a layout.
    blob: Option<EntryName>,
    /// Something else at the root that is called by a digest.
    digest: Option<EntryName>,
}

impl Signs {
    fn add(&mut self, name: &[&[u8]], read: impl FnOnce() -> Option<Vec<u8>>) {
        match name {
            [b"blobs", b"sha256", name] if is_of_digest(name) => {
                self.blob.get_or_insert_with(|| EntryName::new(&[b"blobs/sha256/", *name].concat()));
            }
            [name, ..] if is_of_digest(name) => drop(self.digest.get_or_insert_with(|| EntryName::new(name))),
            [name] => {
                if let Some(document) = name_of_document(name) {
                    self.documents.insert(document, read());
                }
            }
            _ => {}
        }
    }

    fn of_directory(path: &Path) -> io::Result<(Self, Only)> {
        let (mut signs, mut only) = (Self::default(), Only::default());
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let name = entry.file_name();
            only.add(name.as_bytes(), entry.file_type()?.is_dir());
            signs.add(&[name.as_bytes()], || {
                let (mut file, _) = open_regular(&entry.path()).ok()?;
                read_document(&mut file)
            });
        }
        for entry in fs::read_dir(path.join("blobs/sha256")).into_iter().flatten() {
            signs.add(&[b"blobs", b"sha256", entry?.file_name().as_bytes()], || None);
        }
        Ok((signs, only))
    }

    /// What has these signs.
    fn form(&self, path: &Path) -> Result<Form, OciError> {
        let has = |document| self.documents.contains_key(document);
        let incomplete = |sign: &EntryName, missing| {
            Err(OciError::Incomplete { path: path.to_owned(), sign: sign.clone(), missing })
        };
        let named = |document: &str| EntryName::new(document.as_bytes());
        let manifest = self.manifest();
        if has(INDEX) && (has(MARK) || manifest.is_none() && (self.blob.is_some() || self.lists_images())) {
            return Ok(Form::Layout);
        }
        if let Some(form) = manifest {
            return Ok(form);
        }
        if has(REPOSITORIES) && self.digest.is_some() {
            return Err(OciError::Legacy { path: path.to_owned() });
        }
        if has(MARK) {
            return incomplete(&named(MARK), INDEX);
        }
        if let Some(blob) = &self.blob {
            return incomplete(blob, INDEX);
        }
        if let Some(digest) = &self.digest {
            return incomplete(digest, MANIFEST);
        }
        if self.is_skopeos() {
            return incomplete(&named(VERSION), MANIFEST);
        }
        Ok(Form::RootFs)
    }

    /// What `manifest.json` makes of it; applications have such files too.
    fn manifest(&self) -> Option<Form> {
        let content = self.documents.get(MANIFEST)?.as_deref().and_then(|data| serde_json::from_slice(data).ok());
        let beside = self.digest.is_some() || self.blob.is_some();
        match content {
            Some(Value::Array(images)) => {
                let is_image = |image: &Value| image.get("Config").is_some() || image.get("Layers").is_some();
                (beside || images.iter().any(is_image)).then_some(Form::Docker)
            }
            Some(document @ Value::Object(_)) => {
                let has = |field| document.get(field).is_some();
                let is_image = has("schemaVersion") && ["layers", "manifests", "fsLayers"].into_iter().any(has);
                (beside || self.is_skopeos() || is_image).then_some(Form::Dir)
            }
            // Whoever reads it tells what is wrong.
            _ if self.is_skopeos() => Some(Form::Dir),
            _ => beside.then_some(Form::Docker),
        }
    }

    /// Whether `index.json` is an index of images.
    fn lists_images(&self) -> bool {
        let index = self.documents.get(INDEX).and_then(Option::as_deref);
        let index = index.and_then(|data| serde_json::from_slice::<Value>(data).ok());
        index.is_some_and(|index| index.get("manifests").is_some_and(Value::is_array))
    }

    fn is_skopeos(&self) -> bool {
        let version = self.documents.get(VERSION).and_then(Option::as_deref);
        version.is_some_and(|version| version.starts_with(b"Directory Transport Version"))
    }
}

/// Whether there is but one directory at the root, and nothing else.
#[derive(Debug, Default)]
struct Only {
    first: Option<Vec<u8>>,
    others: bool,
}

impl Only {
    fn add(&mut self, name: &[u8], is_directory: bool) {
        self.others |= !is_directory || self.first.get_or_insert_with(|| name.to_owned()) != name;
    }

    fn directory(&self) -> Option<Vec<u8>> {
        self.first.clone().filter(|_| !self.others)
    }
}

fn name_of_document(name: &[u8]) -> Option<&'static str> {
    DOCUMENTS.into_iter().find(|document| document.as_bytes() == name)
}

/// Whether a name is made of a digest, perhaps with its algorithm before it or an ending behind.
fn is_of_digest(name: &[u8]) -> bool {
    let hex = name.strip_prefix(b"sha256:").unwrap_or(name);
    hex.split_at_checked(64)
        .is_some_and(|(hex, rest)| hex.iter().all(u8::is_ascii_hexdigit) && matches!(rest.first(), None | Some(b'.')))
}

/// Reads a document that is not too large to be one.
fn read_document(from: &mut impl Read) -> Option<Vec<u8>> {
    let mut data = Vec::new();
    from.take(MAX_DOCUMENT + 1).read_to_end(&mut data).ok()?;
    (data.len() as u64 <= MAX_DOCUMENT).then_some(data)
}

#[cfg(test)]
#[path = "form_test.rs"]
mod tests;
