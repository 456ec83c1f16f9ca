//! Where detached VMs are known: a folder for each, with the socket of its API, in a folder that is the user's alone.

use std::fs::{self, DirBuilder};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use bellows_vmm::InstanceId;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::geteuid;

use super::client::Client;
use crate::error::{CliError, io_error};

/// The folder of all detached VMs of a user.
pub(crate) struct Place {
    folder: PathBuf,
}

/// The folder of one.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    /// The name of the VM, and of its first instance.
    pub(crate) name: String,
    folder: PathBuf,
}

impl Place {
    /// `$XDG_RUNTIME_DIR/bellows`; of root, without that, `/run/bellows`.
    ///
    /// # Errors
    /// There is no such place, it cannot be made, or it is not the user's alone.
    pub(crate) fn of_user() -> Result<Self, CliError> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
        let folder = match runtime {
            Some(runtime) => runtime.join("bellows"),
            None if geteuid().is_root() => "/run/bellows".into(),
            None => return Err(CliError::Missing("a place for running VMs", "XDG_RUNTIME_DIR")),
        };
        Self::at(folder)
    }

    /// The same in `folder`.
    pub(crate) fn at(folder: PathBuf) -> Result<Self, CliError> {
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io_error("make", folder)(error)),
            _ => {}
        }
        let found = fs::symlink_metadata(&folder).map_err(io_error("look at", &folder))?;
        let is_own = found.is_dir() && found.uid() == geteuid().as_raw() && found.mode().trailing_zeros() >= 6;
        if !is_own {
            let message = format!("`{}` is not the user's alone: expected a folder of mode 0700", folder.display());
            return Err(CliError::Conflict(message));
        }
        Ok(Self { folder })
    }

    /// Takes a name that no VM has.
    ///
    /// # Errors
    /// A VM has it, it is not a name, or the system refused.
    pub(crate) fn take(&self, name: &InstanceId) -> Result<Seat, CliError> {
        let seat = self.seat(name.as_str());
        let take = || DirBuilder::new().mode(0o700).create(&seat.folder);
        let taken = match take() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !seat.lives() => {
                seat.clear();
                take()
            }
            taken => taken,
        };
        match taken {
            Ok(()) => Ok(seat),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(CliError::Taken(format!(
                "a VM is called `{name}`: expected another name, or `bellows rm -f {name}`"
            ))),
            Err(error) => Err(io_error("make", &seat.folder)(error)),
        }
    }

    /// The VMs that run, by name. What others have left behind is removed.
    pub(crate) fn all(&self) -> Result<Vec<Seat>, CliError> {
        let entries = fs::read_dir(&self.folder).map_err(io_error("read", &self.folder))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut seats: Vec<_> =
            names.filter(|name| name.parse::<InstanceId>().is_ok()).map(|name| self.seat(&name)).collect();
        seats.retain(|seat| seat.lives() || !seat.clear());
        seats.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(seats)
    }

    /// The VM of that name.
    ///
    /// # Errors
    /// None runs.
    pub(crate) fn find(&self, name: &str) -> Result<Seat, CliError> {
        let found = name.parse::<InstanceId>().ok().map(|_| self.seat(name)).filter(Seat::lives);
        found.ok_or_else(|| CliError::NotThere(format!("no VM is called `{name}`: `bellows ps -a` shows all")))
    }

    fn seat(&self, name: &str) -> Seat {
        Seat { name: name.to_owned(), folder: self.folder.join(name) }
    }
}

impl Seat {
    /// The socket of its API.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("api.sock")
    }

    /// The configuration of its VM.
    pub(crate) fn configuration(&self) -> PathBuf {
        self.folder.join("vm.json")
    }

    /// Its log.
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// A client of its API.
    pub(crate) fn client(&self) -> Client {
        Client::new(self.name.clone(), self.socket())
    }

    /// Waits until the VM's process is gone, and removes what is left.
    pub(crate) fn await_end(&self) {
        // The server closes a connection without requests after a while, and all when it ends.
        while let Ok(mut stream) = UnixStream::connect(self.socket()) {
            let _ = stream.read(&mut [0]);
        }
        self.clear();
    }

    /// Whether somebody listens there, or is about to: the folder of a VM that is being made has no socket yet.
    fn lives(&self) -> bool {
        match try_connect(&self.socket()) {
            // It is slow to take connections.
            Ok(()) | Err(Errno::EAGAIN) => true,
            // Somebody has this name and is about to listen, or has died before.
            Err(Errno::ENOENT) => is_young(&self.folder),
            Err(_) => false,
        }
    }

    /// Removes what is left of a VM; returns whether it is gone.
    pub(crate) fn clear(&self) -> bool {
        let cleared = fs::remove_dir_all(&self.folder);
        if let Err(error) = &cleared {
            tracing::debug!(%error, path = %self.folder.display(), "what is left of a VM stays");
        }
        cleared.is_ok()
    }
}

/// Connects to a socket, and leaves again; never waits.
fn try_connect(path: &Path) -> nix::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)
}

/// Whether a folder was made less than ten seconds ago.
fn is_young(folder: &Path) -> bool {
    let made = fs::symlink_metadata(folder).and_then(|found| found.modified());
    made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age.as_secs() < 10))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixListener;
    use std::time::{Duration, SystemTime};

    use super::*;

    fn name(text: &str) -> InstanceId {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_belongs_to_one_vm_and_is_free_when_that_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::at(directory.path().join("bellows")).unwrap();
        let seat = place.take(&name("web")).unwrap();
        let listener = UnixListener::bind(seat.socket()).unwrap();
        let refused = place.take(&name("web")).unwrap_err().chain();
        assert!(refused.contains("`web`"), "{refused}");
        assert_eq!(place.all().unwrap().len(), 1);
        // Its process has died, and left its files.
        drop(listener);
        assert!(place.all().unwrap().is_empty());
        assert!(!seat.socket().exists());
        place.take(&name("web")).unwrap();
    }

    #[test]
    fn a_vm_that_is_being_made_keeps_its_name_for_a_while() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::at(directory.path().join("bellows")).unwrap();
        let seat = place.take(&name("web")).unwrap();
        assert!(place.take(&name("web")).is_err());
        let folder = fs::File::open(&seat.folder).unwrap();
        folder.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
        place.take(&name("web")).unwrap();
    }

    /// As of a process that is stopped: connections fill its queue.
    #[test]
    fn a_vm_that_takes_no_connection_is_there_and_blocks_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::at(directory.path().join("bellows")).unwrap();
        let seat = place.take(&name("web")).unwrap();
        let _listener = UnixListener::bind(seat.socket()).unwrap();
        while try_connect(&seat.socket()).is_ok() {}
        assert_eq!(try_connect(&seat.socket()), Err(Errno::EAGAIN));
        assert!(place.find("web").is_ok() && place.all().unwrap().len() == 1);
        assert!(place.find("other").is_err() && place.find("../web").is_err());
    }

    #[test]
    fn a_place_that_others_can_reach_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("bellows");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let refused = Place::at(folder.clone()).map(drop).unwrap_err().chain();
        assert!(refused.contains("0700"), "{refused}");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path(), &link).unwrap();
        assert!(Place::at(link).is_err());
    }
}
