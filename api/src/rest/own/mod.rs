//! Bellows' own part of the API: images, partitions and instances of a VM that runs, its events, and its figures.
//!
//! `request` reads what is asked, `table` says which instances there are, and `host` has the VM do it. Requests for different
//! instances are carried out side by side; those for one, one at a time.

pub(super) mod bodies;
mod copy;
mod events;
mod exec;
mod figures;
mod host;
mod images;
mod log;
mod memory;
mod prometheus;
mod reply;
mod request;
mod session;
mod table;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bellows_vmm::{ByteSize, InstanceId, PartitionId, PartitionInfo, Vm};
use hyper::body::{Bytes, Incoming};
use hyper::upgrade::OnUpgrade;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use self::bodies::{Exec, NewInstance, Resize, Wanted};
use self::events::Events;
use self::figures::Figures;
use self::host::{LIMIT, of_partition};
use self::images::Images;
use self::log::Position;
use self::memory::Measuring;
pub(crate) use self::reply::{Feed, Reply};
use self::request::LogQuery;
pub(crate) use self::request::{Own, parse};
pub(crate) use self::session::Connection;
use self::session::Session;
use self::table::{Begun, Entry, Phase, Table};
use super::control::Control;
use super::fault::Fault;
use super::spans::spawn_blocking;

/// Time for the guest's agent to begin.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// Requests at once that wait without end, so that others find room.
const MAX_WAITING: usize = 48;
/// Parts of a log that the connection has not taken.
const PARTS: usize = 4;

/// Bellows' own part of the API.
pub(crate) struct OwnApi {
    control: Arc<Control>,
    images: Images,
    table: Table,
    events: Events,
    figures: Figures,
    measuring: Measuring,
    waiting: Arc<Semaphore>,
}

impl OwnApi {
    /// With the layer store in a folder; the user's own without it.
    pub(crate) fn new(control: Arc<Control>, store: Option<PathBuf>) -> Self {
        Self {
            control,
            images: Images::new(store),
            table: Table::default(),
            events: Events::default(),
            figures: Figures::default(),
            measuring: Measuring::default(),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
        }
    }

    /// Carries a request out. What has begun goes on without its client, but for an exec, which ends.
    pub(crate) async fn answer(self: &Arc<Self>, request: Own) -> Result<Reply, Fault> {
        match request {
            Own::Images => Ok(Reply::Json(json!(self.control.booted()?.images()))),
            Own::AttachImage(id, image) => {
                self.blocking(move |api, vm| api.images.attach(vm, &id, &image).map(|info| json!(info))).await
            }
            Own::DetachImage(id) => {
                self.blocking(move |api, vm| api.images.detach(vm, &id)).await?;
                Ok(Reply::Nothing)
            }
            Own::Partitions => {
                let partitions = self.control.booted()?.partitions();
                Ok(Reply::Json(partitions.iter().map(|partition| self.partition(partition)).collect()))
            }
            Own::Partition(id) => {
                let vm = self.control.booted()?;
                let found = find_partition(&vm, id)?;
                Ok(Reply::Json(self.partition(&found)))
            }
            Own::Resize(id, size) => self.blocking(move |api, vm| api.resize(vm, id, size)).await,
            Own::Unplug(id) => self.blocking(move |api, vm| api.unplug(vm, id)).await,
            Own::Instances => {
                self.control.booted()?;
                Ok(Reply::Json(self.table.all().iter().map(|entry| entry.json()).collect()))
            }
            Own::Instance(id) => Ok(Reply::Json(self.table.get(&id)?.json())),
            Own::Start(id, wanted) => self.start(id, &wanted).await,
            Own::Update(id, update) => {
                let entry = self.table.get(&id)?;
                self.blocking(move |api, _| api.update(&entry, update.state)).await
            }
            Own::Remove(id) => self.remove(&id).await,
            Own::Signal(id, signal) => {
                let entry = self.table.get(&id)?;
                let send = move |_: &Arc<Self>, _: &Arc<Vm>| {
                    entry.started()?.instance.signal(signal.signal).map_err(host::of_instance)
                };
                self.blocking(send).await?;
                Ok(Reply::Nothing)
            }
            Own::Stop(id, stop) => self.stop(&id, Duration::from_millis(stop.timeout_ms.into())).await,
            Own::Exec(id, exec) => self.exec(&id, *exec).await,
            Own::Look(id, path) => {
                let entry = self.table.get(&id)?;
                self.blocking(move |_, _| copy::look(&entry, &path)).await
            }
            Own::Pack(id, path) => {
                let entry = self.table.get(&id)?;
                self.blocking(move |_, _| copy::read(&entry, &path)).await
            }
            Own::Unpack(id, _) => Err(Fault::new(format!("the archive for instance `{id}` is missing"))),
            Own::Wait(id) => self.wait(&id).await,
            Own::Logs(id, query) => self.logs(&id, query).await,
            Own::Events => Ok(Reply::Stream { kind: "text/event-stream", feed: self.events.listen() }),
            Own::Memory => {
                let (api, vm) = (self.clone(), self.control.booted()?);
                let report = spawn_blocking(move || memory::report(&api, &vm)).await;
                Ok(Reply::Json(report.map_err(|error| panicked(&error))?))
            }
            Own::Prometheus => {
                let vm = self.control.booted()?;
                let api = self.clone();
                let page = move || prometheus::page(api.control.id(), &vm, &api.table, &api.figures);
                let text = spawn_blocking(page).await.map_err(|error| panicked(&error))?;
                Ok(Reply::Text { kind: "text/plain; version=0.0.4", text })
            }
        }
    }

