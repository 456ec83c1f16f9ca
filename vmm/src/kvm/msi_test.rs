use std::os::fd::AsRawFd;

use super::*;

/// Records calls, and refuses to assign some GSIs.
#[derive(Default)]
struct Recorder {
    calls: Mutex<Vec<String>>,
    refused: Mutex<Vec<u32>>,
}

impl Recorder {
    fn note(&self, what: String) -> io::Result<()> {
        self.calls.lock().push(what);
        Ok(())
    }
}

impl Routes for Recorder {
    fn set(&self, messages: &[(u32, MsiMessage)]) -> io::Result<()> {
        let list: Vec<_> = messages.iter().map(|(gsi, message)| format!("{gsi}={:x}", message.data)).collect();
        self.note(format!("set {}", list.join(" ")))
    }

    fn assign(&self, _: &EventFd, gsi: u32) -> io::Result<()> {
        if self.refused.lock().contains(&gsi) {
            return Err(io::Error::other(format!("no GSI {gsi}")));
        }
        self.note(format!("assign {gsi}"))
    }

    fn deassign(&self, _: &EventFd, gsi: u32) -> io::Result<()> {
        self.note(format!("deassign {gsi}"))
    }
}

fn table() -> Arc<Table<Recorder>> {
    Arc::new(Table::new(Recorder::default(), 4096))
}

fn calls(table: &Table<Recorder>) -> Vec<String> {
    std::mem::take(&mut table.routes.calls.lock())
}

fn message(data: u32) -> Option<MsiMessage> {
    Some(MsiMessage { address: 0xfee0_0000, data })
}

fn sent(vector: &Vector<Recorder>) -> u64 {
    vector.shared.fd.read().unwrap_or(0)
}

#[test]
fn kvm_gets_all_recorded_routes_when_the_first_is_used() {
    let table = table();
    let vectors = table.allocate(3).unwrap();
    for (vector, data) in vectors.iter().zip(0x20..) {
        vector.route(message(data)).unwrap();
    }
    assert!(calls(&table).is_empty());
    vectors[1].trigger().unwrap();
    assert_eq!(calls(&table), ["set 24=20 25=21 26=22", "assign 24", "assign 25", "assign 26"]);
    vectors[0].trigger().unwrap();
    vectors[1].trigger().unwrap();
    assert!(calls(&table).is_empty());
    assert_eq!([sent(&vectors[0]), sent(&vectors[1]), sent(&vectors[2])], [1, 2, 0]);
}

#[test]
fn a_masked_vector_sends_nothing_and_unmasking_costs_nothing() {
    let table = table();
    let vector = table.allocate(1).unwrap().remove(0);
    vector.trigger().unwrap();
    vector.route(message(0x30)).unwrap();
    vector.trigger().unwrap();
    assert_eq!((calls(&table).len(), sent(&vector)), (2, 1));
    vector.route(None).unwrap();
    vector.trigger().unwrap();
    assert_eq!(sent(&vector), 0);
    vector.route(message(0x30)).unwrap();
    vector.trigger().unwrap();
    assert_eq!((calls(&table).len(), sent(&vector)), (0, 1));
    vector.route(message(0x31)).unwrap();
    vector.trigger().unwrap();
    assert_eq!(calls(&table), ["set 24=31"]);
}

#[test]
fn a_route_that_changed_under_a_masked_neighbour_is_known_when_that_is_unmasked() {
    let table = table();
    let vectors = table.allocate(2).unwrap();
    vectors[0].route(message(0x40)).unwrap();
    vectors[0].route(None).unwrap();
    vectors[1].route(message(0x41)).unwrap();
    vectors[1].trigger().unwrap();
    assert_eq!(calls(&table), ["set 24=40 25=41", "assign 25"]);
    vectors[0].route(message(0x40)).unwrap();
    vectors[0].trigger().unwrap();
    assert_eq!(calls(&table), ["assign 24"]);
    assert_eq!(sent(&vectors[0]), 1);
}

#[test]
fn a_vector_that_cannot_be_assigned_harms_no_other() {
    let table = table();
    let vectors = table.allocate(3).unwrap();
    for (vector, data) in vectors.iter().zip(0x60..) {
        vector.route(message(data)).unwrap();
    }
    table.routes.refused.lock().push(25);
    vectors[0].trigger().unwrap();
    vectors[2].trigger().unwrap();
    assert_eq!(calls(&table), ["set 24=60 25=61 26=62", "assign 24", "assign 26"]);
    assert!(vectors[1].trigger().unwrap_err().to_string().contains("no GSI 25"));
    table.routes.refused.lock().clear();
    vectors[1].trigger().unwrap();
    assert_eq!(calls(&table), ["assign 25"]);
    assert_eq!([sent(&vectors[0]), sent(&vectors[1]), sent(&vectors[2])], [1, 1, 1]);
}

#[test]
fn children_of_the_process_get_no_vector() {
    for vector in table().allocate(2).unwrap() {
        // SAFETY: only asks for the flags of an open descriptor.
        let flags = unsafe { libc::fcntl(vector.shared.fd.as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags, libc::FD_CLOEXEC);
    }
}

#[test]
fn numbers_come_back_and_run_out() {
    let table = Arc::new(Table::new(Recorder::default(), 26));
    let vectors = table.allocate(2).unwrap();
    assert!(table.allocate(1).err().unwrap().to_string().contains("1 MSI vectors requested, 0 left"));
    vectors[0].route(message(0x50)).unwrap();
    vectors[0].trigger().unwrap();
    calls(&table);
    drop(vectors);
    assert_eq!(calls(&table), ["deassign 24"]);
    assert_eq!(table.allocate(2).unwrap().len(), 2);
    let vector = table.allocate(1).unwrap().remove(0);
    vector.route(message(0x51)).unwrap();
    vector.trigger().unwrap();
    assert_eq!(calls(&table).len(), 2, "a number that is used again starts without a route");
}

#[test]
fn an_event_of_others_is_wired_to_a_route_that_kvm_knows() {
    let table = table();
    let vectors = table.allocate(1).unwrap();
    let gsi = vectors[0].gsi;
    let call = EventFd::new(EFD_NONBLOCK).unwrap();
    vectors[0].route(message(0x20)).unwrap();
    vectors[0].wire(&call).unwrap();
    assert_eq!(calls(&table), [format!("set {gsi}=20"), format!("assign {gsi}"), format!("assign {gsi}")]);
    vectors[0].unwire(&call).unwrap();
    vectors[0].route(None).unwrap();
    vectors[0].route(message(0x21)).unwrap();
    assert_eq!(calls(&table), [format!("deassign {gsi}")]);
    vectors[0].wire(&call).unwrap();
    assert_eq!(calls(&table), [format!("set {gsi}=21"), format!("assign {gsi}")]);
    table.routes.refused.lock().push(gsi);
    assert!(vectors[0].wire(&call).is_err());
}
