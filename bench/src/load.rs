//! `bench load` and `bench elastic`: functions that come in bursts and need memory for a while.
//!
//! | quantity | distribution | source |
//! |---|---|---|
//! | execution time | log-normal, log-mean -0.38, sigma 2.36, in seconds | Shahrad et al., *Serverless in the Wild*, USENIX ATC 2020 |
//! | memory | Burr XII, c = 11.652, k = 0.221, lambda = 107.083 MB | the same |
//! | time between arrivals | Lomax, shape 1.5 (its variance is infinite) | ours: in that paper these times mostly vary more than an exponential's |

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cost::Cost;

/// How memory is provided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provision {
    /// All of it, always.
    Static,
    /// On demand, from one virtio-mem device for all.
    Shared,
    /// On demand, with a device and a node for each instance, by the means of every kernel.
    Stock,
    /// On demand, with the guest memory extension.
    Extension,
    /// As `Extension`, in a guest whose base memory grows on demand, too, and whose functions are forks of one zygote.
    Elastic,
}

impl Provision {
    /// All.
    const ALL: [Self; 5] = [Self::Static, Self::Shared, Self::Stock, Self::Extension, Self::Elastic];
}

impl FromStr for Provision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.into_iter().find(|provision| provision.to_string() == text);
        named.ok_or_else(|| format!("{text:?}: expected one of {}", Self::ALL.map(|it| it.to_string()).join(", ")))
    }
}

impl fmt::Display for Provision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Static => "static",
            Self::Shared => "shared",
            Self::Stock => "stock",
            Self::Extension => "extension",
            Self::Elastic => "elastic",
        })
    }
}

/// The computation of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Function {
    /// Compresses a megabyte.
    Compress,
    /// Writes and reads JSON.
    Json,
    /// Multiplies matrices.
    Multiply,
    /// Fills templates in.
    Template,
}

impl Function {
    /// All.
    pub const ALL: [Self; 4] = [Self::Compress, Self::Json, Self::Multiply, Self::Template];
}

/// A function to run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Arrival {
    /// Time from the beginning.
    pub at: Duration,
    /// Its computation.
    pub function: Function,
    /// Memory that it fills, in MiB.
    pub memory_mib: u64,
    /// Rounds of the computation; each stands for [`ROUND`] of execution time.
    pub rounds: u32,
}

/// Execution time that a round stands for.
pub const ROUND: Duration = Duration::from_millis(100);
/// Longest execution time: the tail is cut off there.
const LONGEST: f64 = 6.0;
/// Least and most memory, in MiB: tails are cut off there.
pub const MEMORY_MIB: (f64, f64) = (16.0, 360.0);

/// Arrivals for `length`, `gap` apart on average. The same seed gives the same arrivals.
pub fn arrivals(seed: u64, length: Duration, gap: Duration) -> Vec<Arrival> {
    let mut chance = Chance(seed | 1);
    let mut at = Duration::ZERO;
    let mut arrivals = Vec::new();
    loop {
        at += gap.mul_f64(chance.lomax(1.5)).min(length);
        if at >= length {
            return arrivals;
        }
        arrivals.push(Arrival {
            at,
            function: Function::ALL[(chance.uniform() * 4.0) as usize % 4],
            memory_mib: chance.burr(11.652, 0.221, 107.083).clamp(MEMORY_MIB.0, MEMORY_MIB.1) as u64,
            rounds: (chance.log_normal(-0.38, 2.36).min(LONGEST) / ROUND.as_secs_f64()).ceil().max(1.0) as u32,
        });
    }
}

/// Numbers that look random: Marsaglia's xorshift64*.
struct Chance(u64);

impl Chance {
    /// From 0 to below 1.
    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Lomax (Pareto II) with mean 1.
    fn lomax(&mut self, shape: f64) -> f64 {
        (shape - 1.0) * ((1.0 - self.uniform()).powf(-1.0 / shape) - 1.0)
    }

