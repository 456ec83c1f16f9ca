use bellows_bench::cost::Cost;

use super::*;

fn samples(instructions: u64) -> Vec<Sample> {
    let cost = |more| Cost { instructions: instructions + more, waited_ns: 5000, exits: 60 };
    [0, 1, 2].map(|more| Sample { operation: Operation::ParkedPlug, cost: cost(more) }).into()
}

fn report(instructions: u64, qemu: &str) -> Report {
    let versions = |qemu: &str| BTreeMap::from([("qemu".to_owned(), qemu.to_owned())]);
    let bounds = Bounds::new(versions("10.0"), 3, &[medians(&samples(200_000))]).unwrap();
    Report::new(samples(instructions), versions(qemu), bounds)
}

#[test]
fn more_than_the_tolerance_fails_and_names_the_operation() {
    assert!(report(205_000, "10.0").verdict().is_ok());
    let error = report(212_000, "10.0").verdict().unwrap_err().to_string();
    assert_eq!(error, "parked-plug: 212001 instructions, +6.0 %: expected 200001 with a tolerance of 10000");
}

#[test]
fn an_improvement_asks_for_new_bounds() {
    let report = report(188_000, "10.0");
    assert!(report.verdict().is_ok());
    assert!(report.to_string().contains("better than its bound; take new ones: parked-plug"), "{report}");
}

#[test]
fn with_other_versions_nothing_fails() {
    let report = report(400_000, "10.1");
    assert!(report.verdict().is_ok());
    let text = report.to_string();
    assert!(text.contains("not comparable") && text.contains("qemu: 10.0, now 10.1"), "{text}");
    assert!(text.contains("400001"), "{text}");
}

#[test]
fn an_operation_that_was_not_counted_fails() {
    let Report { versions, bounds, .. } = report(200_000, "10.0");
    let error = Report::new(Vec::new(), versions, bounds).verdict().unwrap_err().to_string();
    assert_eq!(error, "parked-plug: not counted");
}
