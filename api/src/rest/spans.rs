//! Spans: what takes time, from a request to the first byte of what it has started. `crate::traces` sends them where somebody wants them.

use hyper::HeaderMap;
use tokio::task::JoinHandle;
use tracing::Span;
use tracing::field::Empty;

/// A request, which may be a part of what its client traces.
pub(super) fn request(method: &str, path: &str, headers: &HeaderMap) -> Span {
    // Names are few: what a path says beside stands in a field.
    let group = || path.split('/').nth(1).unwrap_or_default();
    let span = tracing::debug_span!(
        "request",
        otel.name = format!("{method} /{}", group()),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = method,
        http.response.status_code = Empty,
        url.path = path,
    );
    #[cfg(feature = "otlp")]
    crate::traces::follow(&span, headers);
    #[cfg(not(feature = "otlp"))]
    let _ = headers;
    span
}

/// Says in the span of a request how it was answered.
pub(super) fn answered(status: u16) {
    let span = Span::current();
    span.record("http.response.status_code", status);
    if status >= 500 {
        span.record("otel.status_code", "ERROR");
    }
}

/// Does `work` on a thread that may wait, in the span of the caller.
pub(crate) fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let span = Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work))
}
