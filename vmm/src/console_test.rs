use std::io::{PipeReader, Read, pipe};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::*;

fn piped() -> (Console, ConsoleInput, PipeReader) {
    let (reader, writer) = pipe().unwrap();
    let (console, input) = Console::start(File::from(OwnedFd::from(writer))).unwrap();
    (console, input, reader)
}

fn text(mut reader: PipeReader) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn closing_waits_until_all_output_is_written() {
    let (console, mut input, reader) = piped();
    for line in 0..100 {
        writeln!(input, "line {line}").unwrap();
    }
    drop(console);
    let text = text(reader);
    assert!(text.starts_with("line 0\n") && text.ends_with("line 99\n") && text.lines().count() == 100, "{text}");
}

#[test]
fn a_stalled_reader_delays_neither_guest_nor_end() {
    let (console, mut input, reader) = piped();
    let line = [b'x'; 1024];
    let start = Instant::now();
    // Far more than the pipe and the buffer hold.
    for _ in 0..8192 {
        input.write_all(&line).unwrap();
    }
    assert!(console.shared.state().waiting.len() <= MAX_WAITING);
    console.close();
    drop(console);
    assert!(start.elapsed() < 20 * FLUSH_LIMIT, "{:?}", start.elapsed());
    // The thread that stayed behind goes on as soon as the pipe is read.
    let text = text(reader);
    let notes = text.split('[').skip(1);
    let lost: usize = notes.map(|note| note.split(' ').next().unwrap().parse::<usize>().unwrap()).sum();
    assert_eq!(text.matches('x').count() + lost, 8192 * 1024);
    assert!(text.ends_with("too slow]\n"), "{}", &text[text.len() - 100..]);
}

#[test]
fn output_after_a_loss_comes_after_the_line_about_it() {
    let (console, mut input, mut reader) = piped();
    input.write_all(&vec![b'x'; 4 * MAX_WAITING]).unwrap();
    let mut first = vec![0; MAX_WAITING];
    reader.read_exact(&mut first).unwrap();
    let mut rest = Vec::new();
    while !rest.ends_with(b"slow]\n") {
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        rest.push(byte[0]);
    }
    input.write_all(b"again").unwrap();
    drop(console);
    assert_eq!(text(reader), "again");
}

#[test]
fn closing_does_not_wait_for_a_reader_that_is_gone() {
    let (console, mut input, reader) = piped();
    drop(reader);
    input.write_all(b"to nobody").unwrap();
    console.close();
    input.write_all(b"and after the end").unwrap();
    assert!(console.shared.state().waiting.is_empty());
}

#[test]
fn a_full_file_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    let (console, mut input) = Console::with_limit(File::create(&path).unwrap(), Some(1000)).unwrap();
    for _ in 0..10 {
        input.write_all(&[b'x'; 300]).unwrap();
    }
    drop(console);
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.starts_with(&format!("{}\n[", "x".repeat(1000))) && text.ends_with("lost]\n"), "{text}");
    assert!(text.len() < 1100, "{text}");
    assert_eq!(text.matches('[').count(), 1);
}

#[test]
fn a_descriptor_that_does_not_block_loses_nothing() {
    let (reader, writer) = pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let (console, mut input) = Console::start(File::from(OwnedFd::from(writer))).unwrap();
    input.write_all(&[b'x'; 200 << 10]).unwrap();
    let reader = thread::spawn(|| text(reader));
    drop(console);
    assert_eq!(reader.join().unwrap().len(), 200 << 10);
}
