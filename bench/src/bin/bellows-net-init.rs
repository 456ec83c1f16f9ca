//! The first process of a guest of `bench net`, which makes and takes traffic: see [`bellows_bench::net`] for its ports. It takes commands
//! from one client after the other:
//!
//! | line | then |
//! |---|---|
//! | `send SIZE COUNT` | sends the host so many datagrams: `sent` |
//! | `count` | the number of datagrams that have come since the last such line |

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use bellows_bench::net::{COMMANDS, DATAGRAMS, ECHO, GUEST, HOST, LARGE, PREFIX, SINK, SOURCE};
use bellows_lab::mount::mount;

fn main() -> io::Result<()> {
    mount("proc", "/proc", "proc", "")?;
    for words in [format!("address add {GUEST}/{PREFIX} dev eth0"), "link set eth0 up".into(), "link set lo up".into()]
    {
        let status = Command::new("/busybox").arg("ip").args(words.split(' ')).status()?;
        if !status.success() {
            return Err(io::Error::other(format!("ip {words}: {status}")));
        }
    }
    // Through passt, there are others than the host.
    let _ = Command::new("/busybox").args(["ip", "route", "add", "default", "via", HOST]).status();
    let come = Arc::new(AtomicU64::new(0));
    let counted = come.clone();
    serve_datagrams(DATAGRAMS, move |_, _, _| {
        counted.fetch_add(1, Ordering::Relaxed);
    })?;
    serve_datagrams(ECHO, |socket, bytes, from| {
        // Where nobody is left to take it, nobody asks.
        let _ = socket.send_to(bytes, from);
    })?;
    serve_streams(SINK, sink)?;
    serve_streams(SOURCE, source)?;
    let listener = TcpListener::bind(("0.0.0.0", COMMANDS))?;
    say("up");
    for stream in listener.incoming() {
        if let Err(error) = obey(stream?, &come) {
            say(error);
        }
    }
    Ok(())
}

/// Prints a line on the console, which may be no device.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

fn obey(mut stream: TcpStream, come: &AtomicU64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let out = UdpSocket::bind(("0.0.0.0", 0))?;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?;
        let answer = match line.split(' ').collect::<Vec<_>>()[..] {
            ["send", size, count] => {
                let (size, count): (usize, u64) = (number(size)?, number(count)?);
                let bytes = vec![0; size];
                for _ in 0..count {
                    out.send_to(&bytes, (HOST, DATAGRAMS))?;
                }
                "sent".to_owned()
            }
            ["count"] => come.swap(0, Ordering::Relaxed).to_string(),
            _ => format!("{line:?}: expected `send SIZE COUNT` or `count`"),
        };
        writeln!(stream, "{answer}")?;
    }
    Ok(())
}

fn number<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> io::Result<T> {
    text.parse().map_err(|error| io::Error::other(format!("{text:?}: {error}")))
}

fn serve_datagrams(
    port: u16,
    mut take: impl FnMut(&UdpSocket, &[u8], std::net::SocketAddr) + Send + 'static,
) -> io::Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", port))?;
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            take(&socket, &buffer[..length], from);
        }
    });
    Ok(())
}

fn serve_streams(port: u16, serve: fn(TcpStream) -> io::Result<()>) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Err(error) = serve(stream) {
                say(format_args!("port {port}: {error}"));
            }
        }
    });
    Ok(())
}

fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; LARGE];
    let mut taken = 0_u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&taken.to_be_bytes()),
            bytes => taken += bytes as u64,
        }
    }
}

fn source(mut stream: TcpStream) -> io::Result<()> {
    let mut wanted = [0; 8];
    stream.read_exact(&mut wanted)?;
    let mut left = u64::from_be_bytes(wanted);
    let buffer = vec![0; LARGE];
    while left > 0 {
        let bytes = left.min(LARGE as u64);
        stream.write_all(&buffer[..bytes as usize])?;
        left -= bytes;
    }
    Ok(())
}
