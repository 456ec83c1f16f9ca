//! Instances: functions that run in a VM, each in its container and, if it is to have one, in its partition.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bellows_memory::{ByteSize, PartitionId};
use bellows_protocol::agent::StartInstanceRequest;
pub use bellows_protocol::user::{Account, User};
use bellows_protocol::values::{ImageId, InstanceId, ValueError, check_command, check_working_directory};

use crate::agent::{AgentClient, AgentError, ExitStatus, Output};
use crate::partitions::PartitionError;
use crate::vm::{NotRunning, Vm};

/// Processes and threads that an instance may have if nothing else is said.
pub const DEFAULT_PIDS_MAX: u32 = 1024;

/// What an instance runs, and within which bounds.
#[derive(Clone, Debug)]
pub struct InstanceSpec {
    /// Its name, unique in the VM.
    pub id: InstanceId,
    /// An image that was mounted ([`Vm::mount_image`], [`Vm::attach_image`]).
    pub image: ImageId,
    /// The command and its arguments.
    pub argv: Vec<String>,
    /// `NAME=value` pairs.
    pub env: Vec<String>,
    /// Absolute path of the directory that it starts in; empty means `/`.
    pub cwd: String,
    /// Who it runs as.
    pub user: User,
    /// Where its memory comes from; `None` is base memory.
    pub partition: Option<PartitionId>,
    /// Its cgroup's `memory.max`; `None` is as much as its partition bears without getting full, or no limit without one.
    pub memory_max: Option<ByteSize>,
    /// Most processes and threads; 0 is half of what all instances may have, which the guest's kernel says.
    pub pids_max: u32,
}

impl InstanceSpec {
    /// Runs `argv` as root in `/`, in base memory.
    #[must_use]
    pub fn new(id: InstanceId, image: ImageId, argv: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            id,
            image,
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: String::new(),
            user: User::default(),
            partition: None,
            memory_max: None,
            pids_max: DEFAULT_PIDS_MAX,
        }
    }

    /// The same with its memory in partition `id`, which must be plugged.
    #[must_use]
    pub fn in_partition(mut self, id: PartitionId) -> Self {
        self.partition = Some(id);
        self
    }

    /// Checks what the guest would refuse without looking at the image.
    ///
    /// # Errors
    /// What can't be run.
    pub fn validate(&self) -> Result<(), ValueError> {
        self.request().map(drop)
    }

    fn request(&self) -> Result<StartInstanceRequest, ValueError> {
        check_command(&self.argv, &self.env)?;
        Ok(StartInstanceRequest {
            instance_id: self.id.to_string(),
            image_id: self.image.to_string(),
            arguments: self.argv.clone(),
            environment: self.env.clone(),
            working_directory: check_working_directory(&self.cwd)?.to_owned(),
            user: self.user.to_string(),
            node: self.partition.map_or(0, |partition| partition.get().into()),
            memory_max_bytes: self.memory_max.unwrap_or_default().get(),
            pids_max: self.pids_max,
            ..Default::default()
        })
    }
}

