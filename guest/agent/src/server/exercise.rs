//! Reads arbitrary requests and checks their effects without carrying them out, for fuzzing and property tests.

// Assertions state what must always hold.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashSet;
use std::sync::Arc;

use bellows_protocol::network::{MAX_INTERFACES, MAX_NAME_SERVERS, MAX_SEARCH_DOMAINS};
use bellows_protocol::stream::{MAX_ANSWER_LINE, answer_line, parse_answer_line, parse_request_line, request_line};
use bellows_protocol::user::MAX_ACCOUNT;
use bellows_protocol::values::{ImageId, MAX_ARGUMENT_BYTES, MAX_DOMAIN, MIN_BASE_LIMIT};
use protobuf::Message;

use super::*;
use crate::accounts::{self, Credentials};
use crate::base_memory::{BaseMemory, Claim};
use crate::container::plan::{ContainerPlan, Place, ProcessPlan};
use crate::network::Resolver;
use crate::placement::Placement;
use crate::tmpfs::{Capacities, INODE_BYTES};
use crate::zygote;

/// Longest message of an error in bytes: some escaped excerpts in a sentence of ours.
const MAX_MESSAGE: usize = 3000;
/// Free bytes of base memory at first, and a partition's.
const FREE: u64 = 430 << 20;
const PARTITION: u64 = 1 << 30;
const PAGE: u64 = 4096;
/// Longest `/etc/resolv.conf`.
const MAX_RESOLV_CONF: usize = MAX_NAME_SERVERS * 60 + 10 + MAX_SEARCH_DOMAINS * (MAX_DOMAIN + 1);

/// Takes `bytes` as the monitor's requests: each a byte for its kind, two for its length, and a message. Some kinds are not
/// requests, but the image's files of accounts, the first line of a stream, and what is read of a zygote.
///
/// # Panics
/// An invariant is broken: promises exceed base memory, a container's configuration differs from the request, or a refusal is
/// too long or not printable.
pub fn exercise(bytes: &[u8]) {
    let mut guest = Guest::new();
    let mut rest = bytes;
    while let Some((&[kind, low, high], after)) = rest.split_first_chunk() {
        let (message, after) = after.split_at(usize::from(u16::from_le_bytes([low, high])).min(after.len()));
        rest = after;
        if let Err(error) = guest.request(kind, message) {
            let ttrpc::Error::RpcStatus(status) = ttrpc::Error::from(error) else { panic!("a status") };
            let message = status.message();
            assert!(message.len() <= MAX_MESSAGE, "{} bytes: {message}", message.len());
            assert!(!message.chars().any(char::is_control), "{message:?}");
        }
    }
}

/// The state that requests change, outside the kernel.
struct Guest {
    base: Arc<BaseMemory>,
    /// Bytes of base memory for all instances.
    all: u64,
    claims: Vec<Claim>,
    passwd: Vec<u8>,
    group: Vec<u8>,
}

/// A message, if `bytes` are one; the library itself answers anything else.
fn decoded<M: Message>(bytes: &[u8]) -> Option<M> {
    M::parse_from_bytes(bytes).ok()
}

impl Guest {
    fn new() -> Self {
        let base = Arc::new(BaseMemory::new(FREE));
        let all = base.divide(1, PARTITION);
        Self { base, all, claims: Vec::new(), passwd: b"u:x:1:2::/h\n".to_vec(), group: b"g:x:3:u\n".to_vec() }
    }

