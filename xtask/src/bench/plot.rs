//! Plots as SVG, and self-contained pages of them.

use std::fmt;

use bellows_lab::Host;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
/// Room for the scales, left and below; the same margin is above and on the right.
const MARGIN: f64 = 56.0;
const LEGEND: f64 = 250.0;

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
    svg{width:100%;height:auto}svg text{font:12px sans-serif}\
    table{border-collapse:collapse}td,th{padding:.1rem .6rem;text-align:right;border-bottom:1px solid #ddd}";

/// A page with this title and body.
pub fn page(title: &str, host: Host, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style>\n\
         <h1>{title}</h1>\n<p>Host: {host}. By the wall clock in the lab only ratios and counts mean anything.</p>\n{body}</html>\n"
    )
}

/// The scale of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// From 0 to the largest.
    Linear,
    /// By their logarithm, in whole powers of ten.
    Decades,
}

/// Lines.
pub struct Plot {
    x: (&'static str, Scale),
    y: (&'static str, Scale),
    lines: Vec<Line>,
}

struct Line {
    name: String,
    colour: &'static str,
    dashed: bool,
    points: Vec<(f64, f64)>,
}

/// An axis with its marks, on which values lie between 0 and 1.
struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    marks: Vec<f64>,
}

impl Plot {
    /// An empty plot, over axes with these names and scales.
    pub fn new(x: (&'static str, Scale), y: (&'static str, Scale)) -> Self {
        Self { x, y, lines: Vec::new() }
    }

    /// Adds a line. Points outside the axes are left out.
    pub fn add(&mut self, name: String, colour: &'static str, dashed: bool, mut points: Vec<(f64, f64)>) {
        let shows = |scale: Scale, value: f64| value.is_finite() && (value > 0.0 || scale == Scale::Linear);
        points.retain(|(x, y)| shows(self.x.1, *x) && shows(self.y.1, *y));
        if !points.is_empty() {
            self.lines.push(Line { name, colour, dashed, points });
        }
    }
}

impl Axis {
    fn new(scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low > high { (1.0, 1.0) } else { (low, high) };
        match scale {
            Scale::Linear => {
                let step = step(high);
                let marks: Vec<f64> =
                    (0..).map(|mark| f64::from(mark) * step).take_while(|mark| *mark < high + step).collect();
                Self { scale, low: 0.0, high: marks.last().copied().unwrap_or(1.0), marks }
            }
            Scale::Decades => {
                let (low, high) = (low.log10().floor() as i32, high.log10().ceil() as i32);
                let high = high.max(low + 1);
                let marks = (low..=high).map(|power| 10_f64.powi(power)).collect();
                Self { scale, low: low.into(), high: high.into(), marks }
            }
        }
    }

    fn place(&self, value: f64) -> f64 {
        let value = if self.scale == Scale::Decades { value.log10() } else { value };
        (value - self.low) / (self.high - self.low)
    }
}

/// A round distance of marks, for three to ten marks up to `high`.
fn step(high: f64) -> f64 {
    let high = if high > 0.0 { high } else { 1.0 };
    let decade = 10_f64.powf((high / 3.0).log10().floor());
    [5.0, 2.0, 1.0].into_iter().map(|part| part * decade).find(|step| high / step >= 3.0).unwrap_or(decade)
}

impl fmt::Display for Plot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let points = || self.lines.iter().flat_map(|line| line.points.iter().copied());
        let (x_axis, y_axis) =
            (Axis::new(self.x.1, points().map(|(x, _)| x)), Axis::new(self.y.1, points().map(|(_, y)| y)));
        let x = |value: f64| MARGIN + x_axis.place(value) * (WIDTH - 2.0 * MARGIN);
        let y = |value: f64| HEIGHT - MARGIN - y_axis.place(value) * (HEIGHT - 2.0 * MARGIN);
        let (right, bottom) = (WIDTH - MARGIN, HEIGHT - MARGIN);
        writeln!(f, "<svg viewBox=\"0 0 {} {HEIGHT}\">", WIDTH + LEGEND)?;
        for mark in &x_axis.marks {
            let at = x(*mark);
            writeln!(
                f,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{MARGIN}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
                 <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{mark}</text>",
                bottom + 18.0,
            )?;
        }
        for mark in &y_axis.marks {
            let at = y(*mark);
            writeln!(
                f,
                "<line x1=\"{MARGIN}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{mark}</text>",
                MARGIN - 6.0,
                at + 4.0
            )?;
        }
        writeln!(
            f,
            "<text x=\"{right}\" y=\"{}\" text-anchor=\"end\">{}</text><text x=\"6\" y=\"{}\">{}</text>",
            HEIGHT - 12.0,
            self.x.0,
            MARGIN - 20.0,
            self.y.0
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
    use super::*;

    #[test]
    fn every_point_lies_between_the_axes() {
        let mut plot = Plot::new(("x", Scale::Decades), ("y", Scale::Linear));
        plot.add("a".into(), "red", false, vec![(0.02, 0.0), (30.0, 7.3), (500.0, 9.9), (0.0, 3.0), (1.0, f64::NAN)]);
        plot.add("none".into(), "red", true, vec![(-1.0, 1.0)]);
        let svg = plot.to_string();
        assert_eq!(svg.matches("<polyline").count(), 1);
        let points: Vec<&str> = svg.split("points=\"").nth(1).unwrap().split('"').next().unwrap().split(' ').collect();
        assert_eq!(points.len(), 3);
        for point in points {
            let (x, y) = point.split_once(',').unwrap();
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!((MARGIN..=WIDTH - MARGIN).contains(&x) && (MARGIN..=HEIGHT - MARGIN).contains(&y), "{point}");
        }
    }

    #[test]
    fn marks_enclose_the_values() {
        let marks = |scale, values: &[f64]| Axis::new(scale, values.iter().copied()).marks;
        assert_eq!(marks(Scale::Decades, &[0.02, 500.0]), [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(marks(Scale::Decades, &[10.0]), [10.0, 100.0]);
        assert_eq!(marks(Scale::Linear, &[0.3, 9.9]), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(marks(Scale::Linear, &[1.0]), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert!(!marks(Scale::Linear, &[]).is_empty());
    }
}
