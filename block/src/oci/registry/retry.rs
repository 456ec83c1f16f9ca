//! When to try again, and for how long to wait before that.

use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ureq::http::{HeaderMap, StatusCode, header};

use crate::cancel::Cancel;

/// Longest wait before a try. A registry that asks for more is not tried again.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// Bytes after which a blob that breaks off again has as many tries as at first.
const PROGRESS: u64 = 1 << 20;

/// How often to retry after an error that may pass, and whom to notify.
#[derive(Clone)]
pub struct Retries {
    /// Most tries, the first counted in.
    pub tries: u32,
    /// Time before the second try; it doubles from try to try.
    pub backoff: Duration,
    /// Is called before each wait, on the thread that waits.
    pub notice: Arc<dyn Fn(&Retry) + Send + Sync>,
}

impl Default for Retries {
    fn default() -> Self {
        Self { tries: 6, backoff: Duration::from_millis(500), notice: Arc::new(|_| {}) }
    }
}

impl fmt::Debug for Retries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retries").field("tries", &self.tries).field("backoff", &self.backoff).finish_non_exhaustive()
    }
}

/// Something that will be tried again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Retry {
    /// What is asked for.
    pub url: String,
    /// Why it failed.
    pub reason: String,
    /// The next try, counted from 1.
    pub number: u32,
    /// Most tries.
    pub tries: u32,
    /// Time until then.
    pub wait: Duration,
}

impl Retry {
    /// All but what is asked for.
    #[must_use]
    pub fn prospect(&self) -> String {
        let Self { reason, number, tries, wait, .. } = self;
        format!("{reason}; try {number} of {tries} in {:.1} s", wait.as_secs_f64())
    }
}

impl fmt::Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.url, self.prospect())
    }
}

/// The tries of one thing.
#[derive(Debug)]
pub(super) struct Tries {
    retries: Retries,
    done: u32,
    /// Bytes that had come when it failed last.
    bytes: u64,
}

impl Tries {
    pub fn new(retries: &Retries) -> Self {
        Self { retries: retries.clone(), done: 1, bytes: 0 }
    }

    /// Waits until `url`, which failed for `reason`, may be tried again; false where it may not. `asked` is the wait that the
    /// registry wants.
    pub fn again(&mut self, url: &str, reason: &dyn fmt::Display, asked: Option<Duration>, cancel: &Cancel) -> bool {
        if self.done >= self.retries.tries || asked.is_some_and(|wait| wait > MAX_WAIT) {
            return false;
        }
        let doubled = self.retries.backoff.saturating_mul(1 << (self.done - 1).min(16)).min(MAX_WAIT);
        self.done += 1;
        let retry = Retry {
            url: url.to_owned(),
            reason: reason.to_string(),
            number: self.done,
            tries: self.retries.tries,
            wait: asked.unwrap_or(doubled),
        };
        (self.retries.notice)(&retry);
        cancel.sleep(retry.wait)
    }

    /// So many bytes have come: a blob that gets on may break off as often as it likes.
    pub fn progressed(&mut self, bytes: u64) {
        if bytes - self.bytes >= PROGRESS {
            (self.bytes, self.done) = (bytes, 1);
        }
    }
}

/// Whether what a registry answers may be another thing soon.
pub(super) fn is_passing(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// The wait that an answer asks for (RFC 9110 section 10.2.3): seconds, or a date.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok().map(|date| date.duration_since(now).unwrap_or_default()),
    }
}

/// Whether a connection broke, so that another may succeed. An unreachable server and a wrong certificate do not count.
pub(super) fn is_broken_connection(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
    matches!(inner, Some(ureq::Error::Timeout(_) | ureq::Error::BodyStalled))
        || matches!(
            error.kind(),
            ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::UnexpectedEof
                | ErrorKind::TimedOut
                | ErrorKind::WouldBlock
        )
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn noted(tries: u32, backoff: Duration) -> (Retries, Arc<Mutex<Vec<Retry>>>) {
        let noted = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&noted);
        let notice = Arc::new(move |retry: &Retry| notes.lock().unwrap().push(retry.clone()));
        (Retries { tries, backoff, notice }, noted)
    }

    #[test]
    fn waits_double_and_end() {
        let (retries, noted) = noted(4, Duration::from_micros(10));
        let mut tries = Tries::new(&retries);
        let cancel = Cancel::default();
        while tries.again("u", &"r", None, &cancel) {}
        let noted = noted.lock().unwrap();
        let waits: Vec<_> = noted.iter().map(|retry| (retry.number, retry.wait.as_micros())).collect();
        assert_eq!(waits, [(2, 10), (3, 20), (4, 40)]);
        assert_eq!(noted[0].to_string(), "u: r; try 2 of 4 in 0.0 s");
        // As long as any registry may want to be left alone, however often.
        let mut tries = Tries::new(&Retries { tries: u32::MAX, ..Retries::default() });
        tries.done = 1000;
        cancel.cancel();
        assert!(!tries.again("u", &"r", None, &cancel), "a wait ends when it is cancelled");
    }

    #[test]
    fn a_registry_may_ask_for_a_wait_that_is_not_too_long() {
        let (retries, noted) = noted(4, Duration::from_secs(3600));
        let mut tries = Tries::new(&retries);
        let cancel = Cancel::default();
        assert!(tries.again("u", &"r", Some(Duration::from_micros(1)), &cancel));
        assert!(!tries.again("u", &"r", Some(MAX_WAIT + Duration::from_secs(1)), &cancel));
        assert_eq!(noted.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_blob_that_gets_on_has_all_tries_again() {
        let (retries, _) = noted(2, Duration::ZERO);
        let mut tries = Tries::new(&retries);
        let cancel = Cancel::default();
        for step in 1..10 {
            assert!(tries.again("u", &"r", None, &cancel));
            tries.progressed(step * PROGRESS);
        }
        assert!(tries.again("u", &"r", None, &cancel));
        tries.progressed(9 * PROGRESS + 1);
        assert!(!tries.again("u", &"r", None, &cancel), "a byte is no progress");
    }

    #[test]
    fn waits_are_seconds_or_dates() {
        let now = httpdate::parse_http_date("Fri, 31 Dec 1999 23:59:00 GMT").unwrap();
        let after = |text: &str| {
            let headers = [(header::RETRY_AFTER, text.parse().unwrap())].into_iter().collect();
            retry_after(&headers, now)
        };
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("Fri, 31 Dec 1999 23:59:59 GMT"), Some(Duration::from_secs(59)));
        assert_eq!(after("Thu, 31 Dec 1998 23:59:59 GMT"), Some(Duration::ZERO));
        assert_eq!(after("soon"), None);
        assert_eq!(after("-1"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
