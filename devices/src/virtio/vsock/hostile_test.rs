//! Guests and host clients that break the rules.

use vm_memory::Bytes;

use super::*;

/// The device still carries data both ways.
fn assert_works(machine: &mut Machine) {
    let (mut client, mut stream) = machine.pair(1 << 16);
    client.write_all(b"still").unwrap();
    assert_eq!(stream.read(machine, 5), b"still");
    stream.send(machine, Op::ReadWrite, 0, b"alive");
    let mut data = [0; 5];
    client.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"alive");
    stream.send(machine, Op::Reset, 0, &[]);
    assert_eq!(client.read(&mut data).unwrap(), 0);
}

#[test]
fn more_than_the_credit_ends_the_stream() {
    let mut machine = Machine::new();
    let (mut client, mut stream) = machine.pair(1 << 16);
    // More than a host socket and the device's buffer hold together.
    let mut sent = 0;
    let reset = loop {
        stream.send(&mut machine, Op::ReadWrite, 0, &[7; 60_000]);
        sent += 60_000;
        machine.guest.drain();
        stream.send(&mut machine, Op::CreditRequest, 0, &[]);
        let (header, _) = machine.receive(stream.ports);
        if header.op == Op::Reset.number() {
            break header;
        }
        assert!(sent < 4 << 20, "no limit in sight");
    };
    assert_eq!(reset.len, 0);
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert!(got.len() < sent);
    assert_eq!(machine.receive(stream.ports).0.op, Op::Reset.number());
    assert_works(&mut machine);
}

#[test]
fn other_contexts_other_types_and_unknown_operations() {
    let mut machine = Machine::new();
    let _listener = machine.listen(80);
    let (mut client, mut stream) = machine.pair(1 << 16);
    let good = stream.header(Op::ReadWrite, 0, 4);
    for (src_cid, dst_cid) in
        [(41, 2), (2, 2), (0, 2), (u64::MAX, 2), (42 | 1 << 32, 2), (42, 3), (42, 1), (42, 42), (42, 2 | 1 << 32)]
    {
        machine.send_header(&Header { src_cid, dst_cid, ..good }, b"evil");
        machine.send_header(&Header { src_cid, dst_cid, op: 1, dst_port: 80, ..good }, &[]);
    }
    machine.assert_silent();
    for kind in [0, 2, 3, u16::MAX] {
        machine.send_header(&Header { kind, ..good }, b"evil");
        let (reset, _) = stream.expect(&mut machine, Op::Reset);
        assert_eq!(reset.kind, kind);
    }
    stream.send(&mut machine, Op::ReadWrite, 0, b"good");
    let mut data = [0; 4];
    client.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"good");

    for op in [0, 8, u16::MAX] {
        let (mut client, mut stream) = machine.pair(1 << 16);
        machine.send_header(&Header { op, ..stream.header(Op::ReadWrite, 0, 0) }, &[]);
        stream.expect(&mut machine, Op::Reset);
        assert_eq!(client.read(&mut data).unwrap(), 0);
    }
    assert_works(&mut machine);
}

#[test]
fn a_good_packet_may_be_framed_in_any_way() {
    let mut machine = Machine::new();
    let (mut client, stream) = machine.pair(1 << 16);
    let payload = noise(5, 300);
    let bytes = [&stream.header(Op::ReadWrite, 0, payload.len()).to_bytes()[..], &payload].concat();
    let mut sent = 0;
    // One descriptor, two, many, empty ones between, and more than there is to send.
    for split in [344, 44, 1, 43, 45, 3] {
        let mut parts: Vec<_> = bytes.chunks(split).map(Part::Readable).collect();
        parts.insert(1, Part::ReadableAt(GuestAddress(u64::MAX), 0));
        parts.push(Part::Readable(b"beyond the length in the header"));
        if parts.len() <= 256 {
            machine.transmit(&parts);
        } else {
            machine.transmit(&[Part::Readable(&bytes)]);
        }
        sent += 1;
    }
    let head = machine.driver.queues[1].add_indirect(&[Part::Readable(&bytes[..10]), Part::Readable(&bytes[10..])]);
    machine.driver.queues[1].kick();
    assert_eq!(machine.driver.queues[1].wait_used().head, u32::from(head));
    for _ in 0..=sent {
        let mut got = vec![0; payload.len()];
        client.read_exact(&mut got).unwrap();
        assert_eq!(got, payload);
    }
}

