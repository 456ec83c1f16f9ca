//! `bellows top`: VMs in the background, again every second.

mod model;
mod view;
mod watch;

use std::io::{self, IsTerminal as _};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use self::model::Snapshot;
use self::view::View;
use crate::error::{CliError, io_error};
use crate::interrupt::Interrupts;
use crate::options::detached::TopArgs;
use crate::output::print;

/// Time between two looks at the VMs.
const PERIOD: Duration = Duration::from_secs(1);
/// Time that a key or a signal may wait for a new picture.
const TICK: Duration = Duration::from_millis(100);

/// Shows the VMs, once or until the user leaves.
pub(crate) fn top(args: &TopArgs) -> Result<u8, CliError> {
    if args.json {
        watch::look()?.json_lines().iter().try_for_each(print)?;
    } else if args.once || !io::stdout().is_terminal() {
        print(watch::look()?.text())?;
    } else {
        let interrupts = Interrupts::install().map_err(io_error("wait for", "signals"))?;
        // It makes a signal wait for the end below, which restores the terminal.
        let _serving = interrupts.serve(|| {});
        let snapshots = watch::start(PERIOD)?;
        let shown = Screen::enter()?.show(&snapshots, &interrupts);
        if let Some(signal) = interrupts.received() {
            return Err(CliError::Interrupted(signal));
        }
        shown?;
    }
    Ok(0)
}

/// The terminal, which has its old content and settings again when this is dropped, or a thread panics.
struct Screen(ratatui::DefaultTerminal);

impl Screen {
    fn enter() -> Result<Self, CliError> {
        ratatui::try_init().map(Self).map_err(|error| {
            ratatui::restore();
            io_error("set up", "the terminal")(error)
        })
    }

    /// Shows what comes until the user leaves, or a signal ends it.
    fn show(
        mut self,
        snapshots: &Receiver<Result<Snapshot, CliError>>,
        interrupts: &Interrupts,
    ) -> Result<(), CliError> {
        let mut view = View::default();
        let mut is_new = true;
        while interrupts.received().is_none() {
            if let Some(snapshot) = snapshots.try_iter().last() {
                view.take(snapshot?);
                is_new = true;
            }
            if is_new {
                self.0.draw(|frame| view.draw(frame)).map_err(CliError::Output)?;
            }
            is_new = event::poll(TICK).map_err(io_error("read", "the terminal"))?;
            if is_new {
                match step(&event::read().map_err(io_error("read", "the terminal"))?) {
                    Step::Leave => break,
                    Step::Move(by) => view.move_by(by),
                    Step::Nothing => {}
                }
            }
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// What an event of the terminal asks for.
#[derive(Debug, Eq, PartialEq)]
enum Step {
    Leave,
    Move(isize),
    Nothing,
}

fn step(event: &Event) -> Step {
    let Event::Key(KeyEvent { code, modifiers, kind, .. }) = event else { return Step::Nothing };
    if *kind == KeyEventKind::Release {
        return Step::Nothing;
    }
    match code {
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => Step::Leave,
        KeyCode::Char('q') | KeyCode::Esc => Step::Leave,
        KeyCode::Up | KeyCode::Char('k') => Step::Move(-1),
        KeyCode::Down | KeyCode::Char('j') => Step::Move(1),
        KeyCode::PageUp => Step::Move(-10),
        KeyCode::PageDown => Step::Move(10),
        KeyCode::Home => Step::Move(isize::MIN),
        KeyCode::End => Step::Move(isize::MAX),
        _ => Step::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_move_and_leave() {
        let pressed = |code, modifiers| step(&Event::Key(KeyEvent::new(code, modifiers)));
        assert_eq!(pressed(KeyCode::Char('q'), KeyModifiers::NONE), Step::Leave);
        assert_eq!(pressed(KeyCode::Char('c'), KeyModifiers::CONTROL), Step::Leave);
        assert_eq!(pressed(KeyCode::Char('c'), KeyModifiers::NONE), Step::Nothing);
        assert_eq!(pressed(KeyCode::Down, KeyModifiers::NONE), Step::Move(1));
        assert_eq!(step(&Event::Resize(1, 1)), Step::Nothing);
    }
}
