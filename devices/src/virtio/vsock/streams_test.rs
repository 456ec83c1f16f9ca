//! Guests and hosts that keep to the rules.

use std::io::ErrorKind;
use std::net::Shutdown as Direction;
use std::os::fd::AsRawFd;
use std::thread;

use super::*;

#[test]
fn a_host_client_reaches_the_guest() {
    let mut machine = Machine::new();
    let mut client = machine.client();
    // The line comes in pieces, and data right after it.
    client.write_all(b"CONN").unwrap();
    machine.guest.drain();
    client.write_all(b"ECT 52\nhello").unwrap();
    let mut stream = machine.accept(1 << 16);
    assert_eq!(stream.ports.guest, 52);
    assert_eq!(read_line(&mut client), format!("OK {}\n", stream.ports.host));
    assert_eq!(stream.read(&mut machine, 5), b"hello");
    stream.send(&mut machine, Op::ReadWrite, 0, b"good day");
    let mut answer = [0; 8];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"good day");

    drop(client);
    let mut flags = 0;
    while flags != BOTH {
        flags = stream.expect(&mut machine, Op::Shutdown).0.flags;
    }
    stream.send(&mut machine, Op::Reset, 0, &[]);
    machine.assert_silent();
}

#[test]
fn streams_survive_a_suspend() {
    let mut machine = Machine::new();
    let (mut client, mut stream) = machine.pair(1 << 16);
    let listener = machine.listen(9);
    let mut late = machine.client();
    for _ in 0..3 {
        let states = machine.device.suspend();
        client.write_all(b"from the host").unwrap();
        let header = stream.header(Op::ReadWrite, 0, 14).to_bytes();
        let sent = machine.driver.queues[1].begin(&[&header, b"from the guest"], &[]);
        stream.sent += 14;
        machine.driver.queues[1].kick();
        machine.assert_silent();
        assert_eq!(machine.driver.queues[1].pop_used(), None);

        machine.guest.resume(&mut machine.device, &machine.driver, states);
        machine.driver.queues[1].finish(sent);
        assert_eq!(stream.read(&mut machine, 13), b"from the host");
        let mut data = [0; 14];
        client.read_exact(&mut data).unwrap();
        assert_eq!(&data, b"from the guest");
    }
    // A client without a complete line, and the listener, are still there.
    late.write_all(b"CONNECT 52\n").unwrap();
    let accepted = machine.accept(1 << 16);
    assert_eq!(read_line(&mut late), format!("OK {}\n", accepted.ports.host));
    machine.connect(7, 9, 1 << 16);
    drop(listener);
}

#[test]
fn the_guest_of_a_restored_device_is_told_that_its_streams_are_gone() {
    let mut machine = Machine::new();
    let (mut client, _stream) = machine.pair(1 << 16);
    let _ = machine.device.suspend();
    let state = machine.device.save();
    machine.device = Vsock::new(CID, &machine.dir.path().join("w")).unwrap();
    machine.device.restore(&state).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0, "the host's end is closed");

    // Even if it is suspended several times before the guest has room for the notice.
    machine.driver = machine.guest.activate(&mut machine.device);
    let states = machine.device.suspend();
    machine.guest.resume(&mut machine.device, &machine.driver, states);
    let notice = machine.driver.queues[2].request(&[], &[4]);
    assert_eq!(notice.len, 4, "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET");
    assert_eq!(&notice.written[0][..], &[0; 4][..], "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET");
    let next = machine.driver.queues[2].begin(&[], &[4]);
    machine.driver.queues[2].kick();
    machine.guest.drain();
    assert_eq!(machine.driver.queues[2].pop_used(), None, "once is enough: {next:?}");

    let mut other = Vsock::new(CID + 1, &machine.dir.path().join("x")).unwrap();
    let error = other.restore(&state).unwrap_err().to_string();
    assert!(error.contains("guest_cid: 42") && error.contains("guest_cid: 43"), "{error}");
}

