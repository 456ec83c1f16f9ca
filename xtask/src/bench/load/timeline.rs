//! Memory held and memory needed over time.

use std::time::Duration;

use bellows_bench::load::{Look, Ran};
use serde::Serialize;

/// Memory at a moment, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// Seconds from the beginning.
    pub at: f64,
    /// What the host has under the guest.
    pub held: f64,
    /// What an idle guest and all that living instances have allocated take.
    pub needed: f64,
    /// The same, if each instance had its peak for all of its life.
    pub needed_by_peak: f64,
    /// What is held beyond the need.
    pub excess: Excess,
}

/// Memory that is held and not needed, in bytes, by where it lies. Memory that came later than an instance had it makes a part negative
/// for a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Excess {
    /// What this guest takes when it is idle, beyond the smallest of all guests: memory maps of partitions, for example.
    pub idle: f64,
    /// What base memory has more than when it was idle, and no instance has allocated: page cache, memory that the guest has freed.
    pub base: f64,
    /// What partitions have and no instance has allocated: rests of huge pages, memory of instances that have ended.
    pub partitions: f64,
}

/// Points in their order. A value holds until the next point.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Timeline(pub Vec<Point>);

impl Excess {
    /// In the order of this type.
    pub fn parts(self) -> [f64; 3] {
        [self.idle, self.base, self.partitions]
    }
}

impl Timeline {
    /// The looks at a guest that takes `idle` bytes without instances, the smallest of all guests `least`, while functions `ran` in it; none
    /// after the last has ended. `limited` tells whether its kernel counts memory in partitions apart from limits.
    pub fn new(looks: &[Look], ran: &[Ran], idle: u64, least: u64, apart: bool) -> Self {
        let end = ran.iter().map(|ran| ran.unplugged).max().unwrap_or_default();
        let point = |look: &Look| {
            let peaks: u64 = ran.iter().filter(|ran| lives(ran, look.at)).map(|ran| ran.peak).sum();
            let [held, partitions, allocated, limited, idle, least, peaks] =
                [look.held, look.partitions, look.allocated, look.limited, idle, least, peaks]
                    .map(|bytes| bytes as f64);
            // Without that it is in partitions, if there are any.
            let in_base = if apart || partitions == 0.0 { limited } else { 0.0 };
            Point {
                at: look.at.as_secs_f64(),
                held,
                needed: least + allocated,
                needed_by_peak: least + peaks,
                excess: Excess {
                    idle: idle - least,
                    base: held - partitions - idle - in_base,
                    partitions: partitions - (allocated - in_base),
                },
            }
        };
        Self(looks.iter().filter(|look| look.at <= end).map(point).collect())
    }

    /// The mean over time; NaN for less than two points.
    pub fn mean(&self, value: impl Fn(&Point) -> f64) -> f64 {
        let sum: f64 = self.0.windows(2).map(|pair| value(&pair[0]) * (pair[1].at - pair[0].at)).sum();
        let (Some(first), Some(last)) = (self.0.first(), self.0.last()) else { return f64::NAN };
        sum / (last.at - first.at)
    }

    /// The largest value; NaN without a point.
    pub fn max(&self, value: impl Fn(&Point) -> f64) -> f64 {
        self.0.iter().map(value).fold(f64::NAN, f64::max)
    }

    /// What is held beyond the need, by parts: means over time.
    pub fn excess(&self) -> Excess {
        Excess {
            idle: self.mean(|point| point.excess.idle),
            base: self.mean(|point| point.excess.base),
            partitions: self.mean(|point| point.excess.partitions),
        }
    }
}

fn lives(ran: &Ran, at: Duration) -> bool {
    ran.admitted <= at && at < ran.done
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    /// A function that has a place from `at` on, and its result 4 s later.
    fn ran(at: u64) -> Ran {
        Ran { at: S(at), admitted: S(at), done: S(at + 4), unplugged: S(at + 5), plug: S(0), unplug: S(1), peak: 300 }
    }

    #[test]
    fn a_value_holds_until_the_next_look() {
        let look = |at, allocated| Look { at: S(at), held: 500, partitions: 300, allocated, limited: 20 };
        let looks = [look(0, 0), look(1, 200), look(3, 100), look(8, 0), look(11, 1000)];
        let timeline = Timeline::new(&looks, &[ran(0), ran(3)], 120, 100, true);
        assert_eq!(timeline.0.len(), 4, "the last look comes after the last unplug");
        assert_eq!(timeline.mean(|point| point.held), 500.0);
        assert_eq!(timeline.mean(|point| point.needed), 100.0 + (2.0 * 200.0 + 5.0 * 100.0) / 8.0);
        // The looks find one until 8 s, and another from 3 s on.
        assert_eq!(timeline.mean(|point| point.needed_by_peak), 100.0 + (3.0 * 300.0 + 5.0 * 600.0) / 8.0);
        assert_eq!((timeline.max(|point| point.needed), timeline.max(|point| point.held)), (300.0, 500.0));
    }

    #[test]
    fn the_parts_of_the_excess_make_all_of_it() {
        for (apart, partitions, parts) in [(true, 300, [20.0, 60.0, 120.0]), (false, 300, [20.0, 80.0, 100.0])] {
            let look = Look { at: S(0), held: 500, partitions, allocated: 200, limited: if apart { 20 } else { 200 } };
            let point = Timeline::new(&[look], &[ran(0)], 120, 100, apart).0[0];
            assert_eq!(point.excess.parts(), parts);
            assert_eq!(point.excess.parts().iter().sum::<f64>(), point.held - point.needed);
        }
        let static_memory = Look { at: S(0), held: 500, partitions: 0, allocated: 200, limited: 200 };
        let point = Timeline::new(&[static_memory], &[ran(0)], 120, 100, false).0[0];
        assert_eq!(point.excess, Excess { idle: 20.0, base: 180.0, partitions: 0.0 });
    }

    #[test]
    fn a_guest_without_a_look_has_no_mean() {
        assert!(
            Timeline::default().mean(|point| point.held).is_nan()
                && Timeline::default().max(|point| point.held).is_nan()
        );
    }
}