    fn request(&mut self, kind: u8, bytes: &[u8]) -> Result<()> {
        match kind % 16 {
            0 | 1 => decoded(bytes).map_or(Ok(()), |request| self.start_instance(request, kind & 0x80 != 0)),
            2 => decoded(bytes).map_or(Ok(()), |request| self.start_process(request)),
            3 => decoded(bytes).map_or(Ok(()), |request: HelloRequest| {
                self.all = self.base.divide(request.partitions, request.partition_bytes);
                assert!(self.all < FREE && self.base.limit() <= FREE, "{} bytes", self.all);
                Ok(())
            }),
            4 => decoded(bytes).map_or(Ok(()), |request: InstanceRequest| {
                instance_id(&request.instance_id)?;
                self.claims.pop();
                Ok(())
            }),
            5 => decoded(bytes).map_or(Ok(()), |request: MountImageRequest| {
                let _: ImageId = request.image_id.parse()?;
                assert!((1..=MAX_LAYERS).contains(&layers(&request.layers)?.len()));
                Ok(())
            }),
            6 => decoded(bytes).map_or(Ok(()), |request| {
                assert!(Service::addresses(&request)?.len() <= MAX_DEVICES);
                assert!(limit(request.timeout_ms) <= MAX_LIMIT);
                Ok(())
            }),
            7 => decoded(bytes).map_or(Ok(()), |request: SignalProcessRequest| {
                process_id(&request.instance_id, &request.process_id)?;
                assert_eq!(signal(request.signal)? as u32, request.signal);
                Ok(())
            }),
            8 => decoded(bytes).map_or(Ok(()), |request: ResizeTerminalRequest| {
                process_id(&request.instance_id, &request.process_id)?;
                let size = TerminalSize::new(request.size.columns, request.size.rows)?;
                assert_eq!((size.columns.into(), size.rows.into()), (request.size.columns, request.size.rows));
                Ok(())
            }),
            9 => decoded(bytes).map_or(Ok(()), |request: AwaitPartitionRequest| {
                assert_eq!(Node::try_from(request.node)?.number(), request.node);
                Ok(())
            }),
            10 => decoded(bytes).map_or(Ok(()), |request: ClockRequest| {
                let requests = Correction::new(request.correction_ns, request.step).requests();
                assert!(requests.iter().all(|request| (0..1_000_000_000).contains(&request.time.tv_usec)));
                Ok(())
            }),
            11 => {
                self.passwd = bytes.to_vec();
                Ok(())
            }
            12 => {
                self.group = bytes.to_vec();
                Ok(())
            }
            13 => zygote::exercise(bytes),
            14 => decoded(bytes).map_or(Ok(()), |request: ConfigureNetworkRequest| {
                let setups = parse_interfaces(&request.interfaces)?;
                assert!(setups.len() <= MAX_INTERFACES);
                let resolver = Resolver::of(&setups);
                assert!(resolver.resolv_conf().is_none_or(|text| text.len() <= MAX_RESOLV_CONF));
                Ok(())
            }),
            _ => stream_line(bytes),
        }
    }

    fn start_instance(&mut self, request: StartInstanceRequest, is_private: bool) -> Result<()> {
        let sent = request.clone();
        let request = instance_request(request)?;
        let claim = self.base.claim(request.base_limit, request.node.is_partition())?;
        let base = claim.bytes();
        self.claims.push(claim);
        let promised: u64 = self.claims.iter().map(Claim::bytes).sum();
        assert!(
            promised <= self.all && base >= MIN_BASE_LIMIT,
            "{promised} of {} bytes, {base} of them last",
            self.all
        );
        assert!(request.base_limit.is_none_or(|wanted| wanted == base));

        let placement = if is_private { Placement::Private(request.node) } else { Placement::Policy(request.node) };
        let limits = request.limits(base, request.node.is_partition().then_some((placement, PARTITION)))?;
        assert!((1..=PARTITION.max(base)).contains(&limits.memory_max), "{limits:?}");
        assert!(request.node.is_partition() || limits.memory_max <= base, "{limits:?}");
        assert!(limits.outer_max >= 1 && limits.outer_max <= PARTITION.max(base), "{limits:?}");
        assert_eq!(limits.pids_max.unwrap_or(0), sent.pids_max);
        let capacities = Capacities::within(limits.placement, limits.memory_max, base);
        check_capacities(capacities, limits.memory_max, base);

        let credentials = self.credentials(&request.process)?;
        let volumes = request.volumes.iter().map(|volume| Place { path: volume.path.to_string(), writable: false });
        let container = ContainerPlan::new(request.id.as_str(), capacities, volumes);
        assert_eq!(container.hostname, sent.instance_id);
        let policy = limits.placement.policy();
        assert_eq!(policy, matches!(limits.placement, Placement::Policy(_)).then_some(sent.node));
        check_process(
            &ProcessPlan::new(request.id.as_str(), &request.process, &credentials),
            &request.process,
            &credentials,
        );
        Ok(())
    }

    fn start_process(&self, request: StartProcessRequest) -> Result<()> {
        let (instance, _) = process_id(&request.instance_id, &request.process_id)?;
        let process = process_spec(request.process.unwrap_or_default())?;
        let credentials = self.credentials(&process)?;
        check_process(&ProcessPlan::new(instance.as_str(), &process, &credentials), &process, &credentials);
        Ok(())
    }

