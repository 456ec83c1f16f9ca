use proptest::prelude::*;

use super::*;

const PORTS: Ports = Ports { host: 1 << 30, guest: 52 };
const BUFFER: u32 = 1000;

/// A connection that the guest accepted with `credit` bytes of buffer.
fn established(credit: u32) -> Connection {
    let mut connection = Connection::to_guest(PORTS, BUFFER);
    assert_eq!(connection.take_control(), Some((Op::Request, 0)));
    connection.guest_credit(credit, 0);
    assert_eq!(receive(&mut connection, Op::Response, 0, 0), Ok(Effect::Established));
    connection
}

fn receive(connection: &mut Connection, op: Op, len: u32, flags: u32) -> Result<Effect, Violation> {
    connection.receive(op.number(), len, flags, len as usize)
}

#[test]
fn a_connection_begins_by_request_and_response() {
    let mut asked = Connection::to_guest(PORTS, BUFFER);
    asked.host_readable();
    assert!(asked.has_outgoing());
    assert_eq!(asked.sendable(), 0);
    asked.take_control();
    assert!(!asked.has_outgoing());
    for op in [Op::Request, Op::ReadWrite, Op::Shutdown, Op::CreditUpdate, Op::CreditRequest] {
        assert_eq!(receive(&mut asked, op, 0, 0), Err(Violation::Unexpected(op)));
    }

    let mut asking = Connection::from_guest(PORTS, BUFFER);
    asking.guest_credit(10, 0);
    assert!(!asking.has_outgoing());
    asking.host_accepted();
    assert_eq!(asking.take_control(), Some((Op::Response, 0)));
    assert_eq!(asking.advertise(), (BUFFER, 0));
    asking.host_readable();
    assert_eq!(asking.sendable(), 10);
}

#[test]
fn asks_for_credit_once_when_the_host_has_data_and_the_guest_no_room() {
    let mut connection = established(10);
    connection.host_readable();
    connection.sent(10);
    assert_eq!(connection.sendable(), 0);
    assert_eq!(connection.take_control(), Some((Op::CreditRequest, 0)));
    connection.host_readable();
    assert_eq!(connection.take_control(), None);
    connection.guest_credit(10, 10);
    assert_eq!(connection.sendable(), 10);
    assert_eq!(connection.take_control(), None);
}

#[test]
fn tells_the_guest_of_room_once_half_the_buffer_seems_used() {
    let mut connection = established(0);
    for _ in 0..5 {
        assert_eq!(receive(&mut connection, Op::ReadWrite, 100, 0), Ok(Effect::Payload));
        connection.forwarded(100);
        assert_eq!(connection.take_control(), None);
    }
    assert_eq!(receive(&mut connection, Op::ReadWrite, 100, 0), Ok(Effect::Payload));
    connection.forwarded(100);
    assert_eq!(connection.take_control(), Some((Op::CreditUpdate, 0)));
    assert_eq!(connection.advertise(), (BUFFER, 600));
    assert_eq!(connection.take_control(), None);
    assert_eq!(receive(&mut connection, Op::CreditRequest, 0, 0), Ok(Effect::None));
    assert_eq!(connection.take_control(), Some((Op::CreditUpdate, 0)));
}

#[test]
fn data_beyond_the_credit_is_a_violation() {
    let mut connection = established(0);
    assert_eq!(receive(&mut connection, Op::ReadWrite, BUFFER, 0), Ok(Effect::Payload));
    connection.store(BUFFER as usize).unwrap().fill(1);
    let error = CreditExceeded { len: 1, free: 0 };
    assert_eq!(receive(&mut connection, Op::ReadWrite, 1, 0), Err(Violation::Credit(error)));
    connection.flushed(1);
    assert_eq!(receive(&mut connection, Op::ReadWrite, 1, 0), Ok(Effect::Payload));
    let error = CreditExceeded { len: u32::MAX, free: 0 };
    assert_eq!(receive(&mut connection, Op::ReadWrite, u32::MAX, 0), Err(Violation::Credit(error)));
    let error = Violation::Truncated { len: u32::MAX, present: 8 };
    assert_eq!(connection.receive(5, u32::MAX, 0, 8), Err(error));
    assert_eq!(connection.receive(8, 0, 0, 0), Err(Violation::UnknownOp(8)));
}

#[test]
fn the_guest_may_end_one_direction_and_go_on_in_the_other() {
    let mut connection = established(100);
    receive(&mut connection, Op::ReadWrite, 10, 0).unwrap();
    connection.store(10).unwrap();
    assert_eq!(receive(&mut connection, Op::Shutdown, 0, 2), Ok(Effect::Shutdown));
    assert_eq!(connection.host_duty(), HostDuty::default());
    connection.flushed(10);
    assert_eq!(connection.host_duty(), HostDuty { shut_write: true, shut_read: false });
    assert_eq!(connection.host_duty(), HostDuty::default());
    assert!(receive(&mut connection, Op::ReadWrite, 1, 0).is_err());
    connection.host_readable();
    assert_eq!(connection.sendable(), 100);
    assert!(!connection.is_finished());
    receive(&mut connection, Op::Shutdown, 0, 1).unwrap();
    assert_eq!(connection.sendable(), 0);
    assert_eq!(connection.host_duty(), HostDuty { shut_write: false, shut_read: true });
    assert!(connection.is_finished());
}