/// Why something could not be done with an instance.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// It can't be run like that.
    #[error("instance {id} can't be run")]
    Spec {
        /// The instance.
        id: InstanceId,
        /// What is wrong.
        #[source]
        source: ValueError,
    },
    /// Its partition is not there or holds nothing.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// Its partition is not plugged.
    #[error("instance {id} can't run in partition {partition}: nothing is plugged there")]
    NotPlugged {
        /// The instance.
        id: InstanceId,
        /// The partition.
        partition: PartitionId,
    },
    /// There is no agent to ask.
    #[error(transparent)]
    NotRunning(#[from] NotRunning),
    /// The agent failed.
    #[error("cannot {action} instance {id}")]
    Agent {
        /// What was to be done.
        action: &'static str,
        /// The instance.
        id: InstanceId,
        /// What the agent says.
        #[source]
        source: AgentError,
    },
    /// Output could not be read or passed on.
    #[error("cannot pass on the output of instance {id}")]
    Output {
        /// The instance.
        id: InstanceId,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
}

/// A function that runs, or has run, in a VM. Dropping it changes nothing: [`Instance::remove`] and
/// [`Vm::remove_instance`] do.
pub struct Instance {
    id: InstanceId,
    pid: u32,
    agent: Arc<AgentClient>,
}

/// A thread that passes an instance's output on.
pub struct Forwarding {
    id: InstanceId,
    thread: JoinHandle<Result<u64, InstanceError>>,
}

impl Vm {
    /// Starts an instance.
    ///
    /// # Errors
    /// It can't be run like that, its partition is not plugged, or the agent could not start it.
    pub fn start_instance(&self, spec: &InstanceSpec) -> Result<Instance, InstanceError> {
        let request = spec.request().map_err(|source| InstanceError::Spec { id: spec.id.clone(), source })?;
        if let Some(partition) = spec.partition
            && self.plugged(partition)?.get() == 0
        {
            return Err(InstanceError::NotPlugged { id: spec.id.clone(), partition });
        }
        let agent = self.agent()?.clone();
        let failed = |source| InstanceError::Agent { action: "start", id: spec.id.clone(), source };
        let pid = agent.start_instance(&request).map_err(failed)?;
        tracing::debug!(instance = %spec.id, pid, "started an instance");
        Ok(Instance { id: spec.id.clone(), pid, agent })
    }

    /// Removes an instance by its name, as [`Instance::remove`] does: for one that nobody has a handle of, such as one whose
    /// start was not answered in time.
    ///
    /// # Errors
    /// See [`Instance::remove`].
    pub fn remove_instance(&self, id: &InstanceId, timeout: Duration) -> Result<(), InstanceError> {
        remove(self.agent()?, id, timeout)
    }
}

impl Instance {
    /// Its name.
    #[must_use]
    pub fn id(&self) -> &InstanceId {
        &self.id
    }

    /// Number of its first process in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Passes what it writes on to `sink`, on a thread of its own, until it ends. Output that nobody reads makes the instance
    /// wait.
    ///
    /// # Errors
    /// The thread could not be made.
    pub fn forward(&self, output: Output, mut sink: impl Write + Send + 'static) -> Result<Forwarding, InstanceError> {
        let (id, agent) = (self.id.clone(), self.agent.clone());
        let thread = thread::Builder::new().name("output".into()).stack_size(256 << 10);
        let spawned = thread.spawn(move || {
            let mut bytes = 0;
            loop {
                let data = agent.read_output(id.as_str(), output).map_err(failed("read the output of", &id))?;
                if data.is_empty() {
                    return Ok(bytes);
                }
                bytes += data.len() as u64;
                let written = sink.write_all(&data).and_then(|()| sink.flush());
                written.map_err(|source| InstanceError::Output { id: id.clone(), source })?;
            }
        });
        let thread = spawned.map_err(|source| InstanceError::Output { id: self.id.clone(), source })?;
        Ok(Forwarding { id: self.id.clone(), thread })
    }

    /// Waits for the end of its first process.
    ///
    /// # Errors
    /// The agent can't say, or the VM has ended.
    pub fn wait(&self) -> Result<ExitStatus, InstanceError> {
        self.agent.wait_instance(self.id.as_str()).map_err(failed("wait for", &self.id))
    }

    /// Sends it a signal, by number.
    ///
    /// # Errors
    /// It has ended, or there is no such signal.
    pub fn signal(&self, number: u32) -> Result<(), InstanceError> {
        self.agent.signal_instance(self.id.as_str(), number).map_err(failed("signal", &self.id))
    }

    /// Kills what is left of it, and takes apart what it had: then its partition can be given back whole, and its name is
    /// free. An instance that is gone already counts as removed.
    ///
    /// # Errors
    /// The agent failed, or has not done so after `timeout` and may still be at it. Try again then: the instance stays until it
    /// is removed.
    pub fn remove(&self, timeout: Duration) -> Result<(), InstanceError> {
        remove(&self.agent, &self.id, timeout)
    }
}

impl Forwarding {
    /// Waits for the end of the output; returns how many bytes there were.
    ///
    /// # Errors
    /// It could not be read, or not passed on.
    pub fn join(self) -> Result<u64, InstanceError> {
        let Self { id, thread } = self;
        thread.join().unwrap_or_else(|_| {
            let source = io::Error::other("the thread panicked");
            Err(InstanceError::Output { id, source })
        })
    }
}

fn remove(agent: &AgentClient, id: &InstanceId, timeout: Duration) -> Result<(), InstanceError> {
    agent.remove_instance(id.as_str(), timeout).map_err(failed("remove", id))
}

fn failed(action: &'static str, id: &InstanceId) -> impl FnOnce(AgentError) -> InstanceError {
    let id = id.clone();
    move |source| InstanceError::Agent { action, id, source }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bellows_protocol::agent::{Empty, InstanceRequest};
    use bellows_protocol::agent_ttrpc::Agent;
    use ttrpc::{Code, TtrpcContext};

    use super::*;
    use crate::agent::fixture::Fixture;

    /// An agent that can remove an instance only when it is asked once more.
    #[derive(Default)]
    struct Stalled(Mutex<Vec<String>>);

    impl Agent for Stalled {
        fn remove_instance(&self, _: &TtrpcContext, request: InstanceRequest) -> ttrpc::Result<Empty> {
            let mut asked = self.0.lock().unwrap();
            asked.push(request.instance_id);
            let refusal = |code, message| Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, message)));
            match asked.len() {
                1 => refusal(Code::DEADLINE_EXCEEDED, "a task is left"),
                2 => Ok(Empty::new()),
                _ => refusal(Code::NOT_FOUND, "there is no instance"),
            }
        }
    }

    #[test]
    fn a_removal_that_failed_can_be_tried_again() {
        let fake = Arc::new(Stalled::default());
        let fixture = Fixture::with_agent(fake.clone());
        let agent = Arc::new(fixture.connect().unwrap());
        let limit = Duration::from_secs(30);
        let instance = Instance { id: "a".parse().unwrap(), pid: 1, agent: agent.clone() };
        assert!(matches!(instance.remove(limit), Err(InstanceError::Agent { action: "remove", .. })));
        instance.remove(limit).unwrap();
        instance.remove(limit).expect("what is gone is removed");
        remove(&agent, &"b".parse().unwrap(), limit).expect("its name is enough");
        assert_eq!(*fake.0.lock().unwrap(), ["a", "a", "a", "b"]);
    }

    fn spec(argv: &[&str]) -> InstanceSpec {
        InstanceSpec::new("a".parse().unwrap(), "image".parse().unwrap(), argv.iter().copied())
    }

    #[test]
    fn what_the_guest_would_refuse_is_refused_here() {
        let request = spec(&["sh"]).in_partition(PartitionId::new(3).unwrap()).request().unwrap();
        assert_eq!((request.node, request.working_directory.as_str(), request.memory_max_bytes), (3, "/", 0));
        assert!(spec(&[]).request().is_err());
        assert!(InstanceSpec { cwd: "tmp".into(), ..spec(&["sh"]) }.request().is_err());
        assert!(InstanceSpec { env: vec!["x".into()], ..spec(&["sh"]) }.request().is_err());
    }
}
