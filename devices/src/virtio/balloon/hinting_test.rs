use super::*;

const STOP: u32 = 0;
const DONE: u32 = 1;

#[test]
fn a_run_goes_from_start_to_done() {
    let mut hinting = Hinting::default();
    assert_eq!(hinting.status(), HintingStatus { host_cmd: STOP, guest_cmd: None });
    assert!(!hinting.takes_pages());
    hinting.start(true);
    assert_eq!(hinting.status(), HintingStatus { host_cmd: 2, guest_cmd: None });
    assert!(!hinting.takes_pages(), "the guest has not taken it up");
    assert!(!hinting.command(2));
    assert!(hinting.takes_pages() && !hinting.status().is_complete());
    assert!(hinting.command(STOP), "the host answers by itself");
    assert_eq!(hinting.status(), HintingStatus { host_cmd: DONE, guest_cmd: Some(STOP) });
    assert!(!hinting.takes_pages() && hinting.status().is_complete());
    assert!(!hinting.command(STOP));
}

#[test]
fn the_guest_keeps_its_pages_until_the_host_says_so() {
    let mut hinting = Hinting::default();
    hinting.start(false);
    hinting.command(2);
    assert!(!hinting.command(STOP));
    assert_eq!(hinting.status(), HintingStatus { host_cmd: 2, guest_cmd: Some(STOP) });
    assert!(!hinting.takes_pages());
    hinting.stop();
    assert_eq!(hinting.host_cmd(), DONE);
}

#[test]
fn what_belongs_to_another_run_changes_nothing() {
    let mut hinting = Hinting::default();
    hinting.command(2);
    assert!(!hinting.takes_pages(), "there is no run");
    hinting.start(true);
    hinting.command(2);
    hinting.start(true);
    assert_eq!(hinting.host_cmd(), 3);
    assert!(!hinting.takes_pages());
    assert!(!hinting.command(STOP), "the end of the first");
    hinting.command(2);
    assert!(!hinting.takes_pages());
    assert!(!hinting.command(STOP));
    assert_eq!(hinting.status(), HintingStatus { host_cmd: 3, guest_cmd: Some(2) });
    hinting.command(3);
    assert!(hinting.takes_pages());
    hinting.stop();
    assert!(!hinting.takes_pages(), "the guest may use what it names from now on");
    assert!(!hinting.command(STOP));
    assert_eq!(hinting.status(), HintingStatus { host_cmd: DONE, guest_cmd: Some(STOP) });
}

#[test]
fn a_number_is_not_used_twice_in_a_row() {
    let mut hinting = Hinting(HintingState { last_run: u32::MAX - 1, ..HintingState::default() });
    for run in [u32::MAX, 2, 3] {
        hinting.start(false);
        assert_eq!(hinting.host_cmd(), run);
        assert_eq!(Hinting::restore(hinting.save()), Ok(hinting));
        hinting.reset();
        assert_eq!(hinting.host_cmd(), STOP);
    }
    let state = HintingState { host_cmd: 5, last_run: 4, ..HintingState::default() };
    let error = Hinting::restore(state).unwrap_err().to_string();
    assert_eq!(error, "host_cmd of the balloon is 5: expected 0, 1 or the last run, 4");
}
