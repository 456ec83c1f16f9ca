//! Tar archives with entries of any kind, sensible or not.

use tar::{Builder, EntryType, Header};

/// An archive being built.
pub struct Archive {
    builder: Builder<Vec<u8>>,
}

/// An entry's attributes, to be changed before it is added.
#[derive(Clone)]
pub struct Entry {
    /// Its name.
    pub name: Vec<u8>,
    /// Its type.
    pub kind: EntryType,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Data of a file.
    pub data: Vec<u8>,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Seconds since 1970.
    pub mtime: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// PAX records that precede the entry.
    pub pax: Vec<(String, Vec<u8>)>,
}

impl Entry {
    /// One of this type with the usual attributes.
    pub fn new(name: impl AsRef<[u8]>, kind: EntryType) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            kind,
            link: Vec::new(),
            data: Vec::new(),
            mode: if kind.is_dir() { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
            device: (0, 0),
            pax: Vec::new(),
        }
    }

    /// With a PAX record before it.
    pub fn pax(mut self, keyword: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax.push((keyword.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// With other permissions.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// With another owner and group.
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }
}

impl Default for Archive {
    fn default() -> Self {
        Self::new()
    }
}

impl Archive {
    /// One without entries.
    pub fn new() -> Self {
        Self { builder: Builder::new(Vec::new()) }
    }

    /// Adds an entry.
    #[allow(clippy::should_implement_trait, reason = "an archive is not a number")]
    pub fn add(mut self, entry: Entry) -> Self {
        if !entry.pax.is_empty() {
            let records: Vec<_> =
                entry.pax.iter().map(|(keyword, value)| (keyword.as_str(), value.as_slice())).collect();
            self.builder.append_pax_extensions(records).unwrap();
        }
        let mut header = Header::new_gnu();
        let gnu = header.as_gnu_mut().unwrap();
        put(&mut self.builder, &mut gnu.name, &entry.name, b'L');
        put(&mut self.builder, &mut gnu.linkname, &entry.link, b'K');
        header.set_entry_type(entry.kind);
        header.set_size(entry.data.len() as u64);
        header.set_mode(entry.mode);
        header.set_uid(entry.uid);
        header.set_gid(entry.gid);
        header.set_mtime(entry.mtime);
        header.set_device_major(entry.device.0).unwrap();
        header.set_device_minor(entry.device.1).unwrap();
        header.set_cksum();
        self.builder.append(&header, entry.data.as_slice()).unwrap();
        self
    }

    /// Adds a regular file.
    pub fn file(self, name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        let data = data.as_ref().to_vec();
        self.add(Entry { data, ..Entry::new(name, EntryType::Regular) })
    }

    /// Adds a directory.
    pub fn directory(self, name: impl AsRef<[u8]>) -> Self {
        self.add(Entry::new(name, EntryType::Directory))
    }

    /// Adds a symbolic link.
    pub fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        let link = target.as_ref().to_vec();
        self.add(Entry { link, mode: 0o777, ..Entry::new(name, EntryType::Symlink) })
    }

    /// Adds a hard link.
    pub fn hard_link(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        let link = target.as_ref().to_vec();
        self.add(Entry { link, ..Entry::new(name, EntryType::Link) })
    }

    /// Adds a device.
    pub fn device(self, name: impl AsRef<[u8]>, kind: EntryType, major: u32, minor: u32) -> Self {
        self.add(Entry { device: (major, minor), ..Entry::new(name, kind) })
    }

    /// The archive's bytes.
    pub fn finish(self) -> Vec<u8> {
        self.builder.into_inner().unwrap()
    }
}

/// Fills a header's field, through an entry of GNU's before it where the value is too long.
fn put(builder: &mut Builder<Vec<u8>>, field: &mut [u8; 100], value: &[u8], kind: u8) {
    if value.len() > field.len() {
        let mut header = Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..13].copy_from_slice(b"././@LongLink");
        header.set_entry_type(EntryType::new(kind));
        header.set_size(value.len() as u64 + 1);
        header.set_mode(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        builder.append(&header, [value, b"\0"].concat().as_slice()).unwrap();
    }
    let length = value.len().min(field.len());
    field[..length].copy_from_slice(&value[..length]);
}
