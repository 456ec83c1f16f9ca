//! The picture of `bellows top`.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{self, Table, TableState};

use super::model::{HEAD, Kind, Row, Snapshot};

/// Letters of a partition's bar.
const BAR: usize = 16;
const KEYS: &str = "q leaves, arrows move";

/// What is on the screen.
#[derive(Default)]
pub(super) struct View {
    rows: Vec<Row>,
    summary: String,
    state: TableState,
}

impl View {
    /// Shows this from now on. The same line stays chosen as long as there is one.
    pub(super) fn take(&mut self, snapshot: Snapshot) {
        self.rows = snapshot.rows();
        self.summary = snapshot.summary();
        self.move_by(0);
    }

    /// Chooses a line so many further down.
    pub(super) fn move_by(&mut self, by: isize) {
        let last = self.rows.len().checked_sub(1);
        let now = self.state.selected().unwrap_or_default();
        self.state.select(last.map(|last| now.saturating_add_signed(by).min(last)));
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let [top, middle, bottom] =
            Layout::vertical([Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)]).areas(frame.area());
        let bold = Style::new().add_modifier(Modifier::BOLD);
        frame.render_widget(Line::styled(self.summary.as_str(), bold), top);
        let mut widths = vec![Constraint::Fill(1), Constraint::Fill(1)];
        widths.extend([6, 6, 6, 8, 6].map(Constraint::Length));
        // Names come first on a narrow terminal.
        if middle.width >= 100 {
            widths.push(Constraint::Length(BAR as u16));
        }
        let head =
            widgets::Row::new(HEAD.into_iter().chain([""])).style(Style::new().add_modifier(Modifier::UNDERLINED));
        let lines = self.rows.iter().map(|row| {
            let bar = row.fill.map(|fill| fill.bar(BAR)).unwrap_or_default();
            widgets::Row::new(row.cells.iter().cloned().chain([bar])).style(style(row.kind))
        });
        let chosen = Style::new().add_modifier(Modifier::REVERSED);
        let table = Table::new(lines, widths).header(head).row_highlight_style(chosen);
        frame.render_stateful_widget(table, middle, &mut self.state);
        frame.render_widget(Line::styled(KEYS, Style::new().add_modifier(Modifier::DIM)), bottom);
    }
}

fn style(kind: Kind) -> Style {
    match kind {
        Kind::Vm => Style::new().add_modifier(Modifier::BOLD),
        Kind::Silent => Style::new().fg(Color::Red),
        Kind::Part => Style::new(),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::model::tests::snapshot;
    use super::*;

    fn screen(view: &mut View, columns: u16, rows: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..columns).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..rows).map(line).collect()
    }

    #[test]
    fn all_vms_are_on_the_screen_with_a_bar_for_each_partition() {
        let mut view = View::default();
        view.take(snapshot());
        let lines = screen(&mut view, 110, 10);
        assert!(lines[0].starts_with("VMs 3, instances 2, host memory 400M"), "{lines:#?}");
        assert!(lines[1].starts_with("NAME"), "{lines:#?}");
        assert!(lines[5].contains("  web") && lines[5].ends_with("████▒▒▒▒········"), "{lines:#?}");
        assert!(lines[3].contains("silent") && lines[3].contains("no answer in 2s"), "{lines:#?}");
        assert!(lines[9].contains("q leaves"), "{lines:#?}");
    }

    #[test]
    fn the_chosen_line_stays_on_a_screen_that_is_too_small_and_when_lines_go() {
        let mut view = View::default();
        view.take(snapshot());
        view.move_by(isize::MAX);
        assert_eq!(view.state.selected(), Some(5));
        let lines = screen(&mut view, 80, 5);
        assert!(lines[3].contains("partition 2"), "{lines:#?}");
        for (columns, rows) in [(1, 1), (3, 2), (20, 3)] {
            screen(&mut view, columns, rows);
        }
        view.take(Snapshot::default());
        assert_eq!(view.state.selected(), None);
        view.move_by(1);
        assert!(screen(&mut view, 80, 5)[0].starts_with("VMs 0"));
        view.take(snapshot());
        view.move_by(isize::MIN);
        assert_eq!(view.state.selected(), Some(0));
    }
}
