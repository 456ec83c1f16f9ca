use super::*;

#[test]
fn every_role_has_a_filter_that_is_no_larger_than_the_kernel_takes() {
    const MOST_INSTRUCTIONS: usize = 4096;
    let process = lists::process(SeccompAction::Trap, 1, &[], Reach::Internet).unwrap();
    assert!((100..MOST_INSTRUCTIONS).contains(&process.len()), "{}", process.len());
    for role in ThreadRole::ALL {
        let filter = lists::of_role(role, SeccompAction::Trap, 1).unwrap();
        assert_eq!(filter.is_none(), role == ThreadRole::Control, "{role:?}");
        assert!(filter.is_none_or(|filter| filter.len() < process.len()), "{role:?}");
    }
    assert!(!lists::no_clone3().unwrap().is_empty());
}
