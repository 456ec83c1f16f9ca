//! Answers of Bellows' own requests.

use std::io;
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
    /// The connection is another one's from here on.
    Upgrade,
}

/// A body that comes in parts.
pub(crate) struct Feed(mpsc::Receiver<io::Result<Bytes>>);

impl Feed {
    /// A body and its sender, which waits while `parts` parts have not been taken. With an error the body breaks off.
    pub(crate) fn new(parts: usize) -> (mpsc::Sender<io::Result<Bytes>>, Self) {
        let (sender, receiver) = mpsc::channel(parts);
        (sender, Self(receiver))
    }
}

impl Body for Feed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(context).map(|part| part.map(|part| part.map(Frame::data)))
    }
}
