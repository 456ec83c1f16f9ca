//! Files that programs expect in a root file system, and the accounts that it lists. Files are opened from within, so that
//! no link of an image leads out of it.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use bellows_protocol::user::User;
use nix::sched::{CloneFlags, unshare};

use crate::accounts::{self, Credentials};
use crate::error::{AgentError, Result};
use crate::network::Resolver;

/// Largest `/etc/passwd` or `/etc/group` that is read, in bytes.
const MAX_ACCOUNTS: u64 = 4 << 20;
/// Bytes of a file that are read to tell whether it has content.
const MAX_LOOK: u64 = 64 << 10;

/// Adds missing files and the working directory to the root file system at `root`. With a `resolver`, the instance shares the VM's
/// network, and the image's own idea of a network goes.
///
/// # Errors
/// [`AgentError::Path`] for the working directory, [`AgentError::System`].
pub fn furnish(root: &Path, hostname: &str, working_directory: &str, resolver: Option<&Resolver>) -> Result<()> {
    within(root, || {
        for (path, given, own) in files(hostname, resolver) {
            // Most programs work without it.
            if let Err(error) = give(Path::new(path), &given, own) {
                tracing::warn!(path, %error, "cannot add a file to the instance");
            }
        }
        if let Err(error) = link(Path::new("/etc/mtab"), "/proc/mounts") {
            tracing::warn!(%error, "no /etc/mtab");
        }
        make_working_directory(Path::new(working_directory))
    })?
}

/// The account of `user` in the root file system at `root`.
///
/// # Errors
/// [`AgentError::Account`], [`AgentError::Path`], [`AgentError::Image`], [`AgentError::System`].
pub fn credentials(root: &Path, user: &User) -> Result<Credentials> {
    let (passwd, group) = within(root, || Ok::<_, AgentError>((read("/etc/passwd")?, read("/etc/group")?)))??;
    Ok(accounts::resolve(user, &passwd, &group)?)
}

/// Does `work` on a thread whose root directory is `root`.
fn within<T: Send>(root: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    let enter = || -> Result<T> {
        let before = fs::File::open("/").map_err(AgentError::path("open", Path::new("/")))?;
        // Root and working directory are this thread's own from here on.
        unshare(CloneFlags::CLONE_FS).map_err(AgentError::system("unshare"))?;
        nix::unistd::chroot(root).map_err(AgentError::path("change the root directory to", root))?;
        nix::unistd::chdir("/").map_err(AgentError::path("enter", root))?;
        let result = work();
        // A joined thread may keep its root a moment longer, and the root could not be unmounted then.
        nix::unistd::fchdir(&before).and_then(|()| nix::unistd::chroot(".")).map_err(AgentError::system("chroot"))?;
        Ok(result)
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("furnish".into()).spawn_scoped(scope, enter);
        let thread = thread.map_err(AgentError::system("clone"))?;
        thread.join().unwrap_or_else(|_| Err(AgentError::system("clone")(io::Error::other("the thread panicked"))))
    })
}

/// What to do with an image's own file that has content.
#[derive(Debug, Clone, Copy)]
enum Own<'a> {
    Stays,
    /// Kept, with a line added for each missing name of the loopback.
    StaysWith([&'a str; 2]),
    /// Replaced: it belongs to the machine that made the image.
    Goes,
}

/// The files, their content, and what to do with the image's own.
///
/// If the only network of the instance is its loopback, its own name is the loopback, and no name server answers: the address is the
/// resolvers' default, spelt out for programs that read the file. Otherwise its own name is the VM's address.
fn files<'a>(hostname: &'a str, resolver: Option<&Resolver>) -> [(&'static str, String, Own<'a>); 3] {
    let mut hosts = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    let addresses = resolver.map(Resolver::own_addresses).filter(|addresses| !addresses.is_empty());
    for address in addresses.unwrap_or_else(|| vec![Ipv4Addr::LOCALHOST.into()]) {
        hosts.push_str(&format!("{address}\t{hostname}\n"));
    }
    let without = "# No name server is known: none answers.\nnameserver 127.0.0.1\n";
    let resolv = match resolver.and_then(Resolver::resolv_conf) {
        Some(text) => (text, Own::Goes),
        None => (without.to_owned(), Own::Stays),
    };
    let own_hosts = if resolver.is_some() { Own::Goes } else { Own::StaysWith(["localhost", hostname]) };
    [
        ("/etc/hosts", hosts, own_hosts),
        ("/etc/hostname", format!("{hostname}\n"), Own::Goes),
        ("/etc/resolv.conf", resolv.0, resolv.1),
    ]
}

/// Adds a file if the image's own is missing or has no content. Tools leave empty files behind, as mount points for a
/// container's, and links to files that a service would write.
fn give(path: &Path, given: &str, own: Own<'_>) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => return Ok(()),
        Ok(_) => {
            let mut text = Vec::new();
            fs::File::open(path)?.take(MAX_LOOK).read_to_end(&mut text)?;
            if lines(&text).next().is_some() {
                match own {
                    Own::Stays => return Ok(()),
                    Own::StaysWith(names) => return add_names(path, &text, names),
                    Own::Goes => {}
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_parent(path)?,
        Err(error) => return Err(error),
    }
    remove(path)?;
    OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?.write_all(given.as_bytes())
}

/// The lines with content, without comments and white space.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = text.split(|&byte| byte == b'\n');
    lines
        .map(|line| line.split(|&byte| byte == b'#').next().unwrap_or_default().trim_ascii())
        .filter(|line| !line.is_empty())
}

/// Adds lines to a file of hosts, whose first bytes are `text`.
fn add_names(path: &Path, text: &[u8], names: [&str; 2]) -> io::Result<()> {
    let has = |name: &str| {
        lines(text).any(|line| line.split(u8::is_ascii_whitespace).skip(1).any(|word| word == name.as_bytes()))
    };
    let mut added: String = names.iter().filter(|name| !has(name)).map(|name| format!("127.0.0.1\t{name}\n")).collect();
    if added.is_empty() {
        return Ok(());
    }
    added.insert(0, '\n');
    OpenOptions::new().append(true).open(path)?.write_all(added.as_bytes())
}

fn link(path: &Path, target: &str) -> io::Result<()> {
    make_parent(path)?;
    match std::os::unix::fs::symlink(target, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| DirBuilder::new().recursive(true).mode(0o755).create(parent))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Owned by root, as with Docker and runc, whatever user the program runs as.
fn make_working_directory(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(AgentError::path("make the working directory", path))
}

/// A file of accounts; empty if the image has none.
fn read(path: &'static str) -> Result<Vec<u8>> {
    let failed = || AgentError::path("read the image's", path);
    // Without waiting for the other end, if it is a pipe.
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed()(error)),
    };
    if !file.metadata().map_err(failed())?.is_file() {
        return Err(AgentError::Image { path, problem: "is not a regular file".into() });
    }
    let mut text = Vec::new();
    file.take(MAX_ACCOUNTS + 1).read_to_end(&mut text).map_err(failed())?;
    if text.len() as u64 > MAX_ACCOUNTS {
        return Err(AgentError::Image { path, problem: format!("has more than {MAX_ACCOUNTS} bytes") });
    }
    Ok(text)
}

#[cfg(test)]
#[path = "furnish_test.rs"]
mod tests;
