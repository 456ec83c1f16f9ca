use super::*;

#[test]
fn durations_are_milliseconds_and_addresses_are_text() {
    let report = DiscardReport { discard: Duration::from_micros(1500), discarded: ByteSize::mib(2) };
    assert_eq!(serde_json::to_value(report).unwrap()["discard_ms"], 1.5);
    let disk = DiskInfo {
        serial: "s".into(),
        path: "/d".into(),
        read_only: true,
        transport: Transport::Blk,
        address: PciAddress::new(0, 3, 0).unwrap(),
        state: DiskState::Unbound,
        limits: RateLimit::default(),
    };
    let json = serde_json::to_value(&disk).unwrap();
    assert_eq!((&json["address"], &json["state"]), (&"0000:00:03.0".into(), &"unbound".into()));
}

fn partition() -> PartitionReport {
    let times = GuestTimes { total: Duration::from_micros(750), host: Duration::from_micros(250) };
    let driver = GuestDriver {
        state: GuestState::Parked,
        mode: PartitionMode::Extension,
        allocated_pages: 0,
        parks: 1,
        unparks: 0,
        park_misses: 0,
        last_plug: GuestTimes::default(),
        last_unplug: times,
    };
    let plug = PlugReport {
        bytes: ByteSize::mib(2),
        accepted: Duration::from_millis(5),
        usable: Duration::from_millis(12),
        mode: PartitionMode::Extension,
        driver: None,
    };
    let unplug = UnplugReport {
        unplug: Duration::from_nanos(1_250_999),
        slots: Duration::from_micros(250),
        drain: Duration::ZERO,
        left: ByteSize::bytes(4096),
    };
    let account = UnplugAccount { migrated_pages: Some(0), zeroed_pages: None, driver: Some(driver) };
    let discard = DiscardReport { discard: Duration::from_secs(20), discarded: ByteSize::bytes(8192) };
    PartitionReport::new(&plug, &unplug, &account, &discard)
}

const PARTITION: &str = r#"{"bytes":2097152,"mode":"extension","plug_ms":12.0,"unplug_ms":1.25,"guest_ms":0.5,"slot_ms":0.25,"discard_ms":20000.0,"migrated_pages":0,"zeroed_pages":null,"discarded_bytes":8192,"left_bytes":4096}"#;

/// The line that scripts read from `bellows run --json`.
#[test]
fn a_run_is_one_line_that_scripts_know() {
    let mut report = RunReport {
        status: ExitStatus { code: 137, oom_killed: true, oom_limit: Some(OomLimit::Partition) },
        guest_kernel: "6.12.1".into(),
        partition_mode: PartitionMode::Extension,
        shape: Shape::Flat,
        transport: Transport::Blk,
        prefetched_bytes: 4096,
        recorded_bytes: None,
        boot: Duration::from_millis(100),
        run: Duration::from_millis(900),
        partition: Some(partition()),
    };
    let start = r#"{"exit_code":137,"oom_killed":true,"oom_limit":"partition","guest_kernel":"6.12.1","partition_mode":"extension","shape":"flat","transport":"blk","prefetched_bytes":4096,"recorded_bytes":null,"boot_ms":100.0,"run_ms":900.0,"partition":"#;
    assert_eq!(serde_json::to_string(&report).unwrap(), format!("{start}{PARTITION}}}"));
    report.partition = None;
    assert_eq!(serde_json::to_string(&report).unwrap(), format!("{start}null}}"));
}

/// The line that a VM without an image prints, and that the benchmark of boots reads.
#[test]
fn a_vm_that_is_ready_says_so_in_one_line() {
    let guest = GuestInfo {
        agent_version: "0.1.0".into(),
        kernel_release: "6.12.1".into(),
        partition_mode: PartitionMode::Stock,
        instances_base: ByteSize::mib(100),
    };
    let times = BootTimes { init: Duration::from_millis(80), ready: Duration::from_micros(99_500) };
    let exits = ExitCounts { port_reads: 7, ..ExitCounts::default() };
    let report = ReadyReport::new(guest, Duration::from_millis(250), times, exits);
    let line = serde_json::to_string(&report).unwrap();
    let start = r#"{"guest_kernel":"6.12.1","partition_mode":"stock","boot_ms":250.0,"init_ms":80.0,"ready_ms":99.5,"exits":{"port_reads":7,"port_writes":0,"#;
    assert!(line.starts_with(start), "{line}");
    assert_eq!(serde_json::from_str::<ReadyReport>(&line).unwrap(), report);
    let negative = line.replace("80.0", "-80.0");
    assert!(serde_json::from_str::<ReadyReport>(&negative).is_err());
}