#[test]
fn receive_buffers_of_any_framing_are_filled() {
    let mut machine = Machine::without_rx_buffers();
    let mut client = machine.client();
    client.write_all(b"CONNECT 52\n").unwrap();
    let request = machine.driver.queues[0].request(&[], &[10, 34, 1]);
    assert_eq!(request.len, 44);
    let header = request.written[..2].concat();
    let header = Header::from_bytes(header[..].try_into().unwrap());
    let mut stream = GuestStream::new(Ports { host: header.src_port, guest: 52 }, 1 << 16);
    stream.send(&mut machine, Op::Response, 0, &[]);
    read_line(&mut client);
    client.write_all(b"hello, guest").unwrap();
    let done = machine.driver.queues[0].request(&[], &[43, 3, 1, 0, 2, 100]);
    assert_eq!(done.len, 44 + 12);
    assert_eq!(done.written.concat()[44..56], *b"hello, guest");
}

#[test]
fn lengths_that_lie_end_the_stream() {
    let mut machine = Machine::new();
    for (len, present) in [(5, 4), (1, 0), (u32::MAX, 8), (1 << 31, 8)] {
        let (mut client, mut stream) = machine.pair(1 << 16);
        let header = Header { len, ..stream.header(Op::ReadWrite, 0, 0) };
        machine.send_header(&header, &[1; 8][..present]);
        stream.expect(&mut machine, Op::Reset);
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
    // The true length of the chain, 4 GiB, but its memory does not exist.
    let (_client, stream) = machine.pair(1 << 16);
    let header = Header { len: u32::MAX - 100, ..stream.header(Op::ReadWrite, 0, 0) }.to_bytes();
    machine.transmit(&[Part::Readable(&header), Part::ReadableAt(GuestAddress(0), u32::MAX - 100)]);
    machine.assert_silent();
    assert_works(&mut machine);
}

#[test]
fn malformed_packets_are_dropped() {
    let mut machine = Machine::new();
    let (mut client, mut stream) = machine.pair(1 << 16);
    let header = stream.header(Op::ReadWrite, 0, 4).to_bytes();
    let end = FakeGuest::MEMORY as u64;
    let chains: [&[Part<'_>]; 8] = [
        &[Part::Readable(&header[..43])],
        &[Part::Readable(&[])],
        &[Part::Writable(44), Part::Readable(b"evil")],
        &[Part::Readable(&header), Part::Writable(4)],
        &[Part::Readable(&header), Part::ReadableAt(GuestAddress(end - 2), 4)],
        &[Part::Readable(&header), Part::ReadableAt(GuestAddress(u64::MAX - 1), 4)],
        &[Part::ReadableAt(GuestAddress(end), 44), Part::Readable(b"evil")],
        &[Part::ReadableAt(GuestAddress(end - 20), 44), Part::Readable(b"evil")],
    ];
    for chain in chains {
        machine.transmit(chain);
    }
    let pieces = vec![Part::Readable(&header[..1]); 600];
    machine.driver.queues[1].add_indirect(&pieces);
    machine.driver.queues[1].kick();
    assert_eq!(machine.driver.queues[1].wait_used().len, 0);
    // A chain that goes round in circles.
    let address = machine.guest.allocate_with(&header);
    machine.driver.queues[1].set_descriptor(200, address, 44, 1, 201);
    machine.driver.queues[1].set_descriptor(201, address, 44, 1, 200);
    machine.driver.queues[1].publish(200);
    machine.driver.queues[1].kick();
    assert_eq!(machine.driver.queues[1].wait_used().head, 200);
    // It is a valid packet: the header, with the header's first bytes as payload.
    let mut data = [0; 4];
    client.read_exact(&mut data).unwrap();
    assert_eq!(data, header[..4]);
    stream.sent += 4;
    stream.send(&mut machine, Op::ReadWrite, 0, b"good");
    client.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"good");
}

#[test]
fn useless_receive_buffers_are_given_back() {
    let mut machine = Machine::without_rx_buffers();
    let mut client = machine.client();
    client.write_all(b"CONNECT 52\n").unwrap();
    let queue = &mut machine.driver.queues[0];
    for parts in [
        &[Part::Writable(43)][..],
        &[Part::Readable(&[0; 100])],
        &[Part::WritableAt(GuestAddress(FakeGuest::MEMORY as u64 - 10), 100)],
        &[Part::Writable(44), Part::Readable(b"x")],
    ] {
        assert_eq!(queue.request_parts(parts).len, 0);
    }
    let request = queue.request(&[], &[44]);
    assert_eq!(request.len, 44);
    let header = Header::from_bytes(request.written[0][..].try_into().unwrap());
    let mut stream = GuestStream::new(Ports { host: header.src_port, guest: 52 }, 1 << 16);
    stream.send(&mut machine, Op::Response, 0, &[]);
    read_line(&mut client);
    client.write_all(b"data").unwrap();
    assert_eq!(machine.driver.queues[0].request(&[], &[44]).len, 0);
    assert_eq!(machine.driver.queues[0].request(&[], &[48]).len, 48);
}

#[test]
fn an_impossible_ring_needs_a_reset() {
    for queue in [0, 1] {
        let mut machine = Machine::new();
        let (mut client, _stream) = machine.pair(1 << 16);
        let available = if queue == 0 { 1000 } else { 999 };
        machine.driver.queues[queue].set_available_index(available);
        machine.driver.queues[queue].kick();
        // This fails if the device has seen the ring already.
        let _ = client.write_all(b"something to send");
        machine.driver.interrupt.wait_needs_reset();
        assert!(!matches!(client.read(&mut [0]), Ok(1..)));
        machine.driver.queues[queue].kick();
        machine.guest.drain();
        assert_eq!(machine.driver.interrupt.needs_reset_count(), 1);

        machine.device.reset();
        machine.driver = machine.guest.activate(&mut machine.device);
        machine.rx_buffers.clear();
        machine.post_rx(8);
        assert_works(&mut machine);
    }
}

#[test]
fn a_ring_whose_end_is_gone_needs_a_reset() {
    let goes = (GuestAddress(1 << 30), 1 << 20);
    for broken in [RX, TX] {
        let dir = tempfile::tempdir().unwrap();
        let guest = FakeGuest::with_memory(&[(GuestAddress(0), 1 << 30), goes]);
        let mut device = Vsock::new(CID, &dir.path().join("v")).unwrap();
        let interrupt = std::sync::Arc::new(FakeInterrupt::new(QUEUE_SIZES.len()));
        let mut queues: Vec<_> = [RX, TX].map(|index| guest.queue(index, 256, interrupt.clone())).into();
        // The index is in the memory that stays, the entries are not.
        let queue = &mut queues[usize::from(broken)];
        queue.available = GuestAddress((1 << 30) - 4);
        queue.set_available_index(1);
        let activation = Activation {
            memory: guest.view().clone(),
            queues: queues.iter().map(|queue| Some(queue.device_side(false))).collect(),
            interrupt: interrupt.clone(),
            features: 0,
            event_loop: guest.event_loop().handle(),
        };
        let (rest, _) = guest.memory().remove_region(goes.0, goes.1 as u64).unwrap();
        guest.view().lock().unwrap().replace(rest);
        device.activate(activation).unwrap();
        // Data to receive; the write fails if the device has seen the ring already.
        let mut client = UnixStream::connect(dir.path().join("v")).unwrap();
        let _ = client.write_all(b"CONNECT 52\n");
        queues[usize::from(broken)].kick();
        interrupt.wait_needs_reset();
        device.reset();
    }
}

#[test]
fn floods_are_answered_as_far_as_there_is_room() {
    let mut machine = Machine::without_rx_buffers();
    for guest in 0..3000 {
        let stream = GuestStream::new(Ports { host: 80, guest }, 1 << 16);
        let op = if guest % 2 == 0 { Op::Request } else { Op::ReadWrite };
        machine.send_header(&stream.header(op, 0, 0), &[]);
    }
    machine.post_rx(64);
    let mut resets = 1;
    while machine.receive_any().0.dst_port != 2999 {
        resets += 1;
    }
    assert_eq!(resets, 1024);
    machine.assert_silent();
    assert_works(&mut machine);
}

#[test]
fn a_connection_that_is_accepted_twice_or_asked_for_twice_ends() {
    let mut machine = Machine::new();
    for op in [Op::Response, Op::Request] {
        let (mut client, mut stream) = machine.pair(1 << 16);
        stream.send(&mut machine, op, 0, &[]);
        stream.expect(&mut machine, Op::Reset);
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn silent_clients_and_invalid_lines_are_dropped() {
    let mut machine = Machine::new();
    for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"CONNECT\n", b"CONNECT 4294967296\n", &[b'C'; 4096], b"\n"] {
        let mut client = machine.client();
        client.write_all(nonsense).unwrap();
        assert!(!matches!(client.read(&mut [0]), Ok(1..)), "{nonsense:?}");
    }
    let mut silent: Vec<_> = (0..100).map(|_| machine.client()).collect();
    assert_works(&mut machine);
    // The oldest are gone, the youngest may still speak.
    for client in &mut silent[..30] {
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
    silent[99].write_all(b"CONNECT 52\n").unwrap();
    let stream = machine.accept(1 << 16);
    assert_eq!(read_line(&mut silent[99]), format!("OK {}\n", stream.ports.host));
    machine.assert_silent();
}

#[test]
fn the_event_queue_is_left_alone() {
    let mut machine = Machine::new();
    let address = machine.guest.allocate(8);
    machine.guest.memory().write_obj(u64::MAX, address).unwrap();
    machine.driver.queues[2].add(&[Part::WritableAt(address, 8)]);
    machine.driver.queues[2].kick();
    assert_works(&mut machine);
    assert_eq!(machine.driver.queues[2].pop_used(), None);
    assert_eq!(machine.guest.read(address, 8), [0xff; 8]);
}
