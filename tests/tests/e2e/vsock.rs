//! Streams between the guest and the host.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::thread;

use crate::fixture::Guest;

const PORT: u32 = 5000;
/// What goes each way.
const BYTES: usize = 8 << 20;

/// The guest sends a pattern and takes another one, both at once, and says what it got.
const PEER: &str = r"
import socket, threading
PORT, BYTES = 5000, 8 << 20
stream = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
stream.connect((2, PORT))
def send():
    stream.sendall(bytes(range(251)) * (BYTES // 251 + 1))
    stream.shutdown(socket.SHUT_WR)
sender = threading.Thread(target=send)
sender.start()
got = bytearray()
while chunk := stream.recv(1 << 16):
    got += chunk
sender.join()
print(bytes(got) == (bytes(range(241)) * (BYTES // 241 + 1)), len(got))
";

#[test]
fn bulk_data_arrives_whole_both_ways() {
    let pattern = |period: u8| -> Vec<u8> {
        (0..period).cycle().take(usize::from(period) * (BYTES / usize::from(period) + 1)).collect()
    };
    let guest = Guest::ours().vcpus(2).boot();
    let mut path = guest.vm.vsock_path().as_os_str().to_owned();
    path.push(format!("_{PORT}"));
    let listener = UnixListener::bind(&path).unwrap();
    let peer = guest.start("peer", &format!("exec python3 -c '{PEER}'"), None);
    let (mut stream, _) = listener.accept().unwrap();
    let mut writer = stream.try_clone().unwrap();
    let sender = thread::spawn(move || {
        writer.write_all(&pattern(241)).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    assert!(received == pattern(251), "{} bytes came, not what was sent", received.len());
    let (status, output) = peer.finish();
    assert!(status.code == 0 && output.starts_with("True "), "{output}");
    std::fs::remove_file(path).unwrap();
    guest.shutdown();
}
