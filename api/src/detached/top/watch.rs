//! Looking at all VMs at once, each for a limited time.

use std::collections::BTreeMap;
use std::fs;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use bellows_block::page_cache::resident;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::model::{Seen, Snapshot};
use crate::detached::client::Client;
use crate::detached::memory::VmMemory;
use crate::detached::place::{Place, Seat};
use crate::error::{CliError, io_error};

/// Time for a VM to answer.
const LIMIT: Duration = Duration::from_secs(2);

/// Looks at the VMs of the user, again after each `period`, on a thread of its own, until nobody takes what it sees.
pub(super) fn start(period: Duration) -> Result<Receiver<Result<Snapshot, CliError>>, CliError> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let watch = move || {
        let mut next = Instant::now();
        while sender.send(look()).is_ok() {
            next = (next + period).max(Instant::now());
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    };
    let thread = thread::Builder::new().name("watch".into());
    thread.spawn(watch).map_err(io_error("watch", "the VMs"))?;
    Ok(receiver)
}

/// Looks at the VMs of the user.
pub(super) fn look() -> Result<Snapshot, CliError> {
    let seats = Place::of_user()?.all()?;
    let mut vms = ask_all(seats, LIMIT)?;
    let mut cached = BTreeMap::new();
    for layer in vms.iter_mut().filter_map(|vm| vm.memory.as_mut().ok()).flat_map(|memory| &mut memory.layers) {
        let path = layer.path.clone();
        layer.cached_bytes = *cached.entry(layer.digest.clone()).or_insert_with(|| cached_bytes(&path));
    }
    Ok(Snapshot { vms })
}

/// What of a file is in the page cache, if this process may know.
fn cached_bytes(path: &str) -> Option<u64> {
    // A VM that was taken over may name anything.
    let is_file = fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
    if is_file { resident(path.as_ref()).ok().map(|pages| pages.bytes()) } else { None }
}

/// Asks all VMs at once. One that does not answer in time delays none of the others.
fn ask_all(seats: Vec<Seat>, limit: Duration) -> Result<Vec<Seen>, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(io_error("talk to", "the VMs"))?.block_on(async {
        let mut asked = JoinSet::new();
        for seat in seats {
            asked.spawn(async move {
                let memory = ask(seat.client(), limit).await;
                Seen { vm: seat.name, memory }
            });
        }
        let mut vms = asked.join_all().await;
        vms.sort_by(|a, b| a.vm.cmp(&b.vm));
        Ok(vms)
    })
}

async fn ask(client: Client, limit: Duration) -> Result<VmMemory, String> {
    let said = timeout(limit, client.ask("GET", "/memory", None)).await;
    let said = said.map_err(|_| format!("no answer in {limit:?}"))?.map_err(|error| error.chain())?;
    serde_json::from_value(said).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Two VMs, of which one is silent: the other is seen all the same.
    #[test]
    fn a_silent_vm_is_shown_as_such_and_delays_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::at(directory.path().join("bellows")).unwrap();
        let seat = |name: &str| place.take(&name.parse().unwrap()).unwrap();
        let silent = UnixListener::bind(seat("silent").socket()).unwrap();
        let speaking = UnixListener::bind(seat("speaking").socket()).unwrap();
        let answer = thread::spawn(move || {
            // The first connection only finds out whether it lives.
            for stream in speaking.incoming() {
                let mut stream = stream.unwrap();
                if stream.read(&mut [0; 1024]).unwrap() != 0 {
                    let body = r#"{"resident_bytes": 5}"#;
                    let length = body.len();
                    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
                    return;
                }
            }
        });
        let seen = ask_all(place.all().unwrap(), Duration::from_millis(500)).unwrap();
        answer.join().unwrap();
        drop(silent);
        let names: Vec<_> = seen.iter().map(|seen| seen.vm.as_str()).collect();
        assert_eq!(names, ["silent", "speaking"]);
        assert!(seen[0].memory.as_ref().unwrap_err().contains("no answer"), "{:?}", seen[0]);
        assert_eq!(seen[1].memory.as_ref().unwrap().resident_bytes, Some(5));
    }

    #[test]
    fn only_files_are_looked_up_in_the_page_cache() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("layer");
        fs::write(&path, vec![1; 8192]).unwrap();
        assert_eq!(cached_bytes(path.to_str().unwrap()), Some(8192));
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(cached_bytes(pipe.to_str().unwrap()), None, "it would wait for a writer");
        assert_eq!(cached_bytes("/nowhere"), None);
    }
}