    /// Has a thread do what waits for the guest, once the guest is ready.
    async fn blocking<T: Into<Reply> + Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>, &Arc<Vm>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<Reply, Fault> {
        let vm = self.control.ready(READY_LIMIT).await?;
        let api = self.clone();
        let done = spawn_blocking(move || work(&api, &vm)).await;
        done.map_err(|error| panicked(&error))?.map(Into::into)
    }

    /// Unpacks a body into a folder of an instance. A client that is silent for `patience` ends that.
    pub(crate) async fn unpack(
        &self,
        id: &InstanceId,
        path: String,
        body: Incoming,
        patience: Duration,
    ) -> Result<Reply, Fault> {
        self.control.ready(READY_LIMIT).await?;
        let entry = self.table.get(id)?;
        let _permit = self.waiting.try_acquire().map_err(|_| too_many_wait())?;
        copy::write(entry, path, body, patience).await?;
        Ok(Reply::Nothing)
    }

    async fn start(self: &Arc<Self>, id: InstanceId, wanted: &NewInstance) -> Result<Reply, Fault> {
        let vm = self.control.ready(READY_LIMIT).await?;
        let entry = match self.table.begin(&id, wanted, &host::rooms(&vm))? {
            Begun::Known(entry) => entry,
            Begun::New(entry) => {
                self.begin(vm, entry.clone());
                entry
            }
        };
        match entry.until(|status| !status.is_starting()).await.phase {
            Phase::Failed(fault) => Err(fault),
            _ => Ok(Reply::Json(entry.json())),
        }
    }

    /// Starts an instance, whether or not its client waits for that.
    fn begin(self: &Arc<Self>, vm: Arc<Vm>, entry: Arc<Entry>) {
        let api = self.clone();
        let (begun, followed) = (entry.clone(), self.clone());
        let starting = spawn_blocking(move || host::start(&api, &vm, &begun));
        tokio::spawn(async move {
            if let Err(fault) = starting.await.unwrap_or_else(|error| Err(panicked(&error))) {
                followed.table.forget(&entry);
                entry.log.end();
                entry.status.send_modify(|status| status.phase = Phase::Failed(fault));
            }
        });
    }

