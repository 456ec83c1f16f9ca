use proptest::prelude::*;

use super::*;

fn room(number: u16, window_mib: u64, ready_mib: u64) -> Room {
    let id = PartitionId::new(number).unwrap();
    Room { id, window: ByteSize::mib(window_mib), ready: ByteSize::mib(ready_mib), plugged: false }
}

fn wanted(memory_mib: u32) -> NewInstance {
    NewInstance { image: "i".into(), memory_mib, ..NewInstance::default() }
}

fn id(text: &str) -> InstanceId {
    text.parse().unwrap()
}

/// The partition that a new instance gets.
fn given(table: &Table, name: &str, wanted: &NewInstance, rooms: &[Room]) -> Result<Option<u16>, Fault> {
    match table.begin(&id(name), wanted, rooms)? {
        Begun::New(entry) => Ok(entry.partition.map(PartitionId::get)),
        Begun::Known(_) => panic!("{name} is known"),
    }
}

#[test]
fn the_cheapest_partition_is_given_out_once() {
    let table = Table::default();
    let rooms = [room(1, 1024, 0), room(2, 512, 0), room(3, 512, 256), room(4, 128, 0)];
    assert_eq!(given(&table, "a", &wanted(256), &rooms), Ok(Some(3)));
    assert_eq!(given(&table, "b", &wanted(256), &rooms), Ok(Some(2)));
    assert_eq!(given(&table, "c", &wanted(256), &rooms), Ok(Some(1)));
    let none = given(&table, "d", &wanted(256), &rooms).unwrap_err();
    assert_eq!((none.status, none.message.contains("256 MiB")), (409, true), "{none}");
    assert_eq!(given(&table, "e", &wanted(0), &rooms), Ok(None));
    table.forget(&table.get(&id("b")).unwrap());
    assert_eq!(given(&table, "d", &wanted(512), &rooms), Ok(Some(2)));
}

#[test]
fn a_partition_in_use_otherwise_is_not_given_out_unless_it_is_named() {
    let table = Table::default();
    let rooms = [Room { plugged: true, ..room(1, 512, 0) }];
    assert_eq!(given(&table, "a", &wanted(256), &rooms).unwrap_err().status, 409);
    let named = NewInstance { partition: Some(1), ..wanted(256) };
    assert_eq!(given(&table, "a", &named, &rooms), Ok(Some(1)));
    let again = given(&table, "b", &named, &rooms).unwrap_err();
    assert!(again.status == 409 && again.message.contains("`a`"), "{again}");
    let none = given(&table, "c", &NewInstance { partition: Some(9), ..wanted(256) }, &rooms).unwrap_err();
    assert_eq!(none.status, 404);
    let empty = given(&table, "c", &NewInstance { partition: Some(1), ..wanted(0) }, &rooms).unwrap_err();
    assert_eq!(empty.status, 400);
}

#[test]
fn the_same_request_is_one_and_another_is_refused() {
    let table = Table::default();
    assert!(matches!(table.begin(&id("a"), &wanted(0), &[]), Ok(Begun::New(_))));
    assert!(matches!(table.begin(&id("a"), &wanted(0), &[]), Ok(Begun::Known(_))));
    assert_eq!(table.begin(&id("a"), &wanted(1), &[]).map(drop).unwrap_err().status, 409);
    table.get(&id("a")).unwrap().status.send_modify(|status| status.removing = true);
    let removing = table.begin(&id("a"), &wanted(0), &[]).map(drop).unwrap_err();
    assert!(removing.message.contains("being removed"), "{removing}");
    assert_eq!(table.get(&id("b")).map(drop).unwrap_err().status, 404);
}

#[test]
fn there_is_a_most_of_instances() {
    let table = Table::default();
    for number in 0..MAX_INSTANCES {
        assert!(table.begin(&id(&format!("i{number}")), &wanted(0), &[]).is_ok());
    }
    assert_eq!(table.begin(&id("more"), &wanted(0), &[]).map(drop).unwrap_err().status, 409);
}

proptest! {
    /// Whatever comes and goes, no two instances have one partition, and nobody is refused while one is free.
    #[test]
    fn partitions_are_never_shared_and_never_lost(
        windows in prop::collection::vec(1..8_u64, 1..6),
        steps in prop::collection::vec((0..8_usize, 1..8_u32, any::<bool>()), 0..60),
    ) {
        let table = Table::default();
        let rooms: Vec<_> = windows.iter().zip(1..).map(|(window, number)| room(number, window * 128, 0)).collect();
        // By the specification: which instance has which partition.
        let mut held: BTreeMap<usize, PartitionId> = BTreeMap::new();
        for (who, size, removes) in steps {
            let name = id(&format!("i{who}"));
            if removes {
                if held.remove(&who).is_some() {
                    table.forget(&table.get(&name).unwrap());
                }
                continue;
            }
            if held.contains_key(&who) {
                continue;
            }
            let fits = |room: &Room| room.window >= ByteSize::mib(u64::from(size) * 128);
            let free = rooms.iter().any(|room| fits(room) && !held.values().any(|id| *id == room.id));
            match table.begin(&name, &wanted(size * 128), &rooms) {
                Ok(Begun::New(entry)) => {
                    let partition = entry.partition.unwrap();
                    prop_assert!(free && !held.values().any(|id| *id == partition));
                    prop_assert!(rooms.iter().any(|room| room.id == partition && fits(room)));
                    held.insert(who, partition);
                }
                Ok(Begun::Known(_)) => prop_assert!(false, "it was not there"),
                Err(_) => prop_assert!(!free),
            }
        }
    }
}
