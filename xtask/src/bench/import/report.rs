//! From single imports to a report.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::bench::figure::{Better, Figure};
use crate::bench::statistics::{median, sorted};
use crate::error::{Error, Result};

/// The program that makes an image of the layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// `bellows image import`
    #[default]
    Bellows,
    /// `tar -x`, `mkfs.erofs` and `sync`
    Mkfs,
}

/// The compression of the layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    #[default]
    Plain,
    Gzip,
}

/// One import.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    pub side: Side,
    pub form: Form,
    /// First or second of its round.
    pub turn: u32,
    pub wall: Duration,
    /// Processor time of the programs and of the kernel.
    pub cpu: Duration,
    /// The most memory that one of the programs had resident.
    pub peak_bytes: u64,
    pub image_bytes: u64,
}

/// What `target/bench/import.json` holds.
#[derive(Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    layer: Layer,
    rows: Vec<Row>,
    ratios: Vec<Ratios>,
}

/// The layer that is imported.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Layer {
    /// Bytes of its archive, unpacked.
    #[serde(rename = "layer_bytes")]
    pub bytes: u64,
    /// Bytes of its files in whole blocks of 4 KiB: the least for an image that a guest can use in place.
    #[serde(rename = "aligned_bytes")]
    pub aligned: u64,
}