#[test]
fn the_guest_reaches_a_host_listener() {
    let mut machine = Machine::new();
    let listener = machine.listen(1024);
    let mut stream = machine.connect(7, 1024, 1 << 16);
    let (mut host, _) = listener.accept().unwrap();
    stream.send(&mut machine, Op::ReadWrite, 0, b"ping");
    let mut data = [0; 4];
    host.read_exact(&mut data).unwrap();
    host.write_all(b"pong").unwrap();
    assert_eq!(stream.read(&mut machine, 4), b"pong");

    stream.send(&mut machine, Op::Shutdown, BOTH, &[]);
    stream.expect(&mut machine, Op::Reset);
    assert_eq!(host.read(&mut data).unwrap(), 0);
    assert_eq!(host.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[test]
fn a_port_without_a_listener_is_refused() {
    let mut machine = Machine::new();
    std::fs::write(machine.dir.path().join("v_81"), "no socket").unwrap();
    drop(machine.listen(82));
    for port in [80, 81, 82, u32::MAX] {
        let mut stream = GuestStream::new(Ports { host: port, guest: 7 }, 1 << 16);
        stream.send(&mut machine, Op::Request, 0, &[]);
        stream.expect(&mut machine, Op::Reset);
    }
    // A listener that never accepts must not block the device.
    let listener = machine.listen(83);
    // SAFETY: no pointers are passed; this only shortens the backlog.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 1) }, 0);
    let mut refused = 0;
    for guest in 0..10 {
        let mut stream = GuestStream::new(Ports { host: 83, guest }, 1 << 16);
        stream.send(&mut machine, Op::Request, 0, &[]);
        refused += u32::from(stream.receive(&mut machine).0.op == Op::Reset.number());
    }
    assert!(refused > 0);
    drop(listener);
}

#[test]
fn the_guest_refuses_a_host_client() {
    let mut machine = Machine::new();
    let mut client = machine.client();
    client.write_all(b"CONNECT 99\n").unwrap();
    let (request, _) = machine.receive_any();
    let mut stream = GuestStream::new(Ports { host: request.src_port, guest: 99 }, 0);
    stream.send(&mut machine, Op::Reset, 0, &[]);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_client_that_gives_up_waiting_is_forgotten() {
    let mut machine = Machine::new();
    let mut client = machine.client();
    client.write_all(b"CONNECT 99\n").unwrap();
    let (request, _) = machine.receive_any();
    drop(client);
    let mut stream = GuestStream::new(Ports { host: request.src_port, guest: 99 }, 0);
    stream.expect(&mut machine, Op::Reset);
}

/// Echoes everything on every stream, within credit, until the hosts have said that no more comes.
fn echo(machine: &mut Machine, mut streams: Vec<GuestStream>) {
    let mut waiting: Vec<VecDeque<u8>> = streams.iter().map(|_| VecDeque::new()).collect();
    let mut ended = vec![false; streams.len()];
    let mut closed = ended.clone();
    let mut open = streams.len();
    while open > 0 {
        let (header, payload) = machine.receive_next();
        let ports = Ports { host: header.src_port, guest: header.dst_port };
        let index = streams.iter().position(|stream| stream.ports == ports).unwrap();
        let (stream, waiting) = (&mut streams[index], &mut waiting[index]);
        stream.heard(&header);
        match Op::from_number(header.op).unwrap() {
            Op::ReadWrite => waiting.extend(payload),
            Op::CreditUpdate => {}
            Op::CreditRequest => stream.send(machine, Op::CreditUpdate, 0, &[]),
            Op::Shutdown => ended[index] = true,
            Op::Reset => {
                assert!(closed[index]);
                open -= 1;
                continue;
            }
            op => panic!("{op:?} in the middle of a stream"),
        }
        while !waiting.is_empty() && stream.credit() > 0 {
            let count = waiting.len().min(stream.credit()).min(3000);
            let data: Vec<u8> = waiting.drain(..count).collect();
            stream.fwd_cnt = stream.fwd_cnt.wrapping_add(count as u32);
            stream.send(machine, Op::ReadWrite, 0, &data);
        }
        if ended[index] && waiting.is_empty() && !std::mem::replace(&mut closed[index], true) {
            stream.send(machine, Op::Shutdown, BOTH, &[]);
        }
    }
}

/// Sends noise, reads it back, and returns whether all came back in order.
fn bounce(mut client: UnixStream, seed: u64, len: usize) -> thread::JoinHandle<bool> {
    thread::spawn(move || {
        let mut writer = client.try_clone().unwrap();
        let data = noise(seed, len);
        let sent = data.clone();
        let writing = thread::spawn(move || {
            for piece in sent.chunks(50_000) {
                writer.write_all(piece).unwrap();
            }
            writer.shutdown(Direction::Write).unwrap();
        });
        let mut back = Vec::new();
        client.read_to_end(&mut back).unwrap();
        writing.join().unwrap();
        back == data
    })
}

#[test]
fn bulk_data_of_several_streams_comes_back_whole() {
    let mut machine = Machine::new();
    let listener = machine.listen(1);
    // Windows smaller than a buffer, just about one, and large.
    let (mut clients, mut streams): (Vec<_>, Vec<_>) =
        [700, 4096, 300 << 10].into_iter().map(|window| machine.pair(window)).unzip();
    streams.push(machine.connect(9, 1, 20_000));
    clients.push(listener.accept().unwrap().0);
    let hosts: Vec<_> = (0..).zip(clients).map(|(seed, client)| bounce(client, seed, 2 << 20)).collect();
    echo(&mut machine, streams);
    for (n, host) in hosts.into_iter().enumerate() {
        assert!(host.join().unwrap(), "stream {n}");
    }
    machine.assert_silent();
}

#[test]
fn the_guest_sends_no_more_but_listens() {
    let mut machine = Machine::new();
    let (mut client, mut stream) = machine.pair(1 << 16);
    stream.send(&mut machine, Op::ReadWrite, 0, b"question");
    stream.send(&mut machine, Op::Shutdown, 2, &[]);
    let mut question = String::new();
    client.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    client.write_all(b"answer").unwrap();
    assert_eq!(stream.read(&mut machine, 6), b"answer");
    drop(client);
    while stream.expect(&mut machine, Op::Shutdown).0.flags != BOTH {}
    stream.send(&mut machine, Op::Shutdown, BOTH, &[]);
    stream.expect(&mut machine, Op::Reset);
}

#[test]
fn the_host_sends_no_more_but_listens() {
    let mut machine = Machine::new();
    let (mut client, mut stream) = machine.pair(1 << 16);
    client.write_all(b"question").unwrap();
    client.shutdown(Direction::Write).unwrap();
    assert_eq!(stream.read(&mut machine, 8), b"question");
    assert_eq!(stream.expect(&mut machine, Op::Shutdown).0.flags, 2);
    stream.send(&mut machine, Op::ReadWrite, 0, b"answer");
    stream.send(&mut machine, Op::Shutdown, BOTH, &[]);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
    stream.expect(&mut machine, Op::Reset);
}

#[test]
fn each_side_may_refuse_to_listen() {
    let mut machine = Machine::new();
    let (mut client, mut stream) = machine.pair(1 << 16);
    stream.send(&mut machine, Op::Shutdown, 1, &[]);
    assert_eq!(client.write(b"too late").unwrap_err().kind(), ErrorKind::BrokenPipe);
    stream.send(&mut machine, Op::ReadWrite, 0, b"still here");
    let mut data = [0; 10];
    client.read_exact(&mut data).unwrap();

    let (mut client, mut stream) = machine.pair(1 << 16);
    client.shutdown(Direction::Read).unwrap();
    stream.send(&mut machine, Op::ReadWrite, 0, b"too late");
    assert_eq!(stream.expect(&mut machine, Op::Shutdown).0.flags, 1);
    // Under way before the guest could know.
    stream.send(&mut machine, Op::ReadWrite, 0, b"too late");
    client.write_all(b"still here").unwrap();
    assert_eq!(stream.read(&mut machine, 10), b"still here");
}

#[test]
fn an_early_answer_reaches_a_guest_that_still_sends() {
    let mut machine = Machine::new();
    // With a host that has read nothing and one that has read all so far, and with less room than the answer takes.
    for (reads, room) in [(false, 1 << 16), (true, 1 << 16), (true, 4)] {
        let (mut client, mut stream) = machine.pair(room);
        stream.send(&mut machine, Op::ReadWrite, 0, b"question");
        if reads {
            client.read_exact(&mut [0; 8]).unwrap();
        }
        // The device must find the guest's packets before it sees the host's actions.
        let held = machine.hold();
        for _ in 0..3 {
            let header = stream.header(Op::ReadWrite, 0, 6).to_bytes();
            machine.driver.queues[1].add(&[Part::Readable(&header), Part::Readable(b"more..")]);
            stream.sent = stream.sent.wrapping_add(6);
        }
        machine.driver.queues[1].kick();
        client.write_all(b"enough").unwrap();
        drop(client);
        held.release();
        for _ in 0..3 {
            machine.driver.queues[1].wait_used();
        }
        let mut answer = Vec::new();
        while answer.len() < 6 {
            let (header, payload) = stream.receive(&mut machine);
            assert_ne!(header.op, Op::Reset.number(), "after {answer:?}; reads {reads}, room {room}");
            answer.extend(payload);
            stream.fwd_cnt = answer.len() as u32;
            stream.send(&mut machine, Op::CreditUpdate, 0, &[]);
        }
        assert_eq!(answer, b"enough");
        stream.send(&mut machine, Op::Reset, 0, &[]);
        machine.take_in();
        machine.inbox.clear();
    }
}

#[test]
fn a_reset_of_the_guest_ends_the_host_socket() {
    let mut machine = Machine::new();
    let (mut client, mut stream) = machine.pair(1 << 16);
    stream.send(&mut machine, Op::Reset, 0, &[]);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    machine.assert_silent();
}

fn assert_same(got: &[u8], sent: &[u8]) {
    let differs = got.iter().zip(sent).position(|(got, sent)| got != sent);
    assert_eq!(differs, None);
    assert_eq!(got.len(), sent.len());
}

/// Sends everything the device gives credit for while the host does not read: what was sent.
fn fill_up(machine: &mut Machine, stream: &mut GuestStream) -> Vec<u8> {
    let data = noise(1, 4 << 20);
    let mut sent = 0;
    loop {
        machine.take_in();
        while machine.inbox.get(&stream.ports).is_some_and(|inbox| !inbox.is_empty()) {
            stream.expect(machine, Op::CreditUpdate);
        }
        let count = stream.credit().min(50_000);
        if count == 0 {
            return data[..sent].to_vec();
        }
        stream.send(machine, Op::ReadWrite, 0, &data[sent..sent + count]);
        sent += count;
    }
}

#[test]
fn a_host_that_does_not_read_stops_the_guest_and_loses_nothing() {
    let mut machine = Machine::new();
    let (mut client, mut stream) = machine.pair(1 << 16);
    let mut other = machine.pair(1 << 16);
    let data = fill_up(&mut machine, &mut stream);

    // Neighbours go on.
    other.1.send(&mut machine, Op::ReadWrite, 0, b"hello");
    let mut hello = [0; 5];
    other.0.read_exact(&mut hello).unwrap();

    let mut got = vec![0; data.len() - 1000];
    client.read_exact(&mut got).unwrap();
    stream.expect(&mut machine, Op::CreditUpdate);
    assert!(stream.credit() > 0);
    stream.send(&mut machine, Op::ReadWrite, 0, b"the end");
    stream.send(&mut machine, Op::Shutdown, BOTH, &[]);
    client.read_to_end(&mut got).unwrap();
    assert_same(&got[..data.len()], &data);
    assert_eq!(&got[data.len()..], b"the end");
    stream.expect(&mut machine, Op::Reset);
}

#[test]
fn data_before_a_reset_of_the_guest_is_still_delivered() {
    let mut machine = Machine::new();
    let (mut client, mut stream) = machine.pair(1 << 16);
    let data = fill_up(&mut machine, &mut stream);
    stream.send(&mut machine, Op::Shutdown, BOTH, &[]);
    stream.send(&mut machine, Op::Reset, 0, &[]);
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert_same(&got, &data);
    machine.assert_silent();
}

#[test]
fn a_host_that_closes_with_data_unread_ends_the_stream() {
    let mut machine = Machine::new();
    let (client, mut stream) = machine.pair(1 << 16);
    fill_up(&mut machine, &mut stream);
    drop(client);
    loop {
        let (header, _) = stream.receive(&mut machine);
        if header.op == Op::Reset.number() || header.flags == BOTH {
            break;
        }
    }
}

#[test]
fn reset_drops_every_connection_and_clients_wait_for_the_next_driver() {
    let mut machine = Machine::new();
    let (mut client, _) = machine.pair(1 << 16);
    let mut half = machine.client();
    half.write_all(b"CONN").unwrap();
    machine.guest.drain();
    machine.device.reset();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    // Closed with data unread.
    assert!(!matches!(half.read(&mut [0]), Ok(1..)));

    let mut early = machine.client();
    early.write_all(b"CONNECT 52\n").unwrap();
    // Without VIRTIO_RING_F_EVENT_IDX this time.
    machine.driver = machine.guest.try_activate(&mut machine.device, 1 << 32).unwrap();
    machine.rx_buffers.clear();
    machine.post_rx(8);
    let mut stream = machine.accept(1 << 16);
    assert_eq!(read_line(&mut early), format!("OK {}\n", stream.ports.host));
    early.write_all(b"hello").unwrap();
    assert_eq!(stream.read(&mut machine, 5), b"hello");
}

#[test]
fn many_clients_share_the_device() {
    let mut machine = Machine::new();
    let mut pairs: Vec<_> = (0..200).map(|_| machine.pair(1000)).collect();
    for (n, (client, _)) in pairs.iter_mut().enumerate() {
        client.write_all(&noise(n as u64, 500)).unwrap();
    }
    for (n, (_, stream)) in pairs.iter_mut().enumerate() {
        assert_eq!(stream.read(&mut machine, 500), noise(n as u64, 500));
    }
}