    async fn remove(self: &Arc<Self>, id: &InstanceId) -> Result<Reply, Fault> {
        let entry = self.table.get(id)?;
        if let Phase::Failed(_) = entry.until(|status| !status.is_starting()).await.phase {
            return Err(Fault::missing(format!("there is no instance `{id}`: it has not started")));
        }
        self.blocking(move |api, vm| host::remove(api, vm, &entry)).await
    }

    fn update(&self, entry: &Entry, wanted: Wanted) -> Result<Value, Fault> {
        let (report, state) = match wanted {
            Wanted::Frozen => (host::freeze(entry)?, "Frozen"),
            Wanted::Running => (host::thaw(entry)?, "Running"),
        };
        self.events.tell("instance", json!({ "id": entry.id.as_str(), "state": state }));
        Ok(report)
    }

    async fn exec(self: &Arc<Self>, id: &InstanceId, exec: Exec) -> Result<Reply, Fault> {
        let entry = self.table.get(id)?;
        let unless_abandoned = Abandoned::default();
        let running = unless_abandoned.0.clone();
        let run = move |api: &Arc<Self>, _: &Arc<Vm>| {
            let begun = Instant::now();
            let executed = exec::run(&entry, &exec, &running)?;
            api.figures.exec.add(begun.elapsed());
            Ok(json!(executed))
        };
        self.blocking(run).await
    }

    /// Starts a process whose streams go over the connection, once that is upgraded.
    pub(crate) async fn session(
        self: &Arc<Self>,
        id: &InstanceId,
        exec: Exec,
        upgrade: OnUpgrade,
    ) -> Result<Reply, Fault> {
        let entry = self.table.get(id)?;
        let permit = self.waiting.clone().try_acquire_owned().map_err(|_| too_many_wait())?;
        self.control.ready(READY_LIMIT).await?;
        let begun = Instant::now();
        // A client that leaves drops the session, which ends the process.
        let started = spawn_blocking(move || Session::start(&entry, &exec)).await;
        let session = started.map_err(|error| panicked(&error))??;
        let api = self.clone();
        tokio::spawn(async move {
            let upgraded = upgrade.await;
            let run = move || {
                let ended = Counted { api, begun };
                session.run(upgraded.map_err(io::Error::other)?, (permit, ended))
            };
            // Where that fails it waits for the guest, to end the process.
            if let Ok(Err(error)) = spawn_blocking(run).await {
                tracing::warn!(%error, "the streams of a process have no connection");
            }
        });
        Ok(Reply::Upgrade)
    }

    /// Asks an instance's first process to end, and kills it if it has not after `limit`.
    async fn stop(self: &Arc<Self>, id: &InstanceId, limit: Duration) -> Result<Reply, Fault> {
        let entry = self.table.get(id)?;
        let _permit = self.waiting.try_acquire().map_err(|_| too_many_wait())?;
        for (signal, limit) in [(15, limit), (9, LIMIT)] {
            if entry.status.borrow().is_over() {
                break;
            }
            let signalled = entry.clone();
            let send = move |_: &Arc<Self>, _: &Arc<Vm>| {
                let sent = signalled.started()?.instance.signal(signal);
                // It may have ended meanwhile.
                sent.or_else(
                    |error| if signalled.status.borrow().is_over() { Ok(()) } else { Err(host::of_instance(error)) },
                )
            };
            self.blocking(send).await?;
            let _ = timeout(limit, entry.until(table::Status::is_over)).await;
        }
        Ok(Reply::Json(entry.json()))
    }

    async fn wait(&self, id: &InstanceId) -> Result<Reply, Fault> {
        let entry = self.table.get(id)?;
        let _permit = self.waiting.try_acquire().map_err(|_| too_many_wait())?;
        entry.until(table::Status::is_over).await;
        Ok(Reply::Json(entry.json()))
    }

    async fn logs(&self, id: &InstanceId, query: LogQuery) -> Result<Reply, Fault> {
        let log = self.table.get(id)?.log.clone();
        let (parts, feed) = Feed::new(PARTS);
        let permit = self.waiting.clone().try_acquire_owned().map_err(|_| too_many_wait())?;
        tokio::spawn(async move {
            pass_on(&log, query, &parts).await;
            drop(permit);
        });
        Ok(Reply::Stream { kind: "application/octet-stream", feed })
    }

