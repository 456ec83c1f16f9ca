use std::time::Duration;

use super::*;

fn boot(monitor: Monitor, turn: usize, ms: u64, heap: u64) -> Line {
    let overhead = Overhead { heap, ..Overhead::default() };
    Line::Boot(Boot { monitor, turn, time: Duration::from_millis(ms), cost: None, overhead })
}

fn traced(ms: u64, exits: &[(&str, u64)]) -> Line {
    let exits = exits.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect();
    let phase = Phase { name: "kernel".into(), time: Duration::from_millis(ms), exits };
    Line::Traced(Traced { monitor: Monitor::Bellows, phases: vec![phase] })
}

fn lines() -> Vec<Line> {
    use Monitor::{Bellows, Qemu};
    let bellows = [(0, 100), (1, 120), (0, 110), (1, 130)].map(|(turn, ms)| boot(Bellows, turn, ms, ms));
    let qemu = [(0, 400), (1, 400), (0, 520), (1, 520)].map(|(turn, ms)| boot(Qemu, turn, ms, 9));
    bellows.into_iter().chain(qemu).collect()
}

#[test]
fn a_report_compares_both_with_each_other_and_with_themselves() {
    let report = Report::new(Host::Lab, Clock::Wall, &lines()).unwrap();
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["host"], "lab");
    assert_eq!(json["rows"][0]["vmm"], "bellows");
    assert_eq!(json["rows"][0]["n"], 4);
    assert_eq!(json["rows"][0]["boot_ms"], serde_json::json!({"p50": 115.0, "p99": 130.0, "max": 130.0}));
    assert_eq!(json["rows"][0]["overhead_bytes"], 120);
    assert_eq!(json["rows"][0]["a_a"], 105.0 / 125.0);
    assert_eq!(json["ratio"], 115.0 / 460.0);
    assert_eq!(json["breakdown"], serde_json::json!([]));
    let text = report.to_string();
    assert!(text.contains("bellows takes 0.25 of qemu's time") && text.contains("only ratios"), "{text}");
}

#[test]
fn a_breakdown_is_made_of_medians() {
    let mut lines = lines();
    lines.extend([traced(10, &[("npf", 5), ("io", 1)]), traced(40, &[("npf", 9)]), traced(20, &[("npf", 7)])]);
    let report = Report::new(Host::Kvm, Clock::Wall, &lines).unwrap();
    let json = serde_json::to_value(&report.breakdown).unwrap();
    assert_eq!(json[0]["n"], 3);
    assert_eq!(json[0]["phases"], serde_json::json!([{"name": "kernel", "ms": 20.0, "exits": {"npf": 7}}]));
    let text = report.to_string();
    assert!(text.contains("kernel    100.0 %       7 exits  npf 7"), "{text}");
}

#[test]
fn a_monitor_that_never_booted_is_an_error() {
    let error = Report::new(Host::Kvm, Clock::Wall, &lines()[..4]).unwrap_err();
    assert!(error.to_string().contains("no boots of qemu"), "{error}");
}

#[test]
fn counted_boots_are_told_as_instructions_and_waits() {
    let counted = |line: Line| match line {
        Line::Boot(boot) => {
            Line::Boot(Boot { cost: Some(Cost { instructions: 270, waited_ns: 10, exits: 3 }), ..boot })
        }
        line => line,
    };
    let lines: Vec<Line> = lines().into_iter().map(counted).collect();
    let text = Report::new(Host::Lab, Clock::Counted, &lines).unwrap().to_string();
    assert!(
        text.contains("bellows: 270 instructions, 10 ns waited, 3 exits") && !text.contains("only ratios"),
        "{text}"
    );
    let names: Vec<String> = figures(&lines).into_iter().map(|figure| figure.name).collect();
    assert_eq!(names[..3], ["bellows, boot", "bellows, own memory", "bellows, boot, instructions"]);
}
