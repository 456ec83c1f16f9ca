//! The first process of a peer's guest: fills and frees memory on the host's commands on the console.
//!
//! The host writes lines; answers are lines that begin with `=`, because a console prints other lines as well.
//!
//! | line | then |
//! |---|---|
//! | `fill A B` | two processes fill A and B bytes, at the same time: `= full` |
//! | `end` | the first process ends: `= ended` |
//! | `clear` | the second ends, too: `= cleared` |
//! | `count` | `= {"migrated": pages by reason, "zeroed": pages}`, since the boot |

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use bellows_lab::mount::mount;

const PAGE: usize = 4096;

fn main() -> io::Result<()> {
    if let [Some("fill"), Some(bytes)] = [1, 2].map(|at| std::env::args().nth(at)).each_ref().map(Option::as_deref) {
        return fill(number(bytes)?);
    }
    mount("proc", "/proc", "proc", "")?;
    answer("up")?;
    let mut fillers = Vec::new();
    for line in io::stdin().lines() {
        let line = line?;
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["fill", first, second] => {
                fillers = [first, second].into_iter().map(Filler::start).collect::<io::Result<Vec<_>>>()?;
                fillers.iter_mut().try_for_each(|filler| filler.wait_for("ready"))?;
                fillers.iter_mut().try_for_each(Filler::go)?;
                fillers.iter_mut().try_for_each(|filler| filler.wait_for("full"))?;
                answer("full")?;
            }
            ["end"] => {
                if !fillers.is_empty() {
                    drop(fillers.remove(0));
                }
                answer("ended")?;
            }
            ["clear"] => {
                fillers.clear();
                answer("cleared")?;
            }
            ["count"] => answer(&count()?)?,
            _ => answer(&format!("{line:?}: expected `fill A B`, `end`, `clear` or `count`"))?,
        }
    }
    Ok(())
}

fn answer(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "= {text}")?;
    out.flush()
}

fn number(text: &str) -> io::Result<usize> {
    text.parse().map_err(|_| io::Error::other(format!("{text:?}: expected a number of bytes")))
}

/// Counters of the guest's kernel.
fn count() -> io::Result<String> {
    let text = std::fs::read_to_string("/proc/vmstat")?;
    let counters: BTreeMap<&str, u64> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
        .collect();
    let migrated: BTreeMap<&str, u64> = counters
        .iter()
        .filter_map(|(name, pages)| Some((name.strip_prefix("pgmigrate_")?, *pages)))
        .filter(|(reason, _)| !matches!(*reason, "success" | "fail"))
        .collect();
    let zeroed = counters.get("contig_alloc_zeroed").copied().unwrap_or(0);
    Ok(serde_json::json!({ "migrated": migrated, "zeroed": zeroed }).to_string())
}

/// A process that fills memory; it ends when this is dropped.
struct Filler {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Filler {
    fn start(bytes: &str) -> io::Result<Self> {
        let mut child =
            Command::new("/init").args(["fill", bytes]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().map(BufReader::new).ok_or_else(|| io::Error::other("no output"))?;
        Ok(Self { child, output })
    }

    fn wait_for(&mut self, word: &str) -> io::Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        if line.trim_end() == word { Ok(()) } else { Err(io::Error::other(format!("expected {word}, got {line:?}"))) }
    }

    fn go(&mut self) -> io::Result<()> {
        self.child.stdin.as_mut().map_or(Ok(()), |stdin| stdin.write_all(b"\n"))
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        // If this fails it is already gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Fills memory at the first line, and keeps it until the input ends.
fn fill(bytes: usize) -> io::Result<()> {
    let mut line = [0; 1];
    println!("ready");
    io::stdin().read_exact(&mut line)?;
    let mut memory = vec![0_u8; bytes];
    memory.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
    println!("full");
    io::copy(&mut io::stdin(), &mut io::sink())?;
    std::hint::black_box(memory);
    Ok(())
}