    fn credentials(&self, process: &ProcessSpec) -> Result<Credentials> {
        let credentials = accounts::resolve(&process.user, &self.passwd, &self.group)?;
        let Credentials { uid, gid, groups, .. } = &credentials;
        assert!(*uid <= MAX_ACCOUNT && groups.iter().all(|group| *group <= MAX_ACCOUNT), "{credentials:?}");
        assert!(groups[0] == *gid && !groups[1..].contains(gid), "{credentials:?}");
        Ok(credentials)
    }
}

/// Full file systems leave memory to programs, and each has a bound: 0 would mean no bound.
fn check_capacities(capacities: Capacities, memory: u64, base: u64) {
    let all = [capacities.scratch, capacities.shared, capacities.devices];
    assert!(all.iter().all(|capacity| capacity.bytes > 0 && capacity.inodes > 0), "{capacities:?}");
    let bytes: u64 = all.iter().map(|capacity| capacity.bytes).sum();
    assert!(bytes <= memory + 3 * PAGE, "{memory} bytes: {capacities:?}");
    let inodes: u64 = all.iter().map(|capacity| capacity.inodes * INODE_BYTES).sum();
    assert!(inodes <= base, "{base} bytes of base memory: {capacities:?}");
}

/// The started process is the requested one.
fn check_process(plan: &ProcessPlan, asked: &ProcessSpec, credentials: &Credentials) {
    assert_eq!((&plan.arguments, &plan.working_directory), (&asked.arguments, &asked.working_directory));
    assert_eq!((plan.uid, plan.gid, &plan.groups), (credentials.uid, credentials.gid, &credentials.groups));
    assert_eq!(plan.terminal.is_some(), matches!(asked.stdio, StdioSpec::Terminal(_)), "{plan:?}");
    let variables = plan.environment.iter();
    let names: Vec<_> = variables.filter_map(|variable| variable.split_once('=')).map(|(name, _)| name).collect();
    assert_eq!(plan.environment.len(), names.len(), "{plan:?}");
    assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len(), "{plan:?}");
    assert!(asked.environment.iter().all(|variable| names.contains(&variable.split('=').next().unwrap())), "{plan:?}");
    let texts = asked.arguments.iter().chain(&asked.environment);
    assert!(texts.map(|text| text.len() + 1).sum::<usize>() <= MAX_ARGUMENT_BYTES);
}

fn stream_line(line: &[u8]) -> Result<()> {
    let error = match parse_request_line(line) {
        Ok(request) => {
            assert_eq!(parse_request_line(request_line(&request).as_bytes()), Ok(request));
            return Ok(());
        }
        Err(error) => error,
    };
    let answer = answer_line(Err(&error));
    assert!(answer.len() <= MAX_ANSWER_LINE && parse_answer_line(answer.as_bytes()).is_err(), "{answer:?}");
    Err(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(kind: u8, message: &[u8]) -> Vec<u8> {
        [&[kind], &u16::try_from(message.len()).unwrap().to_le_bytes()[..], message].concat()
    }

    #[test]
    fn arbitrary_requests_break_no_invariant() {
        for seed in 0..=255_u8 {
            let bytes: Vec<u8> = (0..200_u8).map(|index| index.wrapping_mul(seed | 1).wrapping_add(seed)).collect();
            exercise(&bytes);
            exercise(&framed(seed, &bytes));
        }
    }

    /// Even very small ones: to tmpfs, 0 means no limit.
    #[test]
    fn instances_of_any_size_have_bounds() {
        let process = Process { arguments: vec!["sh".into()], environment: vec!["A=b".into()], ..Default::default() };
        for memory_max_bytes in [0, 1, 63, 4096, 100_000, 5 << 20, u64::MAX] {
            for (kind, node) in [(0, 0), (0, 1), (0x80, 1)] {
                let request = StartInstanceRequest {
                    instance_id: "f-1".into(),
                    image_id: "python".into(),
                    process: Some(process.clone()).into(),
                    node,
                    memory_max_bytes,
                    ..Default::default()
                };
                let mut guest = Guest::new();
                let result = guest.request(kind, &request.write_to_bytes().unwrap());
                assert!(result.is_ok() || kind == 0x80, "{result:?}");
                assert!(!guest.claims.is_empty());
            }
        }
    }
}