#[derive(Debug, Serialize)]
struct Row {
    form: Form,
    side: Side,
    n: usize,
    wall_s: Spread,
    cpu_s: Spread,
    /// Bytes of the unpacked archive divided by the median time.
    mb_per_s: f64,
    peak_bytes: u64,
    image_bytes: u64,
    /// Median time of the first imports of all rounds divided by that of the second ones: how far the same differs from itself.
    a_a: f64,
    a_a_cpu: f64,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Spread {
    p50: f64,
    min: f64,
    max: f64,
}

/// Medians of Bellows divided by those of the other side.
#[derive(Debug, Serialize)]
struct Ratios {
    form: Form,
    wall: f64,
    cpu: f64,
    peak: f64,
    image: f64,
    /// Size of Bellows's image divided by [`Layer::aligned`].
    image_by_aligned: f64,
}

impl Side {
    pub const ALL: [Self; 2] = [Self::Bellows, Self::Mkfs];
}

impl Form {
    pub const ALL: [Self; 2] = [Self::Plain, Self::Gzip];
}

impl Report {
    /// Makes a report of all imports of a run.
    pub fn new(layer: Layer, samples: &[Sample]) -> Result<Self> {
        let mut rows = Vec::new();
        let mut ratios = Vec::new();
        for form in Form::ALL {
            let [bellows, mkfs] = Side::ALL.map(|side| Row::new(layer.bytes, form, side, samples));
            let (bellows, mkfs) = (bellows?, mkfs?);
            ratios.push(Ratios {
                form,
                wall: bellows.wall_s.p50 / mkfs.wall_s.p50,
                cpu: bellows.cpu_s.p50 / mkfs.cpu_s.p50,
                peak: bellows.peak_bytes as f64 / mkfs.peak_bytes as f64,
                image: bellows.image_bytes as f64 / mkfs.image_bytes as f64,
                image_by_aligned: bellows.image_bytes as f64 / layer.aligned as f64,
            });
            rows.extend([bellows, mkfs]);
        }
        Ok(Self { layer, rows, ratios })
    }
}

/// The figures to compare two runs by.
pub fn figures(samples: &[Sample]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (form, side) in Form::ALL.into_iter().flat_map(|form| Side::ALL.map(|side| (form, side))) {
        let own = || samples.iter().filter(move |sample| (sample.form, sample.side) == (form, side));
        let mut add = |what: &str, unit: &str, value: fn(&Sample) -> f64| {
            figures.push(Figure::of(format!("{side}, {form}, {what}"), unit, Better::Lower, own().map(value)));
        };
        add("time", "s", |sample| sample.wall.as_secs_f64());
        add("processor time", "s", |sample| sample.cpu.as_secs_f64());
        add("peak memory", "bytes", |sample| sample.peak_bytes as f64);
        add("image", "bytes", |sample| sample.image_bytes as f64);
    }
    figures
}

impl Row {
    fn new(layer_bytes: u64, form: Form, side: Side, samples: &[Sample]) -> Result<Self> {
        let own: Vec<&Sample> = samples.iter().filter(|sample| (sample.form, sample.side) == (form, side)).collect();
        let none = || Error::other(format!("no import of {side} was measured"));
        let spread = |value: &dyn Fn(&Sample) -> Duration, turn: Option<u32>| {
            let wanted = own.iter().filter(|sample| turn.is_none_or(|turn| sample.turn == turn));
            let values = sorted(wanted.map(|sample| value(sample).as_secs_f64()).collect());
            let p50 = median(&values).ok_or_else(none)?;
            Ok::<_, Error>(Spread { p50, min: values[0], max: values[values.len() - 1] })
        };
        let a_a = |value| Ok::<_, Error>(spread(value, Some(0))?.p50 / spread(value, Some(1))?.p50);
        let wall_s = spread(&|sample| sample.wall, None)?;
        let most = |value: fn(&Sample) -> u64| own.iter().map(|sample| value(sample)).max().unwrap_or(0);
        Ok(Self {
            form,
            side,
            n: own.len(),
            wall_s,
            cpu_s: spread(&|sample| sample.cpu, None)?,
            mb_per_s: layer_bytes as f64 / 1e6 / wall_s.p50,
            peak_bytes: most(|sample| sample.peak_bytes),
            image_bytes: most(|sample| sample.image_bytes),
            a_a: a_a(&|sample| sample.wall)?,
            a_a_cpu: a_a(&|sample| sample.cpu)?,
        })
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bellows => "bellows",
            Self::Mkfs => "tar+mkfs",
        })
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: f64 = (1 << 20) as f64;
        writeln!(f, "Import of a layer of {:.1} MiB on one processor:\n", self.layer.bytes as f64 / MIB)?;
        writeln!(
            f,
            "  form   side         n   p50 s   (min to max)      A/A   CPU s     A/A    MB/s   peak MiB   image MiB"
        )?;
        for row in &self.rows {
            let Spread { p50, min, max } = row.wall_s;
            writeln!(
                f,
                "  {:<6} {:<8} {:>5} {p50:>7.2}   ({min:.2} to {max:.2})   {:>6.3} {:>7.2}  {:>6.3} {:>7.0} {:>10.1} {:>11.1}",
                row.form,
                row.side,
                row.n,
                row.a_a,
                row.cpu_s.p50,
                row.a_a_cpu,
                row.mb_per_s,
                row.peak_bytes as f64 / MIB,
                row.image_bytes as f64 / MIB
            )?;
        }
        for ratios in &self.ratios {
            writeln!(
                f,
                "\n  {}: bellows takes {:.2} of the time, {:.2} of the processor's time and {:.2} of the memory; its image has {:.3} of the size, \
                 and {:.3} of what its files are in whole blocks.",
                ratios.form, ratios.wall, ratios.cpu, ratios.peak, ratios.image, ratios.image_by_aligned
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_compare_the_sides_and_each_with_itself() {
        let sample = |side, form, turn, wall, peak_bytes| Sample {
            side,
            form,
            turn,
            wall: Duration::from_secs(wall),
            cpu: Duration::from_secs(wall),
            peak_bytes,
            image_bytes: 1000,
        };
        let mut samples = Vec::new();
        for form in Form::ALL {
            for (turn, wall) in [(0, 1), (1, 2), (0, 1), (1, 2), (0, 3)] {
                samples.push(sample(Side::Bellows, form, turn, wall, 100));
                samples.push(sample(Side::Mkfs, form, turn, wall * 4, 50));
            }
        }
        let layer = Layer { bytes: 8_000_000, aligned: 800 };
        let report = Report::new(layer, &samples).unwrap();
        let row = &report.rows[0];
        assert_eq!((row.n, row.wall_s.p50, row.wall_s.min, row.wall_s.max), (5, 2.0, 1.0, 3.0));
        assert_eq!((row.a_a, row.mb_per_s), (0.5, 4.0));
        let ratios = &report.ratios[0];
        assert_eq!((ratios.wall, ratios.peak, ratios.image, ratios.image_by_aligned), (0.25, 2.0, 1.0, 1.25));
        assert!(report.to_string().contains("0.25 of the time"));
        assert!(Report::new(layer, &samples[..1]).is_err());
    }
}
