//! The functions, in Python.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use bellows_bench::load::{Arrival, Function};
use bellows_vmm::{Instance, InstanceSpec, StreamName};

use crate::common::{Result, image_id};
use crate::guest::Guest;
use crate::pool::Place;

/// Fills memory, computes, and prints the most memory that it had, in KiB.
const PROGRAM: &str = "
import json, resource, string, sys, zlib
name, mebibytes, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
held = bytearray(mebibytes << 20)
held[::4096] = b'x' * len(range(0, len(held), 4096))
def compress():
    zlib.compress(held[:1 << 20], 1)
def convert():
    people = [{'id': number, 'name': 'n%d' % number} for number in range(500)]
    assert json.loads(json.dumps(people)) == people
def multiply():
    n = 32
    a = [[i * j % 7 for j in range(n)] for i in range(n)]
    b = list(zip(*a))
    [[sum(x * y for x, y in zip(row, column)) for column in b] for row in a]
def template():
    page = string.Template('<li>$number: $name</li>')
    ''.join(page.substitute(number=number, name='n') for number in range(300))
work = {'compress': compress, 'json': convert, 'multiply': multiply, 'template': template}[name]
for _ in range(rounds): work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
";

/// The modules that it imports.
pub const MODULES: [&str; 5] = ["json", "resource", "string", "sys", "zlib"];

/// Runs one to its end. Returns the instance, to be removed, and the most memory that it had, in bytes.
pub fn run(guest: &Guest, number: usize, arrival: &Arrival, place: &Place<'_>) -> Result<(Instance, u64)> {
    let name = match arrival.function {
        Function::Compress => "compress",
        Function::Json => "json",
        Function::Multiply => "multiply",
        Function::Template => "template",
    };
    let arguments = [arrival.memory_mib.to_string(), arrival.rounds.to_string()];
    let command = ["/usr/bin/python3", "-c", PROGRAM, name].into_iter().chain(arguments.iter().map(String::as_str));
    let spec = InstanceSpec::new(format!("f{number}").parse()?, image_id()?, command);
    let spec = guest.placed(spec, place)?;
    let instance = guest.vm.start_instance(&spec)?;
    let printed = Printed::default();
    let streams = [StreamName::Stdout, StreamName::Stderr].map(|stream| instance.forward(stream, printed.clone()));
    let status = instance.wait()?;
    for stream in streams {
        stream?.join()?;
    }
    let text = String::from_utf8_lossy(&printed.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned();
    match text.trim().parse::<u64>() {
        Ok(kibibytes) if status.code == 0 => Ok((instance, kibibytes << 10)),
        _ => Err(format!("{name} ended with {status:?} and printed {text:?}").into()),
    }
}

#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
