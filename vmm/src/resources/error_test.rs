use super::*;

#[test]
fn every_error_has_the_right_kind() {
    let id = PartitionId::new(1).unwrap();
    let size = ByteSize::mib(2);
    let io = || io::Error::other("x");
    let no_disk = || HotplugError::NoDisk("s".into());
    let wait = |error| PartitionError::Plug { id, size, source: PlugError::Incomplete(error) };
    let image: ImageId = "i".parse().unwrap();
    let instance: InstanceId = "f".parse().unwrap();
    let lost = || AgentError::Lost { call: "c", message: String::new() };
    let paused = || AgentError::Paused { call: "c" };
    let table = [
        (no_disk().kind(), ErrorKind::NotFound),
        (HotplugError::NotDrive("s".into()).kind(), ErrorKind::Invalid),
        (HotplugError::Control { path: "p".into(), source: io() }.kind(), ErrorKind::Host),
        (HotplugError::NotRunning(NotRunning::Paused).kind(), ErrorKind::Conflict),
        (ImageError::Disks(no_disk()).kind(), ErrorKind::NotFound),
        (ImageError::Exists(image.clone()).kind(), ErrorKind::Conflict),
        (ImageError::Touched { image, source: io() }.kind(), ErrorKind::Host),
        (PartitionError::NoPartition { id, count: 0 }.kind(), ErrorKind::NotFound),
        (PartitionError::HasDevice(id).kind(), ErrorKind::Conflict),
        (wait(WaitError::Superseded(id)).kind(), ErrorKind::Conflict),
        (PartitionError::NotUsable { id, size, source: lost() }.kind(), ErrorKind::Guest),
        (PartitionError::NotUsable { id, size, source: paused() }.kind(), ErrorKind::Conflict),
        (InstanceError::Agent { action: "a", id: instance.clone(), source: lost() }.kind(), ErrorKind::Guest),
        (InstanceError::NoPartition(instance.clone()).kind(), ErrorKind::Invalid),
        (InstanceError::BaseLimit { id: instance, limit: size, memory: size }.kind(), ErrorKind::Invalid),
    ];
    for (row, (found, expected)) in table.into_iter().enumerate() {
        assert_eq!(found, expected, "row {row}");
    }
}