    fn burr(&mut self, c: f64, k: f64, lambda: f64) -> f64 {
        lambda * ((1.0 - self.uniform()).powf(-1.0 / k) - 1.0).powf(1.0 / c)
    }

    /// By Box and Muller.
    fn log_normal(&mut self, mean: f64, sigma: f64) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        (mean + sigma * radius * (std::f64::consts::TAU * self.uniform()).cos()).exp()
    }
}

/// A line of the program's output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// A new guest; the following lines belong to it.
    Guest {
        /// How it gets memory.
        provision: Provision,
        /// Bytes that the host had under it before the first arrival.
        base: u64,
    },
    /// The cost of everything that ran in the guest, if time is counted.
    Cost(Cost),
    /// A function that ran.
    Ran(Ran),
    /// Memory while functions run.
    Look(Look),
    /// The cost of some looks at a guest before the first arrival, if time is counted.
    Looks {
        /// How many.
        count: u32,
        /// Their cost, all together.
        cost: Cost,
    },
}

/// Memory at a moment, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// When, from the beginning.
    pub at: Duration,
    /// What the host has under the guest.
    pub held: u64,
    /// Of that, under memory of partitions.
    pub partitions: u64,
    /// What living instances have allocated in the guest, a zygote among them.
    pub allocated: u64,
    /// Of that, what counts for their limits: with the extension, what lies in base memory.
    pub limited: u64,
}

/// A function that ran.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ran {
    /// Its arrival, from the beginning.
    pub at: Duration,
    /// When it had a partition.
    pub admitted: Duration,
    /// When its result was there.
    pub done: Duration,
    /// When the guest could no longer reach its memory; with static memory, when it was removed.
    pub unplugged: Duration,
    /// Time of the plug.
    pub plug: Duration,
    /// Time of the unplug.
    pub unplug: Duration,
    /// Most memory that it had, in bytes.
    pub peak: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn the_same_seed_makes_the_same_arrivals_in_order() {
        let gap = Duration::from_secs(2);
        let one = arrivals(7, HOUR, gap);
        assert_eq!(one, arrivals(7, HOUR, gap));
        assert_ne!(one, arrivals(9, HOUR, gap));
        assert!(one.is_sorted_by_key(|arrival| arrival.at) && one.iter().all(|arrival| arrival.at < HOUR));
    }

    #[test]
    fn provisions_are_known_by_their_names() {
        for provision in Provision::ALL {
            assert_eq!(provision.to_string().parse(), Ok(provision));
        }
        assert!("none".parse::<Provision>().unwrap_err().contains("\"none\": expected one of static, shared"));
    }

    #[test]
    fn distributions_have_their_medians() {
        let mut chance = Chance(1);
        let mut quantile = |draw: &mut dyn FnMut(&mut Chance) -> f64, part: f64| {
            let mut values: Vec<f64> = (0..20_000).map(|_| draw(&mut chance)).collect();
            values.sort_by(f64::total_cmp);
            values[(part * 20_000.0) as usize]
        };
        let close = |value: f64, to: f64| assert!((value / to - 1.0).abs() < 0.1, "{value} {to}");
        // Medians by the formulas of the distributions: exp(mean), and the inverse of the others' functions at one half.
        close(quantile(&mut |chance| chance.log_normal(-0.38, 2.36), 0.5), (-0.38_f64).exp());
        close(quantile(&mut |chance| chance.log_normal(-0.38, 2.36), 0.84134), (-0.38_f64 + 2.36).exp());
        close(quantile(&mut |chance| chance.burr(11.652, 0.221, 107.083), 0.5), 139.4);
        close(quantile(&mut |chance| chance.lomax(1.5), 0.5), 0.5 * (2_f64.powf(2.0 / 3.0) - 1.0));
    }

    #[test]
    fn arrivals_are_bursty() {
        let arrivals = arrivals(3, 24 * HOUR, Duration::from_secs(2));
        let gaps: Vec<f64> = arrivals.windows(2).map(|pair| (pair[1].at - pair[0].at).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!(variance.sqrt() / mean > 1.5, "{} {mean}", variance.sqrt());
    }
}
