//! Threads that run device queues: an epoll loop each, with handlers that come and go.

use std::any::Any;
use std::io;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use bellows_memory::limited;
use bellows_memory::threads::{self, ThreadRole};
use event_manager::{EventManager, MutEventSubscriber, RemoteEndpoint, SubscriberId, SubscriberOps};

/// A handler on a loop: for example the part of a device that serves its queues.
pub trait Handler: MutEventSubscriber + Any + Send {}

impl<T: MutEventSubscriber + Any + Send> Handler for T {}

type BoxedHandler = Box<dyn Handler>;

/// Why a loop's thread ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum EventLoopError {
    /// epoll failed.
    #[error("the event loop `{name}` failed")]
    Epoll {
        /// Thread name of the loop.
        name: String,
        /// The error of epoll.
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

/// A thread that waits for events and calls their handlers. Dropping it stops and joins the thread; the handlers are
/// dropped with it.
pub struct EventLoop {
    handle: EventLoopHandle,
    thread: Option<JoinHandle<()>>,
}

/// Adds and removes handlers from any other thread. Cheap to clone.
#[derive(Clone)]
pub struct EventLoopHandle {
    endpoint: RemoteEndpoint<BoxedHandler>,
    stop: Arc<AtomicBool>,
}

impl EventLoop {
    /// Starts a thread called `name` (15 characters at most are shown). `failed` is called on it when it ends by an error.
    ///
    /// # Errors
    /// The epoll descriptor or the thread could not be made.
    pub fn spawn(name: &str, failed: impl FnOnce(EventLoopError) + Send + 'static) -> io::Result<Self> {
        let mut manager = EventManager::<BoxedHandler>::new().map_err(io::Error::other)?;
        let stop = Arc::new(AtomicBool::new(false));
        let handle = EventLoopHandle { endpoint: manager.remote_endpoint(), stop: stop.clone() };
        let owned = name.to_owned();
        let thread = threads::spawn(ThreadRole::Device, name, Some(256 << 10), move || {
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
        self.handle.stop.store(true, Ordering::Release);
        // This fails if the loop has failed already.
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
    pub fn add<H: Handler>(&self, handler: H) -> Result<OnLoop<H>, event_manager::Error> {
        let handler: BoxedHandler = Box::new(handler);
        let id = self.endpoint.call_blocking(move |ops: &mut dyn SubscriberOps<Subscriber = BoxedHandler>| {
            Ok::<_, event_manager::Error>(ops.add_subscriber(handler))
        })?;
        Ok(OnLoop { event_loop: self.clone(), id: Some(id), handler: PhantomData })
    }

    fn remove(&self, id: SubscriberId) -> Result<BoxedHandler, event_manager::Error> {
        self.endpoint
            .call_blocking(move |ops: &mut dyn SubscriberOps<Subscriber = BoxedHandler>| ops.remove_subscriber(id))
    }
}

/// A handler on an event loop. Dropping this takes the handler off and drops it.
///
/// It must not be dropped or taken back on the loop's own thread.
pub struct OnLoop<H> {
    event_loop: EventLoopHandle,
    /// `None` once the handler was taken off.
    id: Option<SubscriberId>,
    handler: PhantomData<fn() -> H>,
}

impl<H: Handler> OnLoop<H> {
    /// Takes the handler off the loop: when this returns it does not run and never will again. `None` if the loop has ended,
    /// and the handler with it.
    #[must_use]
    pub fn take_back(mut self) -> Option<H> {
        let handler: Box<dyn Any> = self.take_off()?;
        handler.downcast().ok().map(|handler| *handler)
    }
}

impl<H> OnLoop<H> {
    fn take_off(&mut self) -> Option<BoxedHandler> {
        let removed = self.event_loop.remove(self.id.take()?);
        removed.inspect_err(|error| limited!(debug, %error, "the event loop was gone before the handler")).ok()
    }
}

impl<H> Drop for OnLoop<H> {
    fn drop(&mut self) {
        drop(self.take_off());
    }
}
