//! The last part of the demonstration: a function that answers a request of the host over HTTP, from its partition.

use std::io::{self, Read as _, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::num::NonZeroU16;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use bellows_block::Image;
use bellows_vmm::{InstanceNetwork, NetConfig, StreamName};

use super::report::{HttpReport, InstanceReport};
use super::{Booted, partition};
use crate::cli::DemoArgs;
use crate::error::{CliError, io_error};
use crate::network::ports::{Protocol, Published};
use crate::network::{self, Helper};
use crate::partition::give_back;

/// Where the function listens.
const PORT: NonZeroU16 = NonZeroU16::new(8000).unwrap();
/// What it answers.
const BODY: &str = "hello from a partition\n";
/// The function, which answers one request. It prints a line when it listens.
const FUNCTION: &str = r#"
import http.server, sys
class Function(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = sys.argv[1].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
server = http.server.HTTPServer(("", int(sys.argv[2])), Function)
print("ready", flush=True)
server.handle_request()
"#;
/// Most bytes of an answer.
const MAX_ANSWER: u64 = 64 << 10;

/// The way from a port of the host to one of a VM, while this is kept.
pub(super) struct Way {
    port: u16,
    _helper: Helper,
}

impl Way {
    /// Opens a port of the host's loopback that nobody has, with passt. The interface is the VM's.
    pub(super) fn open(limit: Duration) -> Result<(Self, NetConfig), CliError> {
        let address = Ipv4Addr::LOCALHOST;
        let free = TcpListener::bind((address, 0)).and_then(|listener| listener.local_addr());
        let port = free.map_err(io_error("find a port of", address.to_string()))?.port();
        // It was bound, so it is not 0.
        let host = NonZeroU16::new(port).unwrap_or(PORT);
        let published = Published { address: Some(address.into()), host, guest: PORT, protocol: Protocol::Tcp };
        let (helper, interface) = network::publish(&[published], limit)?;
        Ok((Self { port, _helper: helper }, interface))
    }
}

impl Booted {
    /// Has a function answer one request. Its partition has been given back before.
    pub(super) fn answer_http(&self, args: &DemoArgs, image: &Image, way: &Way) -> Result<HttpReport, CliError> {
        let (id, limit) = (partition(1)?, args.guest.timeout);
        let interpreter = image.config.argv(&[]).into_iter().take(1);
        let words = ["-c", FUNCTION, BODY, &PORT.to_string()].map(str::to_owned);
        let spec = self.spec(image, "http", interpreter.chain(words))?;
        let spec = spec.in_partition(id).on_network(InstanceNetwork::Vm);
        let begun = Instant::now();
        let (instance, plug) = self.vm.plug_and_start(&spec, args.partition, limit)?;
        let (said, lines) = channel();
        instance.forward(StreamName::Stdout, Told(said))?;
        instance.forward(StreamName::Stderr, io::stderr())?;
        lines.recv_timeout(limit).map_err(|_| CliError::Unexpected("the function does not listen".into()))?;
        let listening = begun.elapsed();
        let answer = get(way.port, limit).map_err(io_error("get an answer from", format!("port {}", way.port)))?;
        let answered = begun.elapsed();
        let status = instance.wait()?;
        let function = InstanceReport {
            id: instance.id().to_string(),
            exit_code: status.code,
            output_ok: is_right(&answer),
            run: begun.elapsed(),
        };
        instance.remove(limit)?;
        let partition = give_back(&self.vm, id, &plug, limit)?;
        Ok(HttpReport { url: format!("http://127.0.0.1:{}/", way.port), listening, answered, function, partition })
    }
}

/// Says once that something was printed.
struct Told(Sender<()>);

impl Write for Told {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // One line is enough.
        let _ = self.0.send(());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn get(port: u16, limit: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn is_right(answer: &str) -> bool {
    let mut words = answer.split(' ');
    words.next().is_some_and(|version| version.starts_with("HTTP/1."))
        && words.next() == Some("200")
        && answer.split_once("\r\n\r\n").is_some_and(|(_, body)| body == BODY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_functions_own_answer_is_right() {
        let good = format!("HTTP/1.0 200 OK\r\nServer: x\r\n\r\n{BODY}");
        assert!(is_right(&good));
        for (from, to) in [("200", "500"), ("HTTP", "SMTP"), ("hello", "halo"), ("\r\n\r\n", "\r\n")] {
            assert!(!is_right(&good.replace(from, to)), "{from}");
        }
    }
}
