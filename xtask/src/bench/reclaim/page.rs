//! A page with plots, without anything from elsewhere.

use std::fmt::{self, Write};

use bellows_tests::bench::reclaim::{Group, Load, Mode, Sample};

use super::report::Report;
use crate::bench::statistics::{ms, sorted};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
/// Room for the scales, left and below; as much is free above and on the right.
const MARGIN: f64 = 56.0;
const LEGEND: f64 = 250.0;

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
    svg{width:100%;height:auto}svg text{font:12px sans-serif}\
    table{border-collapse:collapse}td,th{padding:.1rem .6rem;text-align:right;border-bottom:1px solid #ddd}";

/// The whole page.
pub fn html(report: &Report, samples: &[Sample]) -> String {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Reclaim</title><style>{STYLE}</style>\n\
         <h1>How memory of an instance that has ended goes back</h1>\n<p>Host: {}. In the lab only ratios and counts mean \
         anything.</p>\n<h2>Unplug latency at 2 GiB</h2>\n<p>Share of samples that took at most so long.</p>\n",
        report.host
    );
    page += &distribution(samples).to_string();
    page += "<h2>Unplug latency against size</h2>\n<p>Medians.</p>\n";
    page += &against_size(report, |row| row.unplug_ms.p50).to_string();
    page += "<h2>The guest's own work against size</h2>\n<p>Medians.</p>\n";
    page += &against_size(report, |row| row.guest_ms).to_string();
    page += "<h2>Aims</h2>\n<table><tr><th>met<th>value<th style=\"text-align:left\">aim\n";
    for aim in &report.aims {
        // Writing to a string does not fail.
        let _ = writeln!(
            page,
            "<tr><td>{}<td>{:.2}<td style=\"text-align:left\">{}",
            if aim.met { "yes" } else { "no" },
            aim.value,
            aim.aim
        );
    }
    page + "</table>\n</html>\n"
}

fn distribution(samples: &[Sample]) -> Plot {
    let mut plot = Plot::new("ms", "share of samples", false);
    for (name, colour, dashed, wanted) in series() {
        let times = samples.iter().filter(|sample| sample.group.size_mib == 2048 && wanted(sample.group, sample.mode));
        let times = sorted(times.map(|sample| ms(sample.unplug)).collect());
        let share = |index: usize| (index + 1) as f64 / times.len() as f64;
        plot.add(name, colour, dashed, times.iter().enumerate().map(|(index, time)| (*time, share(index))).collect());
    }
    plot
}

fn against_size(report: &Report, value: impl Fn(&super::report::Row) -> f64) -> Plot {
    let mut plot = Plot::new("MiB", "ms", true);
    for (name, colour, dashed, wanted) in series() {
        let rows = report.rows.iter().filter(|row| wanted(row.group, row.mode));
        plot.add(name, colour, dashed, rows.map(|row| (row.group.size_mib as f64, value(row))).collect());
    }
    plot
}

type Wanted = Box<dyn Fn(Group, Mode) -> bool>;

/// A line for each mode, switch and load: name, colour, whether it's dashed, what belongs to it.
fn series() -> impl Iterator<Item = (String, &'static str, bool, Wanted)> {
    const COLOURS: [[&str; 2]; 3] = [["#d62728", "#ff9896"], ["#1f77b4", "#8ec7e8"], ["#2ca02c", "#98df8a"]];
    let modes = Mode::ALL.into_iter().zip(COLOURS);
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

/// Lines over a logarithmic scale.
struct Plot {
    x_name: &'static str,
    y_name: &'static str,
    y_logarithmic: bool,
    lines: Vec<Line>,
}

struct Line {
    name: String,
    colour: &'static str,
    dashed: bool,
    points: Vec<(f64, f64)>,
}

impl Plot {
    fn new(x_name: &'static str, y_name: &'static str, y_logarithmic: bool) -> Self {
        Self { x_name, y_name, y_logarithmic, lines: Vec::new() }
    }

    /// What can't be shown on a logarithmic scale is left out.
    fn add(&mut self, name: String, colour: &'static str, dashed: bool, mut points: Vec<(f64, f64)>) {
        points.retain(|(x, y)| *x > 0.0 && (*y > 0.0 || !self.y_logarithmic) && y.is_finite());
        if !points.is_empty() {
            self.lines.push(Line { name, colour, dashed, points });
        }
    }

    fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        self.lines.iter().flat_map(|line| line.points.iter().copied())
    }
}

