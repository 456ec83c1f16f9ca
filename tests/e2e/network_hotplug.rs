//! Network interfaces that come and go while a guest runs.

use std::io::Write as _;
use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use bellows_vmm::{ErrorKind, NetConfig};

use crate::fixture::{Guest, PATIENCE};
use crate::network::{HostTap, SERVER, connect, get, guest_network, python};

/// Takes what comes at port 9000, until it is ended.
const SINK: &str = "
import socket, threading
def take(stream):
    while stream.recv(1 << 18):
        pass
listener = socket.create_server(('', 9000))
print('serving', flush=True)
while True:
    threading.Thread(target=take, args=(listener.accept()[0],), daemon=True).start()
";

/// An interface that comes while the guest runs is set up as one that was there at boot; while data goes over it, it leaves, and another
/// comes in its place. The interface beside it notices nothing.
#[test]
fn an_interface_comes_and_goes_under_load() {
    let first = HostTap::at("blh", &["172.16.8.1/30"]);
    let second = HostTap::at("bli", &["172.16.8.5/30"]);
    let kept = NetConfig { guest: Some(guest_network(&["172.16.8.2/30"], "172.16.8.1")), ..first.config("kept") };
    let guest = Guest::ours().network(kept).boot();
    let server = guest.start_spec(&python("server", SERVER, &[]));
    server.wait_for("serving");
    let sink = guest.start_spec(&python("sink", SINK, &[]));
    sink.wait_for("serving");
    let guest_of_second = guest_network(&["172.16.8.6/30"], "172.16.8.5");
    let second_config = NetConfig { guest: Some(guest_of_second), ..second.config("second") };

    for round in 0..3 {
        let info = guest.vm.attach_network(&second_config, PATIENCE).unwrap();
        assert_eq!((&*info.id, info.up), ("second", true));
        assert_eq!(guest.vm.network_interfaces().len(), 2);
        assert_eq!(get("172.16.8.6", "/second"), "/second from ::ffff:172.16.8.5");
        let again = guest.vm.attach_network(&second_config, PATIENCE).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Conflict, "{again}");

        let sent = AtomicU64::new(0);
        thread::scope(|scope| {
            let stream = connect("172.16.8.6", 9000);
            let mut writer = stream.try_clone().unwrap();
            let sent = &sent;
            scope.spawn(move || {
                // Until this end is shut down: the other one is never heard of again.
                while writer.write_all(&[round; 1 << 16]).is_ok() {
                    sent.fetch_add(1 << 16, Ordering::SeqCst);
                }
            });
            while sent.load(Ordering::SeqCst) < 1 << 20 {
                thread::yield_now();
            }
            guest.vm.detach_network("second", PATIENCE).unwrap();
            stream.shutdown(Shutdown::Both).unwrap();
        });
        let names: Vec<_> = guest.vm.network_interfaces().into_iter().map(|info| info.id).collect();
        assert_eq!(names, ["kept"]);
        assert_eq!(get("172.16.8.2", "/kept"), "/kept from ::ffff:172.16.8.1");
    }
    let missing = guest.vm.detach_network("second", PATIENCE).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound, "{missing}");

    // What cannot be attached leaves nothing.
    let nowhere = NetConfig::new("third", bellows_vmm::Tap::Name("bellows-no-tap".into()));
    assert_eq!(guest.vm.attach_network(&nowhere, PATIENCE).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(guest.vm.network_interfaces().len(), 1);
    for job in [server, sink] {
        job.signal(9);
        job.finish();
    }
    guest.shutdown();
}
