//! PAX extended headers (POSIX.1-2017, pax, "pax Extended Header"): records of `LENGTH KEYWORD=VALUE\n`, values being any
//! bytes, line feeds included.

use super::gnu_sparse::PaxSparse;
use crate::erofs::Timestamp;

/// Marks an empty file that stands for a socket: tar has no type for those. Directories are imported through an archive
/// that has this mark.
pub(crate) const SOCKET: &[u8] = b"BELLOWS.socket";

/// What an extended header says about the entry behind it.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct PaxHeader {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<i64>,
    pub gid: Option<i64>,
    pub mtime: Option<Timestamp>,
    /// Full names and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Access control lists in text, by the attribute they become.
    pub acls: Vec<(&'static [u8], Vec<u8>)>,
    pub sparse: PaxSparse,
    /// The entry, an empty file, stands for a socket.
    pub socket: bool,
}

impl PaxHeader {
    /// Reads an extended header. Keywords that say nothing about a layer are skipped.
    ///
    /// # Errors
    /// What is wrong with which record.
    pub fn parse(mut data: &[u8]) -> Result<Self, String> {
        let mut header = Self::default();
        while !data.is_empty() {
            let (keyword, value, rest) = record(data).ok_or("a PAX record has a wrong length")?;
            data = rest;
            header.take(keyword, value).ok_or_else(|| {
                let shown = &value[..value.len().min(64)];
                format!("the PAX record `{}` has the value `{}`", keyword.escape_ascii(), shown.escape_ascii())
            })?;
        }
        Ok(header)
    }

    fn take(&mut self, keyword: &[u8], value: &[u8]) -> Option<()> {
        // An empty value means that the header's own counts.
        match keyword {
            b"path" => self.path = non_empty(value),
            b"linkpath" => self.link = non_empty(value),
            b"size" => self.size = number(value)?,
            b"uid" => self.uid = number(value)?,
            b"gid" => self.gid = number(value)?,
            b"SCHILY.acl.access" => self.acls.push((b"system.posix_acl_access", value.to_vec())),
            b"SCHILY.acl.default" => self.acls.push((b"system.posix_acl_default", value.to_vec())),
            SOCKET => self.socket = value == b"1",
            b"mtime" => self.mtime = if value.is_empty() { None } else { Some(timestamp(value)?) },
            _ => {
                if let Some(name) = keyword.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(keyword) = keyword.strip_prefix(b"GNU.sparse.") {
                    self.sparse.take(keyword, value)?;
                }
            }
        }
        Some(())
    }
}

/// Appends a record, which states its own length.
pub(crate) fn write_record(into: &mut Vec<u8>, keyword: &[u8], value: &[u8]) {
    let body = keyword.len() + value.len() + b" =\n".len();
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    into.extend(length.to_string().as_bytes());
    into.push(b' ');
    into.extend(keyword);
    into.push(b'=');
    into.extend(value);
    into.push(b'\n');
}

/// Takes the first record off.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&data[..space]).ok()?.parse().ok()?;
    let (record, rest) = data.split_at_checked(length)?;
    let (keyword_value, end) = record.get(space + 1..)?.split_last().map(|(last, init)| (init, *last))?;
    let equals = keyword_value.iter().position(|byte| *byte == b'=')?;
    (end == b'\n').then_some((&keyword_value[..equals], &keyword_value[equals + 1..], rest))
}

fn non_empty(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty()).then(|| value.to_vec())
}

fn number<T: std::str::FromStr>(value: &[u8]) -> Option<Option<T>> {
    if value.is_empty() { Some(None) } else { std::str::from_utf8(value).ok()?.parse().ok().map(Some) }
}

/// A decimal number of seconds, perhaps negative, perhaps with a fraction; what is below a nanosecond is cut off.
fn timestamp(value: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let digits = &fraction[..fraction.len().min(9)];
    let nanoseconds: u32 = format!("{digits:0<9}").parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some(Timestamp { seconds: seconds.checked_sub(1)?, nanoseconds: 1_000_000_000 - nanoseconds });
    }
    Some(Timestamp { seconds, nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(keyword: &str, value: &[u8]) -> Vec<u8> {
        let mut line = Vec::new();
        write_record(&mut line, keyword.as_bytes(), value);
        line
    }

    #[test]
    fn values_may_hold_line_feeds_and_equals_signs() {
        let value = b"\n20 size=99999\n=\0\xff";
        let data = [line("SCHILY.xattr.security.capability", value), line("path", b"a=b\nc")].concat();
        let header = PaxHeader::parse(&data).unwrap();
        assert_eq!(header.xattrs, [(b"security.capability".to_vec(), value.to_vec())]);
        assert_eq!(header.path.unwrap(), b"a=b\nc");
        assert_eq!(header.size, None);
    }

    #[test]
    fn times_before_1970_and_below_a_second() {
        let at = |text: &str| timestamp(text.as_bytes());
        assert_eq!(at("12.5"), Some(Timestamp { seconds: 12, nanoseconds: 500_000_000 }));
        assert_eq!(at("12.1234567891"), Some(Timestamp { seconds: 12, nanoseconds: 123_456_789 }));
        assert_eq!(at("-1.25"), Some(Timestamp { seconds: -2, nanoseconds: 750_000_000 }));
        assert_eq!(at("-0.25"), Some(Timestamp { seconds: -1, nanoseconds: 750_000_000 }));
        assert_eq!(at("1."), Some(Timestamp { seconds: 1, nanoseconds: 0 }));
        for bad in ["", "x", "1.x", "1.-5", ".5", "99999999999999999999"] {
            assert_eq!(at(bad), None, "{bad}");
        }
    }

    #[test]
    fn wrong_records_are_refused() {
        for bad in [
            &b"x"[..],
            b"4 a=\n",
            b"99 a=b\n",
            b"6 a=bc",
            b"0 a=b\n",
            b"1 ",
            b"6 path\n",
            b"999999999999999999999 a=b\n",
        ] {
            assert!(PaxHeader::parse(bad).is_err(), "{}", bad.escape_ascii());
        }
        let error = PaxHeader::parse(&line("size", b"-1")).unwrap_err();
        assert!(error.contains("size") && error.contains("-1"), "{error}");
    }
}
