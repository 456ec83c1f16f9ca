//! Threads that run device queues: an epoll loop each, with handlers that come and go.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, JoinHandle};

use event_manager::{EventManager, MutEventSubscriber, RemoteEndpoint, SubscriberId, SubscriberOps};

/// What runs on a loop: a device's queue handler.
pub type Handler = Box<dyn MutEventSubscriber + Send>;

/// Why a loop's thread ended although nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum EventLoopError {
    /// epoll failed.
    #[error("the event loop `{name}` failed")]
    Epoll {
        /// Thread name of the loop.
        name: String,
        /// What epoll answered.
        #[source]
        source: event_manager::Error,
    },
    /// A handler panicked.
    #[error("a handler on the event loop `{name}` panicked")]
    Panicked {
        /// Thread name of the loop.
        name: String,
    },
}

/// A thread that waits for events and calls the handlers they belong to. Dropping it stops and joins the thread; the
/// handlers are dropped with it.
pub struct EventLoop {
    handle: EventLoopHandle,
    thread: Option<JoinHandle<()>>,
}

/// Adds and removes handlers from any other thread. Cheap to clone.
#[derive(Clone)]
pub struct EventLoopHandle {
    endpoint: RemoteEndpoint<Handler>,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl EventLoop {
    /// Starts a thread called `name` (15 characters at most are shown). `failed` is called on it when it ends by an error.
    ///
    /// # Errors
    /// The epoll descriptor or the thread could not be made.
    pub fn spawn(name: &str, failed: impl FnOnce(EventLoopError) + Send + 'static) -> io::Result<Self> {
        use std::sync::atomic::Ordering;
        let mut manager = EventManager::<Handler>::new().map_err(io::Error::other)?;
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let handle = EventLoopHandle { endpoint: manager.remote_endpoint(), stop: stop.clone() };
        let owned = name.to_owned();
        let thread = thread::Builder::new().name(name.to_owned()).stack_size(256 << 10).spawn(move || {
            let run = catch_unwind(AssertUnwindSafe(|| {
                while !stop.load(Ordering::Acquire) {
                    manager.run()?;
                }
                Ok(())
            }));
            match run {
                Ok(Ok(())) => {}
                Ok(Err(source)) => failed(EventLoopError::Epoll { name: owned, source }),
                Err(_) => failed(EventLoopError::Panicked { name: owned }),
            }
        })?;
        Ok(Self { handle, thread: Some(thread) })
    }

    /// A handle to this loop.
    #[must_use]
    pub fn handle(&self) -> EventLoopHandle {
        self.handle.clone()
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.handle.stop.store(true, std::sync::atomic::Ordering::Release);
        // A loop that failed already has nobody left to kick.
        let _ = self.handle.endpoint.kick();
        if let Some(thread) = self.thread.take() {
            // A panic in the thread was reported through `failed`.
            let _ = thread.join();
        }
    }
}

impl EventLoopHandle {
    /// Puts `handler` on the loop; its `init` has run when this returns. Not to be called from the loop's own thread.
    ///
    /// # Errors
    /// The loop has ended.
    pub fn add(&self, handler: Handler) -> Result<SubscriberId, event_manager::Error> {
        self.endpoint.call_blocking(move |ops: &mut dyn SubscriberOps<Subscriber = Handler>| {
            Ok::<_, event_manager::Error>(ops.add_subscriber(handler))
        })
    }

    /// Takes a handler off the loop: when this returns it is not running and never will again.
    ///
    /// # Errors
    /// The loop has ended, or there is no such handler.
    pub fn remove(&self, id: SubscriberId) -> Result<Handler, event_manager::Error> {
        self.endpoint.call_blocking(move |ops: &mut dyn SubscriberOps<Subscriber = Handler>| ops.remove_subscriber(id))
    }
}
