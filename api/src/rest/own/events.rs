//! What happens to the VM's instances and partitions, for whoever listens.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio::time::timeout;

use super::reply::Feed;

/// Events that a listener may be late by; older ones are lost to it.
const LATE: usize = 256;
/// Parts of an answer that the connection has not taken.
const PARTS: usize = 16;
/// Time between signs of life.
const ALIVE: Duration = Duration::from_secs(15);

/// The events of a VM, as server-sent events (HTML standard, section 9.2).
pub(crate) struct Events {
    sender: broadcast::Sender<Bytes>,
    /// The number of the next one.
    next: Mutex<u64>,
}

impl Default for Events {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(LATE), next: Mutex::new(1) }
    }
}

impl Events {
    /// Tells all listeners.
    pub(crate) fn tell(&self, name: &str, mut data: Value) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        data["time_ms"] = json!(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        // Held until it is sent, so that numbers come in order.
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let text = format!("id: {}\nevent: {name}\ndata: {data}\n\n", *next);
        *next += 1;
        // There may be no listener.
        let _ = self.sender.send(text.into());
    }

    /// All events from now on.
    pub(crate) fn listen(&self) -> Feed {
        let (parts, feed) = Feed::new(PARTS);
        tokio::spawn(pass_on(self.sender.subscribe(), parts));
        feed
    }
}

/// Passes events on until the listener leaves, or there can be no more.
async fn pass_on(mut events: broadcast::Receiver<Bytes>, parts: mpsc::Sender<io::Result<Bytes>>) {
    // The head of the answer goes out at once.
    let mut part = Bytes::from_static(b": events\n\n");
    while parts.send(Ok(part)).await.is_ok() {
        part = match timeout(ALIVE, events.recv()).await {
            Ok(Ok(event)) => event,
            Ok(Err(RecvError::Lagged(count))) => format!("event: lost\ndata: {{\"events\":{count}}}\n\n").into(),
            Ok(Err(RecvError::Closed)) => return,
            Err(_) => Bytes::from_static(b": alive\n\n"),
        };
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn part(feed: &mut Feed) -> String {
        String::from_utf8(feed.frame().await.unwrap().unwrap().into_data().unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_listener_hears_what_happens_in_order_and_how_much_it_missed() {
        let events = Events::default();
        events.tell("instance", json!({ "id": "before" }));
        let mut feed = events.listen();
        assert_eq!(part(&mut feed).await, ": events\n\n");
        events.tell("instance", json!({ "id": "a" }));
        let heard = part(&mut feed).await;
        assert!(heard.starts_with("id: 2\nevent: instance\ndata: {\"id\":\"a\",\"time_ms\":"), "{heard}");
        for _ in 0..2 * LATE {
            events.tell("x", json!({}));
        }
        let mut lost = String::new();
        while !lost.starts_with("event: lost") {
            lost = part(&mut feed).await;
        }
        assert!(lost.starts_with("event: lost\ndata: {\"events\":"), "{lost}");
    }
}
