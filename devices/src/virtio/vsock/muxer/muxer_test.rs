use super::*;
use crate::virtio::vsock::connection::HostDuty;

const GUEST: u64 = 3;

fn packet(op: Op, ports: Ports) -> Header {
    Header {
        src_cid: GUEST,
        dst_cid: HOST_CID,
        src_port: ports.guest,
        dst_port: ports.host,
        kind: TYPE_STREAM,
        op: op.number(),
        buf_alloc: 1000,
        ..Header::default()
    }
}

fn ports(guest: u32) -> Ports {
    Ports { host: 80, guest }
}

/// A connection that the guest asked for and the host accepted; the response is taken.
fn connected(muxer: &mut Muxer, ports: Ports) -> ConnectionId {
    let Event::Connect { id, port } = muxer.receive(&packet(Op::Request, ports), 0) else { panic!("no connection") };
    assert_eq!(port, ports.host);
    muxer.host_accepted(id);
    assert_eq!(control(muxer).op, Op::Response.number());
    id
}

fn control(muxer: &mut Muxer) -> Header {
    match muxer.next_outgoing() {
        Some(Outgoing::Control(header)) => header,
        other => panic!("{other:?} instead of a control packet"),
    }
}

#[test]
fn packets_of_others_are_dropped_and_other_types_reset() {
    let mut muxer = Muxer::new(GUEST);
    for (src_cid, dst_cid) in [(4, HOST_CID), (HOST_CID, HOST_CID), (GUEST, 4), (GUEST | 1 << 32, HOST_CID)] {
        let header = Header { src_cid, dst_cid, ..packet(Op::Request, ports(1)) };
        assert_eq!(muxer.receive(&header, 0), Event::None);
        assert!(!muxer.has_outgoing());
    }
    assert_eq!(muxer.refused().spoofed, 4);

    let id = connected(&mut muxer, ports(1));
    let header = Header { kind: 2, ..packet(Op::ReadWrite, ports(1)) };
    assert_eq!(muxer.receive(&header, 0), Event::None);
    let reset = control(&mut muxer);
    assert_eq!(reset.op, Op::Reset.number());
    assert_eq!(reset.kind, 2);
    assert_eq!(reset.src_port, 80);
    assert_eq!(reset.dst_port, 1);
    assert!(muxer.get(id).is_some());
}

#[test]
fn unknown_connections_are_reset_but_never_a_reset() {
    let mut muxer = Muxer::new(GUEST);
    for op in [Op::Response, Op::Shutdown, Op::ReadWrite, Op::CreditUpdate, Op::CreditRequest] {
        assert_eq!(muxer.receive(&packet(op, ports(1)), 0), Event::None);
        assert_eq!(control(&mut muxer).op, Op::Reset.number());
    }
    assert_eq!(muxer.receive(&Header { op: 99, ..packet(Op::Reset, ports(1)) }, 0), Event::None);
    assert_eq!(control(&mut muxer).op, Op::Reset.number());
    muxer.receive(&packet(Op::Reset, ports(1)), 0);
    muxer.receive(&Header { kind: 9, ..packet(Op::Reset, ports(1)) }, 0);
    assert!(!muxer.has_outgoing());
}

#[test]
fn floods_stay_within_bounds() {
    let mut muxer = Muxer::new(GUEST);
    for guest in 0..10_000 {
        muxer.receive(&packet(Op::ReadWrite, ports(guest)), 0);
        if let Event::Connect { id, .. } = muxer.receive(&packet(Op::Request, ports(guest)), 0) {
            muxer.host_accepted(id);
        }
    }
    let load = muxer.load();
    assert_eq!(load.connections, MAX_CONNECTIONS);
    assert_eq!(load.waiting, MAX_WAITING);
    assert!(muxer.refused().lost_resets > 0);
    assert_eq!(muxer.connect(1), Err(TooManyConnections));
    let promised: usize =
        (0..MAX_CONNECTIONS as u32).map(|id| muxer.get(ConnectionId(id)).unwrap().buf_alloc() as usize).sum();
    assert!(promised <= MAX_BUFFERED);

    // Opening and resetting without ever making room for a packet.
    for guest in 0..10_000 {
        muxer.receive(&packet(Op::Reset, ports(guest % 100)), 0);
        if let Event::Connect { id, .. } = muxer.receive(&packet(Op::Request, ports(guest % 100)), 0) {
            muxer.host_accepted(id);
        }
        assert!(muxer.load().waiting <= MAX_WAITING);
    }
    for guest in 0..10_000 {
        muxer.receive(&packet(Op::Reset, ports(guest)), 0);
    }
    assert_eq!(muxer.len(), 0);
    assert_eq!(muxer.shared_buffer, SHARED_BUFFER);
    assert_eq!(muxer.load().waiting, MAX_RESETS);
}

#[test]
fn an_orphan_makes_room() {
    let mut muxer = Muxer::new(GUEST);
    let orphan = connected(&mut muxer, ports(0));
    for guest in 1..MAX_CONNECTIONS as u32 {
        connected(&mut muxer, ports(guest));
    }
    assert!(muxer.connect(52).is_err());
    assert!(!muxer.host_closed(orphan));
    assert_eq!(muxer.connect(52), Ok(orphan));
    assert_eq!(control(&mut muxer).op, Op::Reset.number());
}

#[test]
fn connections_take_turns() {
    let mut muxer = Muxer::new(GUEST);
    let ids: Vec<_> = (0..3).map(|guest| connected(&mut muxer, ports(guest))).collect();
    for id in &ids {
        muxer.host_readable(*id);
    }
    for turn in 0..9 {
        let Some(Outgoing::Data { id, limit }) = muxer.next_outgoing() else { panic!("nobody's turn") };
        assert_eq!(id, ids[turn % 3]);
        assert_eq!(limit as usize, 1000 - 100 * (turn / 3));
        let header = muxer.host_sent(id, 100).unwrap();
        assert_eq!(header.dst_port as usize, turn % 3);
        assert_eq!(header.len, 100);
    }
}

#[test]
fn a_second_request_resets_the_connection() {
    let mut muxer = Muxer::new(GUEST);
    let id = connected(&mut muxer, ports(1));
    assert_eq!(muxer.receive(&packet(Op::Request, ports(1)), 0), Event::Closed(id));
    assert_eq!(control(&mut muxer).op, Op::Reset.number());
    assert!(muxer.is_empty());
}

#[test]
fn a_lingering_connection_leaves_its_ports() {
    let mut muxer = Muxer::new(GUEST);
    let id = connected(&mut muxer, ports(1));
    muxer.receive(&Header { len: 10, ..packet(Op::ReadWrite, ports(1)) }, 10);
    muxer.store(id, 10).unwrap();
    muxer.receive(&Header { flags: 3, ..packet(Op::Shutdown, ports(1)) }, 0);
    assert_eq!(muxer.close_if_finished(id), Closing::NotYet(HostDuty { shut_read: true, shut_write: false }));
    assert_eq!(muxer.receive(&packet(Op::Reset, ports(1)), 0), Event::None);
    let again = connected(&mut muxer, ports(1));
    assert_ne!(again, id);
    muxer.flushed(id, 10);
    assert_eq!(muxer.close_if_finished(id), Closing::Closed);
    assert!(!muxer.has_outgoing());
    assert_eq!(muxer.receive(&packet(Op::CreditRequest, ports(1)), 0), Event::None);
    assert_eq!(control(&mut muxer).op, Op::CreditUpdate.number());
}
