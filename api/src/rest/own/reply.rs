//! Answers of Bellows' own requests.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame};
use serde_json::Value;
use tokio::sync::mpsc;

/// The body of an answer.
pub(crate) enum Reply {
    Nothing,
    Json(Value),
    Text {
        kind: &'static str,
        text: String,
    },
    /// It goes on until the sender is dropped.
    Stream {
        kind: &'static str,
        feed: Feed,
    },
}

/// A body that comes in parts.
pub(crate) struct Feed(mpsc::Receiver<Bytes>);

impl Feed {
    /// A body and its sender, which waits while `parts` parts have not been taken.
    pub(crate) fn new(parts: usize) -> (mpsc::Sender<Bytes>, Self) {
        let (sender, receiver) = mpsc::channel(parts);
        (sender, Self(receiver))
    }
}

impl Body for Feed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|part| part.map(|part| Ok(Frame::data(part))))
    }
}
