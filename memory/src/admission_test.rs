use super::*;

const NONE: ByteSize = ByteSize::bytes(0);

struct Host(ByteSize);

impl HostMemory for Host {
    fn available(&self, _: Backing) -> io::Result<ByteSize> {
        Ok(self.0)
    }
}

fn charges(limit: Option<ByteSize>, host: ByteSize) -> (Arc<Admission>, Charge, Charge) {
    let admission = Admission::new(limit, Host(host));
    let charge = |number| Charge::new(admission.clone(), PartitionId::new(number).unwrap(), Backing::Thp);
    let (one, two) = (charge(1), charge(2));
    (admission, one, two)
}

#[test]
fn partitions_share_the_limit_of_their_vm() {
    let (admission, mut one, mut two) = charges(Some(ByteSize::gib(3)), ByteSize::gib(100));
    one.admit(ByteSize::gib(2), NONE).unwrap();
    let error = two.admit(ByteSize::gib(2), NONE).unwrap_err().to_string();
    assert_eq!(
        error,
        "partition 2 cannot grow to 2 GiB: with 2 GiB in other partitions that is beyond the VM's limit of 3 GiB for all of them"
    );
    assert_eq!(admission.admitted(), ByteSize::gib(2), "nothing changed");
    one.admit(ByteSize::gib(3), NONE).unwrap();
    one.lower(ByteSize::gib(1));
    one.lower(ByteSize::gib(2));
    assert_eq!(admission.admitted(), ByteSize::gib(1), "it does not grow");
    two.admit(ByteSize::gib(2), NONE).unwrap();
    drop(one);
    assert_eq!(admission.admitted(), ByteSize::gib(2));
}

#[test]
fn only_what_is_added_has_to_be_available() {
    let (_, mut one, _) = charges(None, ByteSize::gib(1));
    one.admit(ByteSize::gib(1), NONE).unwrap();
    one.admit(ByteSize::gib(2), NONE).unwrap();
    let error = one.admit(ByteSize::gib(4), NONE).unwrap_err().to_string();
    assert_eq!(error, "partition 1 cannot grow to 4 GiB: it needs 2 GiB more and the host has 1 GiB available");
    one.admit(ByteSize::gib(2), ByteSize::gib(1)).unwrap();
    let error = one.admit(ByteSize::gib(2), ByteSize::mib(1025)).unwrap_err().to_string();
    assert_eq!(error, "partition 1 cannot grow to 2 GiB: it needs 1025 MiB more and the host has 1 GiB available");
}
