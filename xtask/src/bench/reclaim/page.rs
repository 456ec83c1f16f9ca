//! A self-contained page with plots.

use std::fmt::Write;

use bellows_bench::reclaim::{Group, Load, Mode, Sample};

use super::report::Report;
use crate::bench::plot::{Plot, Scale, page};
use crate::bench::statistics::{ms, sorted};

/// The whole page.
pub fn html(report: &Report, samples: &[Sample]) -> String {
    let mut body =
        String::from("<h2>Unplug latency at 2 GiB</h2>\n<p>Share of samples that took at most this long.</p>\n");
    body += &distribution(samples).to_string();
    body += "<h2>Unplug latency against size</h2>\n<p>Medians.</p>\n";
    body += &against_size(report, |row| row.unplug_ms.p50).to_string();
    body += "<h2>The guest's own work against size</h2>\n<p>Medians.</p>\n";
    body += &against_size(report, |row| row.guest_ms).to_string();
    body += "<h2>Aims</h2>\n<table><tr><th>met<th>value<th style=\"text-align:left\">aim\n";
    for aim in &report.aims {
        // Writing to a string does not fail.
        let _ = writeln!(
            body,
            "<tr><td>{}<td>{:.2}<td style=\"text-align:left\">{}",
            if aim.met { "yes" } else { "no" },
            aim.value,
            aim.aim
        );
    }
    page("How memory of an instance that has ended goes back", report.host, &(body + "</table>\n"))
}

fn distribution(samples: &[Sample]) -> Plot {
    let mut plot = Plot::new(("ms", Scale::Decades), ("share of samples", Scale::Linear));
    for (name, colour, dashed, wanted) in series() {
        let times = samples.iter().filter(|sample| sample.group.size_mib == 2048 && wanted(sample.group, sample.mode));
        let times = sorted(times.map(|sample| ms(sample.unplug)).collect());
        let share = |index: usize| (index + 1) as f64 / times.len() as f64;
        plot.add(name, colour, dashed, times.iter().enumerate().map(|(index, time)| (*time, share(index))).collect());
    }
    plot
}

fn against_size(report: &Report, value: impl Fn(&super::report::Row) -> f64) -> Plot {
    let mut plot = Plot::new(("MiB", Scale::Decades), ("ms", Scale::Decades));
    for (name, colour, dashed, wanted) in series() {
        let rows = report.rows.iter().filter(|row| wanted(row.group, row.mode));
        plot.add(name, colour, dashed, rows.map(|row| (row.group.size_mib as f64, value(row))).collect());
    }
    plot
}

type Wanted = Box<dyn Fn(Group, Mode) -> bool>;

/// A line for each mode, switch and load: name, colour, whether it is dashed, and its samples.
fn series() -> impl Iterator<Item = (String, &'static str, bool, Wanted)> {
    const COLOURS: [[&str; 2]; 5] = [
        ["#d62728", "#ff9896"],
        ["#1f77b4", "#8ec7e8"],
        ["#2ca02c", "#98df8a"],
        ["#9467bd", "#c5b0d5"],
        ["#8c564b", "#c49c94"],
    ];
    let modes = Mode::OURS.into_iter().chain(Mode::PEERS).zip(COLOURS);
    modes.flat_map(|(mode, colours)| {
        let switches = [false, true].into_iter().zip(colours);
        switches.flat_map(move |(init_on_alloc, colour)| {
            [Load::Quiet, Load::Busy].map(|load| {
                let wanted: Wanted = Box::new(move |group, other| {
                    other == mode && group.init_on_alloc == init_on_alloc && group.load == load
                });
                let name = format!("{mode}, init_on_alloc={}, {load}", u8::from(init_on_alloc));
                (name, colour, load == Load::Busy, wanted)
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::sample;
    use super::*;
    use bellows_lab::{Clock, Host};

    #[test]
    fn there_is_a_line_for_each_mode_in_each_plot() {
        let samples: Vec<_> = [512, 2048, 8192]
            .into_iter()
            .flat_map(|size| [sample(Mode::Shared, size, size), sample(Mode::Extension, size, 3)])
            .collect();
        let html = html(&Report::new(Host::Lab, Clock::Wall, &samples), &samples);
        assert_eq!(html.matches("<polyline").count(), 6);
        assert!(html.starts_with("<!doctype html>") && html.ends_with("</html>\n"));
    }
}
