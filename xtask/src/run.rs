//! Runs programs: quietly, with their last lines in the error of a failure.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use crate::error::{Error, Result};
use crate::progress::Step;

const KEPT_LINES: usize = 200;

/// Locks shared data. A panic ends all threads, so no thread sees half-changed data.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a program, showing each line it prints as the step's progress.
pub fn quiet(step: &Step, command: &mut Command) -> Result<()> {
    let mut tail = VecDeque::new();
    let status = lines(command, |line| {
        step.line(line);
        if tail.len() == KEPT_LINES {
            tail.pop_front();
        }
        tail.push_back(line.to_owned());
    })?;
    check(command, status, || tail.make_contiguous().join("\n"))
}

/// Runs a program and hands each line of both its outputs to `on_line`.
pub fn lines(command: &mut Command, mut on_line: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::at(name(command)))?;
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        forward(stdout, sender.clone());
    }
    if let Some(stderr) = child.stderr.take() {
        forward(stderr, sender);
    }
    receiver.iter().for_each(|line: String| on_line(&line));
    child.wait().map_err(Error::at(name(command)))
}

fn forward(from: impl Read + Send + 'static, to: mpsc::Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(|line| line.ok()) {
            if to.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
}

/// Runs a program and returns what it prints.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().map_err(Error::at(name(command)))?;
    check(command, output.status, || String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn check(command: &Command, status: ExitStatus, output: impl FnOnce() -> String) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let mut program = name(command);
    for argument in command.get_args() {
        program.push(' ');
        program.push_str(&argument.to_string_lossy());
    }
    Err(Error::Command { program, status, output: output() })
}

fn name(command: &Command) -> String {
    Path::new(command.get_program()).display().to_string()
}
