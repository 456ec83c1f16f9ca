//! The locks of tests: the plain ones, or in a model those of [`shuttle`] as well.
//!
//! A lock is taken in the model first and then for real, where it is free by then. So one build of the tests runs on real
//! threads and in the model, and the model explores the very code that runs outside of it.
//!
//! [`explore`] runs some hundred schedules, the same ones each time. For more, and for others:
//!
//! ```text
//! BELLOWS_SCHEDULES=100000 SHUTTLE_RANDOM_SEED=7 cargo test -p bellows-memory --lib -- model
//! ```
//!
//! What the model cannot see: time (a wait with a time-out never times out), atomics, and everything that blocks otherwise
//! than in these locks.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::{OnceLock, PoisonError};
use std::time::Duration;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, MaxSteps, Runner};

/// Schedules of each kind, unless `BELLOWS_SCHEDULES` says otherwise.
const SCHEDULES: usize = 200;
/// Unless `SHUTTLE_RANDOM_SEED` says otherwise.
const SEED: u64 = 1;
/// How often a thread is overtaken at most in the schedules that look for rare orders.
const DEPTH: usize = 3;

thread_local! {
    /// Whether this thread runs the steps of a model, all of them.
    static IN_MODEL: Cell<bool> = const { Cell::new(false) };
}

/// Runs `test` in many schedules of the threads that it starts with [`shuttle::thread`].
///
/// # Panics
/// `test` panics in one of them, its threads wait for each other, or they never end.
pub fn explore(test: impl Fn() + Clone + Send + Sync + 'static) {
    let schedules = std::env::var("BELLOWS_SCHEDULES").map_or(SCHEDULES, |text| text.parse().unwrap());
    let test = move || {
        IN_MODEL.set(true);
        test();
    };
    let mut config = Config::new();
    config.stack_size = 512 << 10;
    config.max_steps = MaxSteps::FailAfter(50_000);
    Runner::new(RandomScheduler::new_from_seed(SEED, schedules), config.clone()).run(test.clone());
    Runner::new(PctScheduler::new_from_seed(SEED, DEPTH, schedules), config).run(test);
    IN_MODEL.set(false);
}

#[derive(Default)]
pub struct Mutex<T: ?Sized> {
    model: Modelled<shuttle::sync::Mutex<()>>,
    real: std::sync::Mutex<T>,
}

pub struct MutexGuard<'a, T: ?Sized> {
    // Declared first: the real lock is free again before the model lets others go on.
    real: std::sync::MutexGuard<'a, T>,
    model: Option<shuttle::sync::MutexGuard<'a, ()>>,
    lock: &'a std::sync::Mutex<T>,
}

#[derive(Debug, Default)]
pub struct Condvar {
    model: Modelled<shuttle::sync::Condvar>,
    real: std::sync::Condvar,
}

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Self {
        Self { model: Modelled::new(), real: std::sync::Mutex::new(value) }
    }
}

impl<T: ?Sized> Mutex<T> {
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let model = self.model.get().map(|lock| lock.lock().unwrap_or_else(PoisonError::into_inner));
        MutexGuard { real: lock(&self.real), model, lock: &self.real }
    }

    pub fn get_mut(&mut self) -> &mut T {
        self.real.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: ?Sized + std::fmt::Debug> std::fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.real.fmt(f)
    }
}

impl Condvar {
    pub const fn new() -> Self {
        Self { model: Modelled::new(), real: std::sync::Condvar::new() }
    }

    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        let MutexGuard { real, model, lock: mutex } = guard;
        match (self.model.get(), model) {
            (Some(condition), Some(model)) => {
                drop(real);
                let model = condition.wait(model).unwrap_or_else(PoisonError::into_inner);
                MutexGuard { real: lock(mutex), model: Some(model), lock: mutex }
            }
            (_, model) => {
                let real = self.real.wait(real).unwrap_or_else(PoisonError::into_inner);
                MutexGuard { real, model, lock: mutex }
            }
        }
    }

    pub fn wait_timeout<'a, T>(&self, guard: MutexGuard<'a, T>, timeout: Duration) -> MutexGuard<'a, T> {
        if guard.model.is_some() {
            return self.wait(guard);
        }
        let MutexGuard { real, model, lock } = guard;
        let real = self.real.wait_timeout(real, timeout).unwrap_or_else(PoisonError::into_inner).0;
        MutexGuard { real, model, lock }
    }

    pub fn notify_all(&self) {
        if let Some(condition) = self.model.get() {
            condition.notify_all();
        }
        self.real.notify_all();
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.real
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.real
    }
}

/// The model's part of a lock, made when a model first uses it.
#[derive(Debug)]
struct Modelled<T>(OnceLock<T>);

impl<T> Modelled<T> {
    const fn new() -> Self {
        Self(OnceLock::new())
    }
}

impl<T: Default> Modelled<T> {
    fn get(&self) -> Option<&T> {
        IN_MODEL.get().then(|| self.0.get_or_init(T::default))
    }
}

impl<T> Default for Modelled<T> {
    fn default() -> Self {
        Self::new()
    }
}

fn lock<T: ?Sized>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
