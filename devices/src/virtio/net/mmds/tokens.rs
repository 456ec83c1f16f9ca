//! Tokens of sessions: random, with an end each. Time is told from outside.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Lives that a token may have, in seconds.
pub(super) const LIVES_S: std::ops::RangeInclusive<u32> = 1..=21600;
/// Random bytes of a token.
pub(super) const BYTES: usize = 24;
/// Most tokens at a time. One more ends the oldest.
const MOST: usize = 1024;

/// The tokens that were given, in order.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    given: VecDeque<(String, Instant)>,
}

impl Tokens {
    /// Gives a token of `random` bytes, for `seconds` seconds, which are among [`LIVES_S`].
    pub(super) fn give(&mut self, random: [u8; BYTES], seconds: u32, now: Instant) -> String {
        self.given.retain(|(_, end)| *end > now);
        if self.given.len() >= MOST {
            self.given.pop_front();
        }
        let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        self.given.push_back((token.clone(), now + Duration::from_secs(seconds.into())));
        token
    }

    /// Whether `token` is one that lives.
    pub(super) fn is_valid(&self, token: &str, now: Instant) -> bool {
        // All are looked at, in all their length: how long it takes tells nothing.
        let matches = self.given.iter().filter(|(given, end)| same(given, token) & (*end > now));
        matches.count() > 0
    }
}

fn same(given: &str, token: &str) -> bool {
    let difference = given.bytes().zip(token.bytes()).fold(0, |difference, (a, b)| difference | (a ^ b));
    given.len() == token.len() && difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_ends_by_its_time_or_by_too_many_others() {
        let now = Instant::now();
        let mut tokens = Tokens::default();
        let first = tokens.give([0; BYTES], 60, now);
        assert_eq!(first.len(), 48);
        let later = |seconds| now + Duration::from_secs(seconds);
        assert!(tokens.is_valid(&first, later(59)) && !tokens.is_valid(&first, later(60)));
        assert!(
            !tokens.is_valid("", now)
                && !tokens.is_valid(&first[..47], now)
                && !tokens.is_valid(&format!("{first}0"), now)
        );
        for n in 1..MOST {
            tokens.give([(n % 255) as u8 + 1; BYTES], 100, now);
        }
        assert!(tokens.is_valid(&first, now));
        let last = tokens.give([1; BYTES], 100, later(1));
        assert!(tokens.is_valid(&last, later(1)) && !tokens.is_valid(&first, later(1)));
        assert_eq!(tokens.given.len(), MOST);
        tokens.give([7; BYTES], 1, later(200));
        assert_eq!(tokens.given.len(), 1, "what has ended takes no room");
    }
}
