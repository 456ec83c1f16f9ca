//! States that no device saved.

use super::*;
use crate::pci::PciFunction as _;
use crate::pci::msix::CONTROL_ENABLE;
use crate::virtio::Rng;
use crate::virtio::testing::PciMachine;
use crate::virtio::transport::common_config::status;

/// The state of an entropy device that a driver has started.
fn saved(machine: &PciMachine) -> VirtioPciState {
    let function = machine.function(Box::new(Rng::new()));
    let address = machine.segment.add(function.clone()).unwrap();
    let mut driver = crate::virtio::testing::PciDriver::probe(machine, address);
    let mut queues = driver.start(machine);
    assert_eq!(queues[0].request(&[], &[16]).len, 16);
    function.suspend();
    function.save().unwrap()
}

#[test]
fn what_no_device_saved_is_refused_and_named() {
    type Change = fn(&mut VirtioPciState);
    let changes: &[(&str, Change)] = &[
        ("length of configuration space is 255: expected 256", |state| {
            state.config_space.bytes.pop();
        }),
        ("byte 0x2 of configuration space, without bits that a driver may write, is 85: expected 68", |state| {
            state.config_space.bytes[2] = 0x55;
        }),
        ("number of queues is 0: expected 1", |state| state.common.queues.clear()),
        ("size of queue 0 is 128: expected a power of two up to 64", |state| state.common.queues[0].queue_size = 128),
        ("size of queue 0 is 3: expected a power of two up to 64", |state| state.common.queues[0].queue_size = 3),
        ("device_status is 4: expected a set of bits", |state| state.common.device_status = status::DRIVER_OK),
        ("device_status is 79: expected a set of bits", |state| state.common.device_status |= status::NEEDS_RESET),
        ("device_status is 15: expected a set of bits", |state| state.common.driver_feature |= 1),
        ("an MSI-X vector of the common configuration is 2: expected below 2", |state| {
            state.common.config_msix_vector = 2;
        }),
        ("an MSI-X vector of the common configuration is 9: expected below 2", |state| {
            state.common.queues[0].queue_msix_vector = 9;
        }),
        ("number of MSI-X vectors is 1: expected 2", |state| {
            state.msix.entries.pop();
        }),
        ("address of MSI-X vector 1 is 3: expected a multiple of 4", |state| state.msix.entries[1][0] = 3),
        ("control of MSI-X vector 0 is 2: expected 0 or 1", |state| state.msix.entries[0][3] = 2),
        ("ISR status is 1: expected 0", |state| state.interrupts.isr = 1),
        ("pending interrupt is 1: expected a vector that is masked", |state| {
            state.interrupts.pending_vectors = vec![1]
        }),
        ("pending interrupt is 7: expected a vector that is masked", |state| {
            state.interrupts.pending_vectors = vec![7]
        }),
        ("number of queues served is 0: expected 1", |state| state.queues = Some(Vec::new())),
        ("whether queue 0 is served is false: expected true", |state| state.queues = Some(vec![None])),
        ("used ring position of queue 0 is 2: expected at most 64 behind 1", |state| {
            state.queues = Some(vec![Some(RingPosition { next_avail: 1, next_used: 2 })]);
        }),
        ("DRIVER_OK of a device that the driver has started is false: expected true", |state| {
            state.common.device_status &= !status::DRIVER_OK;
        }),
        ("device state is Pmem", |state| {
            let pmem = crate::virtio::state::PmemState { version: Version, start: 0, bytes: 0 };
            state.device = DeviceState::Pmem(pmem);
        }),
    ];
    let machine = PciMachine::new();
    let saved = saved(&machine);
    let function = machine.function(Box::new(Rng::new()));
    function.suspend();
    let before = function.save().unwrap();
    for (expected, change) in changes {
        let mut state = saved.clone();
        change(&mut state);
        let error = function.restore(&state).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}\nexpected: {expected}");
        assert_eq!(function.save().unwrap(), before, "a state that is refused changes nothing");
    }
    function.restore(&saved).unwrap();
    assert_eq!(function.save().unwrap(), saved);
    let error = function.restore(&saved).unwrap_err().to_string();
    assert_eq!(error, "newness of the function is false: expected true");
}

#[test]
fn a_state_of_another_version_is_refused() {
    let machine = PciMachine::new();
    let mut json = serde_json::to_value(saved(&machine)).unwrap();
    assert_eq!(json["version"], 1);
    assert_ne!(json["config_space"]["bytes"][0], 0);
    json["common"]["version"] = 2.into();
    let error = serde_json::from_value::<VirtioPciState>(json).unwrap_err();
    assert_eq!(error.to_string(), "the state's version is 2: expected 1");
}

#[test]
fn a_control_word_of_the_saved_space_takes_effect() {
    let machine = PciMachine::new();
    let state = saved(&machine);
    let function = machine.function(Box::new(Rng::new()));
    function.restore(&state).unwrap();
    let control = lock(&function.space).u16_at(function.capabilities.message_control.start);
    assert_eq!(control & CONTROL_ENABLE, CONTROL_ENABLE);
    assert!(matches!(lock(&function.msix).delivery(1), Delivery::To(_)));
}
