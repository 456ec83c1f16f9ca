//! Traces: spans that go to a collector by OpenTelemetry's protocol (OTLP) over HTTP, from a thread of its own.
//!
//! What a collector does not take in time is lost: the queue is bounded, and nothing waits for it.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{HOST, HeaderValue};
use hyper::{HeaderMap, Uri};
use hyper_util::rt::TokioIo;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{Bytes, HeaderExtractor, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SdkTracerProvider, Span, SpanData, SpanProcessor};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tracing::{Level, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::registry::LookupSpan;

/// Time for a collector to take a batch.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of a collector's answer.
const ANSWER: usize = 64 << 10;

/// The base of a collector's URL: spans go to `v1/traces` below it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Endpoint {
    host: String,
    port: u16,
    url: String,
}

impl FromStr for Endpoint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected http://HOST:PORT, such as http://localhost:4318; a collector on this host can send spans on with TLS";
        let uri: Uri = text.parse().map_err(|_| EXPECTED)?;
        let (Some("http"), Some(authority), None) = (uri.scheme_str(), uri.authority(), uri.query()) else {
            return Err(EXPECTED);
        };
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(EXPECTED);
        }
        // Brackets of an IPv6 address are the URL's.
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let url = format!("{}/v1/traces", text.trim_end_matches('/'));
        Ok(Self { host, port: authority.port_u16().unwrap_or(80), url })
    }
}

/// Why no spans are sent.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// Its name is not known, for instance.
    #[error("cannot find the collector of spans `{host}`")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// The exporter cannot be made.
    #[error("cannot send spans")]
    Exporter(#[from] ExporterBuildError),
    /// It has no runtime.
    #[error("cannot send spans")]
    Runtime(#[source] io::Error),
}

/// What sends spans. When it is dropped, those that wait are sent, for five seconds at most.
pub(crate) struct Traces {
    provider: SdkTracerProvider,
    late: Late,
    client: Client,
    url: String,
    resource: Resource,
}

impl Traces {
    /// Finds the collector, for a monitor whose VM is `id`. Spans are lost until [`Traces::start`].
    ///
    /// # Errors
    /// The collector's host has no address.
    pub(crate) fn new(endpoint: &Endpoint, id: &str) -> Result<Self, TracesError> {
        let found = (&*endpoint.host, endpoint.port).to_socket_addrs();
        let addresses = found.map_err(|source| TracesError::Resolve { host: endpoint.host.clone(), source })?.collect();
        let resource = Resource::builder()
            .with_service_name("bellows")
            .with_attribute(KeyValue::new("service.instance.id", id.to_owned()))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let late = Late::default();
        let provider =
            SdkTracerProvider::builder().with_span_processor(late.clone()).with_resource(resource.clone()).build();
        let client = Client { addresses, fails: Arc::default(), runtime: Arc::default() };
        Ok(Self { provider, late, client, url: endpoint.url.clone(), resource })
    }

    /// What takes spans of this process, and its warnings as events in them.
    pub(crate) fn layer<S: Subscriber + for<'span> LookupSpan<'span>>(&self) -> impl Layer<S> + use<S> {
        let ours =
            filter_fn(|data| data.target().starts_with("bellows") && (data.is_span() || *data.level() <= Level::WARN));
        let layer = tracing_opentelemetry::layer().with_tracer(self.provider.tracer("bellows"));
        layer.with_filter(ours.with_max_level_hint(LevelFilter::DEBUG))
    }

    /// Begins to send spans, on a thread that has the confinement of this one.
    ///
    /// # Errors
    /// The exporter cannot be made.
    pub(crate) fn start(&self) -> Result<(), TracesError> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(TracesError::Runtime)?;
        // There is one start.
        let _ = self.client.runtime.set(runtime);
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(self.client.clone())
            .with_endpoint(&self.url)
            .with_timeout(PATIENCE)
            .build()?;
        let mut batches = BatchSpanProcessor::builder(exporter).build();
        batches.set_resource(&self.resource);
        let _ = self.late.0.set(batches);
        Ok(())
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::debug!(%error, "the last spans are lost");
        }
    }
}

/// Makes `span` a part of the trace that a request's header `traceparent` names (W3C Trace Context), if there is one.
pub(crate) fn follow(span: &tracing::Span, headers: &HeaderMap) {
    if headers.contains_key("traceparent") {
        // Where nobody takes spans, it has no place in a trace.
        let _ = span.set_parent(TraceContextPropagator::new().extract(&HeaderExtractor(headers)));
    }
}

/// A processor that comes after its provider: its thread would else begin before this process is confined.
#[derive(Clone, Debug, Default)]
struct Late(Arc<OnceLock<BatchSpanProcessor>>);

impl SpanProcessor for Late {
    fn on_start(&self, span: &mut Span, context: &Context) {
        if let Some(batches) = self.0.get() {
            batches.on_start(span, context);
        }
    }

    fn on_end(&self, span: SpanData) {
        if let Some(batches) = self.0.get() {
            batches.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.get().map_or(Ok(()), BatchSpanProcessor::force_flush)
    }

    fn shutdown_with_timeout(&self, limit: Duration) -> OTelSdkResult {
        self.0.get().map_or(Ok(()), |batches| batches.shutdown_with_timeout(limit))
    }
}

/// The way to the collector: a connection for each batch.
#[derive(Clone)]
struct Client {
    addresses: Arc<[SocketAddr]>,
    /// The last batch was not taken, and the log says so.
    fails: Arc<AtomicBool>,
    runtime: Arc<OnceLock<Runtime>>,
}

impl Client {
    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let runtime = self.runtime.get().ok_or("nothing is sent yet")?;
        let sent = runtime.block_on(async { timeout(PATIENCE, exchange(&self.addresses, request)).await });
        let answer = sent.unwrap_or_else(|_| Err(format!("no answer after {PATIENCE:?}").into()));
        let problem = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(answer.status().to_string()),
            Err(error) => Some(error.to_string()),
        };
        let failed = self.fails.swap(problem.is_some(), Ordering::Relaxed);
        match problem {
            Some(problem) if !failed => tracing::warn!(problem, "spans are lost: the collector does not take them"),
            None if failed => tracing::info!("the collector takes spans again"),
            _ => {}
        }
        answer
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl HttpClient for Client {
    /// Waits, for the thread that sends has nothing else to do.
    fn send_bytes<'this, 'answer>(
        &'this self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'answer>>
    where
        'this: 'answer,
        Self: 'answer,
    {
        Box::pin(std::future::ready(self.send(request)))
    }
}

async fn exchange(addresses: &[SocketAddr], request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let stream = TcpStream::connect(addresses).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let (mut head, body) = request.into_parts();
    // The client of a connection has a path for a target, and names the host itself.
    let host = head.uri.authority().map(|authority| HeaderValue::from_str(authority.as_str())).transpose()?;
    head.headers.extend(host.map(|host| (HOST, host)));
    head.uri = head.uri.path().parse()?;
    let answered = async {
        let (head, body) = sender.send_request(Request::from_parts(head, Full::new(body))).await?.into_parts();
        Ok(Response::from_parts(head, Limited::new(body, ANSWER).collect().await?.to_bytes()))
    };
    tokio::select! {
        answer = answered => answer,
        // It goes on with what it has read.
        Err(error) = connection => Err(error.into()),
    }
}

#[cfg(test)]
#[path = "traces_test.rs"]
mod tests;