    fn partition(&self, info: &PartitionInfo) -> Value {
        let mut said = json!(info);
        said["instance"] = json!(self.table.holder(info.memory.id).as_ref().map(InstanceId::as_str));
        said
    }

    fn resize(&self, vm: &Vm, id: PartitionId, size: Resize) -> Result<Value, Fault> {
        let size = ByteSize::mib(size.size_mib.into());
        let info = find_partition(vm, id)?;
        let report = if size < info.memory.target && !info.memory.preparing {
            json!(vm.shrink(id, size, LIMIT).map_err(of_partition)?)
        } else {
            let plug = vm.plug(id, size, LIMIT).map_err(of_partition)?;
            self.figures.plug.add(plug.usable);
            json!(plug)
        };
        self.events.tell("partition", json!({ "id": id.get(), "size_bytes": size.get() }));
        Ok(report)
    }

    fn unplug(&self, vm: &Vm, id: PartitionId) -> Result<Value, Fault> {
        if let Some(holder) = self.table.holder(id) {
            return Err(Fault::conflict(format!("partition {id} belongs to instance `{holder}`: remove that")));
        }
        let unplug = vm.unplug(id, LIMIT).map_err(of_partition)?;
        let discard = vm.await_discard(id, LIMIT).map_err(of_partition)?;
        self.has_unplugged(id, unplug.unplug, discard.discard, unplug.left);
        Ok(json!({ "unplug": unplug, "discard": discard }))
    }

    /// Counts what has gone back, and tells of it.
    fn has_unplugged(&self, id: PartitionId, unplug: Duration, discard: Duration, left: ByteSize) {
        self.figures.unplug.add(unplug);
        self.figures.discard.add(discard);
        self.events.tell("partition", json!({ "id": id.get(), "left_bytes": left.get() }));
    }
}

fn find_partition(vm: &Vm, id: PartitionId) -> Result<PartitionInfo, Fault> {
    let found = vm.partitions().into_iter().find(|info| info.memory.id == id);
    found.ok_or_else(|| Fault::missing(format!("there is no partition {id}")))
}

/// Sends an instance's output, as far as it is wanted.
async fn pass_on(log: &log::OutputLog, query: LogQuery, parts: &mpsc::Sender<io::Result<Bytes>>) {
    let (mut changed, mut position) = (log.subscribe(), Position::default());
    loop {
        let part = log.read(position, query.stream);
        position = part.next;
        if !part.bytes.is_empty() && parts.send(Ok(part.bytes)).await.is_err() {
            return;
        }
        if part.ended || !query.follow {
            return;
        }
        // The log may have ended with its instance; a client that leaves is noticed, too.
        tokio::select! {
            change = changed.changed() => if change.is_err() { return },
            () = parts.closed() => return,
        }
    }
}

/// Ends the process of an exec whose client has left.
#[derive(Default)]
struct Abandoned(Arc<exec::Running>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        let running = self.0.clone();
        spawn_blocking(move || running.end());
    }
}

/// Counts how long a process took whose streams went over a connection.
struct Counted {
    api: Arc<OwnApi>,
    begun: Instant,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.api.figures.exec.add(self.begun.elapsed());
    }
}

fn too_many_wait() -> Fault {
    let message = format!("{MAX_WAITING} requests wait for instances or read logs: expected fewer");
    Fault::with_status(503, message)
}

pub(super) fn panicked(error: &tokio::task::JoinError) -> Fault {
    tracing::error!(%error, "a request panicked");
    Fault::with_status(500, "a fault of Bellows: see its log")
}

impl From<Value> for Reply {
    fn from(value: Value) -> Self {
        Self::Json(value)
    }
}

impl From<()> for Reply {
    fn from((): ()) -> Self {
        Self::Nothing
    }
}