#[test]
fn the_host_may_end_one_direction_and_go_on_in_the_other() {
    let mut connection = established(100);
    connection.host_readable();
    connection.host_ended();
    assert_eq!(connection.take_control(), Some((Op::Shutdown, 2)));
    assert_eq!(connection.take_control(), None);
    assert_eq!(receive(&mut connection, Op::ReadWrite, 10, 0), Ok(Effect::Payload));
    connection.forwarded(10);
    connection.host_deaf();
    assert_eq!(connection.take_control(), Some((Op::Shutdown, 3)));
    assert!(connection.is_orphaned());
}

#[test]
fn data_that_crosses_the_hosts_shutdown_is_dropped() {
    for gone in [false, true] {
        let mut connection = established(100);
        receive(&mut connection, Op::ReadWrite, BUFFER, 0).unwrap();
        connection.store(BUFFER as usize - 10).unwrap();
        connection.host_deaf();
        if gone {
            connection.host_ended();
        } else {
            connection.host_readable();
            assert_eq!(connection.sendable(), 100, "what the host has sent goes on");
        }
        assert_eq!(connection.take_control(), Some((Op::Shutdown, if gone { 3 } else { 1 })));
        // Until it has read the shutdown, the guest may use all its credit again and again.
        for dropped in 1..4 {
            assert_eq!(connection.advertise(), (BUFFER, dropped * BUFFER));
            assert_eq!(receive(&mut connection, Op::ReadWrite, BUFFER, 0), Ok(Effect::None));
            assert!(connection.backlog().is_empty());
            assert_eq!(connection.take_control(), Some((Op::CreditUpdate, 0)));
        }
        let error = CreditExceeded { len: BUFFER + 1, free: BUFFER };
        assert_eq!(receive(&mut connection, Op::ReadWrite, BUFFER + 1, 0), Err(Violation::Credit(error)));
        assert_eq!(connection.receive(5, 2, 0, 1), Err(Violation::Truncated { len: 2, present: 1 }));
        receive(&mut connection, Op::Shutdown, 0, 2).unwrap();
        assert_eq!(receive(&mut connection, Op::ReadWrite, 1, 0), Err(Violation::Unexpected(Op::ReadWrite)));
    }
}

#[test]
fn a_reset_after_both_shutdowns_still_delivers() {
    let mut connection = established(0);
    receive(&mut connection, Op::ReadWrite, 10, 0).unwrap();
    connection.store(10).unwrap();
    receive(&mut connection, Op::Shutdown, 0, 3).unwrap();
    assert_eq!(receive(&mut connection, Op::Reset, 0, 0), Ok(Effect::Reset));
    assert!(connection.is_lingering() && !connection.is_finished() && !connection.has_outgoing());
    connection.flushed(10);
    assert!(connection.is_finished());

    let mut aborted = established(0);
    receive(&mut aborted, Op::ReadWrite, 10, 0).unwrap();
    aborted.store(10).unwrap();
    receive(&mut aborted, Op::Reset, 0, 0).unwrap();
    assert!(!aborted.is_lingering());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Counters start anywhere near the wrap; the guest takes and announces in any order.
    #[test]
    fn send_credit_wraps(start in any::<u32>(), buf_alloc in 1..100_000u32, steps in proptest::collection::vec((any::<u32>(), any::<u32>()), 0..200)) {
        let mut credit = SendCredit::default();
        credit.update(u32::MAX, 0);
        credit.sent(start);
        credit.update(buf_alloc, start);
        let (mut sent, mut taken) = (0_u64, 0_u64);
        for (send, take) in steps {
            let free = u64::from(buf_alloc) - (sent - taken);
            prop_assert_eq!(u64::from(credit.available()), free);
            let send = u64::from(send) % (free + 1);
            credit.sent(send as u32);
            sent += send;
            taken += u64::from(take) % (sent - taken + 1);
            credit.update(buf_alloc, start.wrapping_add(taken as u32));
        }
    }

    /// A guest that counts by the specification is never refused and always learns of room.
    #[test]
    fn a_window_keeps_its_promise(buf_alloc in 4..100_000u32, steps in proptest::collection::vec((any::<u32>(), any::<u32>()), 0..200)) {
        let mut window = ReceiveWindow::new(buf_alloc);
        let mut guest = SendCredit::default();
        guest.update(buf_alloc, 0);
        for (send, forward) in steps {
            let len = send % (guest.available() + 1);
            guest.sent(len);
            prop_assert_eq!(window.receive(len), Ok(()));
            prop_assert!(window.held() <= buf_alloc);
            prop_assert!(window.receive(buf_alloc - window.held() + 1).is_err());
            window.forwarded(forward % (window.held() + 1));
            if window.wants_update() {
                let (buf_alloc, fwd_cnt) = window.advertise();
                guest.update(buf_alloc, fwd_cnt);
            }
            prop_assert!(guest.available() > 0 || window.held() > 0);
        }
    }
}
