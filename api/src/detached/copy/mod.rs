//! `bellows cp`: files and folders between this host and an instance, by the rules of `docker cp`.

mod place;
mod unpack;

use std::fs;
use std::io;
use std::path::Path;
use std::thread;

use bellows_archive::{Entries, Owner, pack};

use self::place::{Place, There, place};
use self::unpack::Unpacking;
use super::client::Client;
use super::{Found, find};
use crate::error::{CliError, UnpackError, io_error};
use crate::options::detached::CpArgs;

/// One of the two sides.
#[derive(Debug, Eq, PartialEq)]
enum Side<'a> {
    /// A tar stream on standard input or output.
    Stream,
    Here(&'a str),
    Instance {
        name: &'a str,
        /// Relative to its root where it is not absolute.
        path: &'a str,
    },
}

impl<'a> Side<'a> {
    fn parse(text: &'a str) -> Self {
        match text.split_once(':') {
            _ if text == "-" => Self::Stream,
            Some((name, path)) if !text.starts_with(['/', '.']) && !name.is_empty() && !path.is_empty() => {
                Self::Instance { name, path }
            }
            _ => Self::Here(text),
        }
    }
}

/// Copies.
pub(crate) fn cp(args: &CpArgs) -> Result<u8, CliError> {
    match (Side::parse(&args.source), Side::parse(&args.destination)) {
        (Side::Instance { .. }, Side::Instance { .. }) => {
            Err(CliError::Conflict("both sides are instances: expected one, and a path of this host or `-`".into()))
        }
        (Side::Instance { name, path }, to) => copy_out(args, &Remote::of(name, path)?, &to),
        (from, Side::Instance { name, path }) => copy_in(args, &from, &Remote::of(name, path)?),
        _ => Err(CliError::Conflict("neither side is an instance: expected NAME:PATH for one of them".into())),
    }?;
    Ok(0)
}

/// A path of an instance.
struct Remote {
    found: Found,
    path: String,
}

impl Remote {
    fn of(name: &str, path: &str) -> Result<Self, CliError> {
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { found: find(name)?, path })
    }

    fn client(&self) -> Client {
        self.found.client()
    }

    fn archive(&self, path: &str) -> String {
        self.found.path(&format!("/archive?path={}", encoded(path)))
    }

    /// What is there.
    fn look(&self) -> Result<There, CliError> {
        let said = self.client().call("GET", &self.found.path(&format!("/files?path={}", encoded(&self.path))), None);
        match said {
            Ok(said) if said["kind"] == "folder" => Ok(There::Folder),
            Ok(_) => Ok(There::File),
            Err(CliError::Refused { status: 404, .. }) => Ok(There::Nothing),
            Err(error) => Err(error),
        }
    }
}

fn copy_in(args: &CpArgs, from: &Side<'_>, to: &Remote) -> Result<(), CliError> {
    let Side::Here(source) = from else {
        let archive = to.archive(&to.path);
        return to.client().upload(
            &archive,
            |sink| io::copy(&mut io::stdin().lock(), sink).map(drop),
            "standard input",
        );
    };
    let source =
        if args.follow_link && !source.ends_with(['/', '.']) { format!("{source}/") } else { (*source).to_owned() };
    // A link to a file has no slash at its end.
    let source = match fs::metadata(&source) {
        Err(error) if args.follow_link && error.kind() == io::ErrorKind::NotADirectory => {
            fs::canonicalize(source.trim_end_matches('/')).map(|path| path.to_string_lossy().into_owned())
        }
        _ => Ok(source),
    };
    let source = source.map_err(io_error("find", &args.source))?;
    let metadata = fs::symlink_metadata(&source).map_err(io_error("read", &args.source))?;
    let name = place::name(&args.source).map_err(CliError::Conflict)?;
    let Place { folder, name } =
        place(metadata.is_dir(), &args.source, &name, to.look()?, &to.path).map_err(CliError::Conflict)?;
    let owner = if args.archive { Owner::Kept } else { Owner::Root };
    to.client().upload(&to.archive(&folder), move |sink| pack(Path::new(&source), &name, owner, sink), &args.source)
}

fn copy_out(args: &CpArgs, from: &Remote, to: &Side<'_>) -> Result<(), CliError> {
    let archive = from.archive(&from.path);
    let Side::Here(destination) = to else {
        return from.client().stream(&archive, &mut io::stdout().lock());
    };
    let there = match fs::metadata(destination) {
        Ok(found) if found.is_dir() => There::Folder,
        Ok(_) => There::File,
        Err(error) if error.kind() == io::ErrorKind::NotFound => There::Nothing,
        Err(error) => return Err(io_error("look at", *destination)(error)),
    };
    let (reader, mut writer) = io::pipe().map_err(io_error("make", "a pipe"))?;
    let mut unpacking = Unpacking::new(&from.path, destination, there, args.archive);
    thread::scope(|scope| {
        let unpacked = scope.spawn(move || {
            Entries::new(reader).each(|entry, content| unpacking.add(entry, content)).and_then(|()| unpacking.finish())
        });
        let streamed = from.client().stream(&archive, &mut writer);
        drop(writer);
        let unpacked = unpacked.join().unwrap_or_else(|_| Err(UnpackError::Place("a fault of Bellows".into())));
        match (streamed, unpacked) {
            // What the guest, or the way to it, says comes first; but a pipe breaks since the other end gave up.
            (Err(error), _) if !error.is_closed_output() => Err(error),
            (_, Err(error)) => Err(CliError::Unpack { path: (*destination).into(), source: Box::new(error) }),
            (streamed, Ok(())) => streamed,
        }
    })
}

/// A path in a query.
fn encoded(path: &str) -> String {
    let mut text = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/') {
            text.push(byte.into());
        } else {
            text += &format!("%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_what_docker_takes_it_for() {
        for (text, side) in [
            ("-", Side::Stream),
            ("web:/etc/x", Side::Instance { name: "web", path: "/etc/x" }),
            ("vm/web:x:y", Side::Instance { name: "vm/web", path: "x:y" }),
            ("./web:x", Side::Here("./web:x")),
            ("/a:b", Side::Here("/a:b")),
            ("web", Side::Here("web")),
            ("web:", Side::Here("web:")),
        ] {
            assert_eq!(Side::parse(text), side);
        }
    }

    #[test]
    fn a_path_is_one_word_of_a_query() {
        assert_eq!(encoded("/a b/ü?&%"), "/a%20b/%C3%BC%3F%26%25");
    }
}