/// Powers of ten around values.
fn decades(values: impl Iterator<Item = f64>) -> (i32, i32) {
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return (0, 1);
    }
    let (low, high) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    (low, high.max(low + 1))
}

impl fmt::Display for Plot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (left, right) = decades(self.points().map(|(x, _)| x));
        let (bottom, top) = if self.y_logarithmic { decades(self.points().map(|(_, y)| y)) } else { (0, 1) };
        let x =
            |value: f64| MARGIN + (value.log10() - f64::from(left)) / f64::from(right - left) * (WIDTH - 2.0 * MARGIN);
        let y = |value: f64| {
            let value = if self.y_logarithmic { value.log10() } else { value };
            HEIGHT - MARGIN - (value - f64::from(bottom)) / f64::from(top - bottom) * (HEIGHT - 2.0 * MARGIN)
        };
        writeln!(f, "<svg viewBox=\"0 0 {} {HEIGHT}\">", WIDTH + LEGEND)?;
        for power in left..=right {
            let at = x(10_f64.powi(power));
            writeln!(
                f,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{MARGIN}\" y2=\"{:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                HEIGHT - MARGIN,
                HEIGHT - MARGIN + 18.0,
                10_f64.powi(power)
            )?;
        }
        for step in bottom..=top {
            let value = if self.y_logarithmic { 10_f64.powi(step) } else { f64::from(step) };
            let at = y(value);
            writeln!(
                f,
                "<line x1=\"{MARGIN}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
                WIDTH - MARGIN,
                MARGIN - 6.0,
                at + 4.0
            )?;
        }
        writeln!(
            f,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text><text x=\"6\" y=\"{:.1}\">{}</text>",
            WIDTH - MARGIN,
            HEIGHT - 12.0,
            self.x_name,
            MARGIN - 20.0,
            self.y_name
        )?;
        for (index, line) in self.lines.iter().enumerate() {
            let dashes = if line.dashed { " stroke-dasharray=\"5 4\"" } else { "" };
            let points: Vec<String> =
                line.points.iter().map(|(px, py)| format!("{:.1},{:.1}", x(*px), y(*py))).collect();
            let at = MARGIN + 20.0 * index as f64;
            writeln!(
                f,
                "<polyline fill=\"none\" stroke=\"{0}\" stroke-width=\"2\"{dashes} points=\"{1}\"/>\
                 <line x1=\"{WIDTH}\" x2=\"{2}\" y1=\"{at}\" y2=\"{at}\" stroke=\"{0}\" stroke-width=\"2\"{dashes}/>\
                 <text x=\"{3}\" y=\"{4}\">{5}</text>",
                line.colour,
                points.join(" "),
                WIDTH + 24.0,
                WIDTH + 30.0,
                at + 4.0,
                line.name
            )?;
        }
        writeln!(f, "</svg>")
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::sample;
    use super::*;
    use bellows_tests::lab::Host;

    #[test]
    fn every_point_lies_on_the_page() {
        let samples: Vec<_> = [512, 2048, 8192]
            .into_iter()
            .flat_map(|size| [sample(Mode::Shared, size, size), sample(Mode::Extension, size, 3)])
            .collect();
        let html = html(&Report::new(Host::Lab, &samples), &samples);
        assert_eq!(html.matches("<polyline").count(), 6);
        for points in html.split("points=\"").skip(1) {
            for point in points.split('"').next().unwrap().split(' ') {
                let (x, y) = point.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((MARGIN..=WIDTH - MARGIN).contains(&x) && (MARGIN..=HEIGHT - MARGIN).contains(&y), "{point}");
            }
        }
    }

    #[test]
    fn decades_enclose_what_they_are_of() {
        assert_eq!(decades([0.02, 500.0].into_iter()), (-2, 3));
        assert_eq!(decades([10.0].into_iter()), (1, 2));
        assert_eq!(decades(std::iter::empty()), (0, 1));
    }
}
