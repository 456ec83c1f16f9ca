//! Counts passed and failed checks.

use crate::error::{Error, Result};

/// How many checks passed and failed so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    passed: u64,
    failed: u64,
}

impl Tally {
    /// The line of a single passed test.
    pub const PASSED: Self = Self { passed: 1, failed: 0 };

    /// Adds the counts in a line of a Rust test program: `test result: ok. 5 passed; 0 failed; ...`.
    pub fn add_line(&mut self, line: &str) {
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
            return;
        };
        for count in counts.split("; ") {
            match count.split_once(' ').map(|(number, what)| (number.parse::<u64>(), what)) {
                Some((Ok(number), "passed")) => self.passed += number,
                Some((Ok(number), "failed")) => self.failed += number,
                _ => {}
            }
        }
    }

    /// Number of failed checks.
    pub const fn failed(self) -> u64 {
        self.failed
    }

    /// Prints the counts.
    pub fn conclude(self) -> Result<()> {
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 { Ok(()) } else { Err(Error::other("not everything passed")) }
    }

    /// Adds one check that is not a Rust test.
    pub fn add<T>(&mut self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => {
                self.passed += 1;
                Some(value)
            }
            Err(error) => {
                eprintln!("{error}");
                self.failed += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_results_of_test_programs() {
        let mut tally = Tally::default();
        tally.add_line("test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s");
        tally.add_line("test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out");
        tally.add_line("running 5 tests");
        assert_eq!(tally, Tally { passed: 7, failed: 3 });
    }
}
