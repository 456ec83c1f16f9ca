//! The output of instances, with times.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{PATIENCE, Result};

/// Reads an instance's output. A dot stands for a finished piece of work.
#[derive(Clone, Default)]
pub struct Progress(Arc<(Mutex<Seen>, Condvar)>);

#[derive(Default)]
struct Seen {
    text: Vec<u8>,
    /// The number of dots at each time.
    dots: Vec<(Instant, usize)>,
}

impl Write for Progress {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut seen = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = bytes.iter().filter(|byte| **byte == b'.').count();
        if new > 0 {
            let before = seen.dots.last().map_or(0, |(_, count)| *count);
            seen.dots.push((Instant::now(), before + new));
        }
        seen.text.extend(bytes.iter().filter(|byte| **byte != b'.'));
        self.0.1.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Progress {
    /// Waits until the instance has printed `word`.
    pub fn wait_for(&self, word: &str) -> Result<()> {
        let (seen, changed) = &*self.0;
        let missing = |seen: &mut Seen| !String::from_utf8_lossy(&seen.text).contains(word);
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(seen, PATIENCE, missing);
        let (seen, result) = waited.unwrap_or_else(PoisonError::into_inner);
        if result.timed_out() {
            let text = String::from_utf8_lossy(&seen.text);
            return Err(format!("an instance printed {text:?}: expected {word:?}").into());
        }
        Ok(())
    }

    /// Work done in `time` from `start` on, in dots. Waits until that is known.
    pub fn between(&self, start: Instant, time: Duration) -> f64 {
        let end = start + time;
        thread::sleep(end.saturating_duration_since(Instant::now()));
        let (seen, changed) = &*self.0;
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        // The dot after the end tells how much of its piece was done at the end.
        let open = |seen: &mut Seen| seen.dots.last().is_none_or(|(at, _)| *at < end);
        let (seen, _) = changed.wait_timeout_while(seen, PATIENCE, open).unwrap_or_else(PoisonError::into_inner);
        at(&seen.dots, end) - at(&seen.dots, start)
    }
}

/// Dots at `time`, including parts of unfinished pieces of work.
fn at(dots: &[(Instant, usize)], time: Instant) -> f64 {
    let next = dots.partition_point(|(at, _)| *at <= time);
    let (Some(before), Some(after)) = (next.checked_sub(1).and_then(|last| dots.get(last)), dots.get(next)) else {
        return dots.get(next.saturating_sub(1)).map_or(0.0, |(_, count)| *count as f64);
    };
    let part = (time - before.0).as_secs_f64() / (after.0 - before.0).as_secs_f64();
    before.1 as f64 + part * (after.1 - before.1) as f64
}
