use super::*;

pub fn sample(mode: Mode, size_mib: u64, unplug_ms: u64) -> Sample {
    Sample {
        group: Group { init_on_alloc: false, size_mib, load: Load::Quiet },
        mode,
        parked: mode == Mode::Extension,
        plug: Duration::from_millis(if mode == Mode::Extension { 1 } else { 90 }),
        plug_cost: None,
        usable: Duration::from_millis(100),
        remove: Duration::from_millis(10),
        unplug: Duration::from_millis(unplug_ms),
        unplug_cost: None,
        guest: Duration::from_micros(100),
        slots: Duration::ZERO,
        discard: Duration::from_millis(5),
        vcpus: Duration::from_millis(2),
        migrated: BTreeMap::new(),
        zeroed: 0,
        discarded: size_mib << 20,
        left: 0,
        neighbour: None,
    }
}

fn aim<'a>(report: &'a Report, part: &str) -> Option<&'a Aim> {
    report.aims.iter().find(|aim| aim.aim.contains(part))
}

#[test]
fn modes_are_compared_at_2_gib() {
    let samples = [
        sample(Mode::Shared, 2048, 900),
        sample(Mode::Shared, 2048, 1100),
        sample(Mode::Stock, 2048, 90),
        sample(Mode::Extension, 2048, 4),
        sample(Mode::Extension, 512, 4),
        Sample { guest: Duration::from_micros(250), ..sample(Mode::Extension, 8192, 4) },
    ];
    let report = Report::new(Host::Lab, Clock::Wall, &samples);
    assert_eq!(report.rows.len(), 5);
    let value = |part| aim(&report, part).map(|aim| (aim.value, aim.met));
    assert_eq!(value("extension unplugs"), Some((250.0, true)));
    assert_eq!(value("page cache dropped"), Some((10.0, true)));
    assert_eq!(value("a parked plug"), Some((90.0, true)));
    assert_eq!(value("guest work"), Some((2.5, false)));
    assert_eq!(value("nothing migrated"), Some((0.0, true)));
    assert_eq!(value("p99"), None, "there are too few samples");
    assert!(report.to_string().contains("only ratios"));
}

#[test]
fn a_single_migrated_page_misses_the_aim() {
    let mut samples = vec![sample(Mode::Extension, 2048, 4); 3];
    samples[1].migrated.insert("contig_range".into(), 1);
    let report = Report::new(Host::Kvm, Clock::Wall, &samples);
    assert_eq!((report.rows[0].migrated_pages, report.rows[0].migrated_pages_max), (0, 1));
    assert!(!aim(&report, "nothing migrated").unwrap().met);
}

#[test]
fn plugs_that_were_not_from_the_park_stand_apart() {
    let first = Sample { parked: false, plug: Duration::from_millis(70), ..sample(Mode::Extension, 2048, 4) };
    let samples = [first, sample(Mode::Extension, 2048, 4)];
    let row = &Report::new(Host::Kvm, Clock::Wall, &samples).rows[0];
    assert_eq!((row.plug_ms.p50, row.first_plug_ms), (1.0, Some(70.0)));
}

#[test]
fn a_tail_needs_200_samples() {
    let samples: Vec<_> = (1..=200).map(|unplug| sample(Mode::Extension, 2048, unplug)).collect();
    let report = Report::new(Host::Kvm, Clock::Wall, &samples);
    assert_eq!(report.rows[0].unplug_ms, Times { p50: 100.5, p99: Some(198.0), max: 200.0 });
    assert_eq!(Report::new(Host::Kvm, Clock::Wall, &samples[1..]).rows[0].unplug_ms.p99, None);
}

#[test]
fn the_json_has_flat_rows() {
    let json = serde_json::to_value(Report::new(Host::Lab, Clock::Wall, &[sample(Mode::Stock, 512, 3)])).unwrap();
    let row = &json["rows"][0];
    assert_eq!((&row["mode"], &row["size_mib"], &row["load"]), (&"stock".into(), &512.into(), &"quiet".into()));
    assert_eq!((&row["unplug_ms"]["p50"], &row["unplug_ms"]["p99"]), (&3.0.into(), &serde_json::Value::Null));
}
