use super::*;

/// Instructions of parked plugs of 2 GiB, as a lab counted them.
const RECORDED: [u64; 3] = [1_895_224, 1_907_959, 1_860_294];

fn boots() -> Vec<BTreeMap<Operation, Cost>> {
    let cost = |instructions| Cost { instructions, waited_ns: 10_000, exits: 60 };
    RECORDED.iter().map(|instructions| BTreeMap::from([(Operation::ParkedPlug, cost(*instructions))])).collect()
}

fn versions(qemu: &str) -> BTreeMap<String, String> {
    [("qemu", qemu), ("rustc", "1.90")].map(|(name, version)| (name.to_owned(), version.to_owned())).into()
}

fn bounds() -> Bounds {
    Bounds::new(versions("10.0"), 9, &boots()).unwrap()
}

fn instructions() -> Level {
    bounds().operations[&Operation::ParkedPlug].instructions
}

#[test]
fn five_percent_more_instructions_in_a_plug_are_over_the_bound() {
    let usual = instructions();
    assert_eq!(usual.judge(usual.median * 1.05), Verdict::Above);
    assert_eq!(usual.judge(usual.median * 0.95), Verdict::Below);
}

#[test]
fn every_boot_that_bounds_were_taken_from_is_within_them() {
    for recorded in RECORDED {
        assert_eq!(instructions().judge(recorded as f64), Verdict::Within, "{recorded}");
    }
}

#[test]
fn the_tolerance_is_three_percent_or_three_deviations_or_a_switch_whichever_is_most() {
    assert_eq!(Level { median: 1e6, deviation: 9_000.0 }.tolerance(), 30_000.0);
    assert_eq!(Level { median: 1e6, deviation: 11_000.0 }.tolerance(), 33_000.0);
    assert_eq!(Level { median: 2e5, deviation: 1_000.0 }.tolerance(), 10_000.0);
}

#[test]
fn other_versions_are_named() {
    assert!(bounds().differences(&versions("10.0")).is_empty());
    assert_eq!(bounds().differences(&versions("10.1")), ["qemu: 10.0, now 10.1"]);
    assert_eq!(bounds().differences(&BTreeMap::new()), ["qemu: 10.0, now unknown", "rustc: 1.90, now unknown"]);
}

#[test]
fn bounds_survive_their_file() {
    let json = serde_json::to_string(&bounds()).unwrap();
    assert_eq!(serde_json::from_str::<Bounds>(&json).unwrap(), bounds());
}
