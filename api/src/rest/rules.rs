//! Which changes are for a VM that has not booted, and which for one that has.

use super::fault::Fault;
use super::request::Change;

/// When a change may come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum When {
    Before,
    After,
    Ever,
}

/// Refuses a change that comes too early or too late.
pub(crate) fn check(change: &Change, has_booted: bool) -> Result<(), Fault> {
    match (when(change), has_booted) {
        (When::Before, true) => Err(Fault::new("the VM has booted: expected this request before `InstanceStart`")),
        (When::After, false) => Err(Fault::new("the VM has not booted: expected this request after `InstanceStart`")),
        (When::Before | When::Ever, false) | (When::After | When::Ever, true) => Ok(()),
    }
}

fn when(change: &Change) -> When {
    match change {
        Change::BootSource(_)
        | Change::Machine(_)
        | Change::UpdateMachine(_)
        | Change::Cpu(_)
        | Change::Partition(..)
        | Change::Vsock(_)
        | Change::MemoryHotplug(_)
        | Change::Mmds(_)
        | Change::Entropy(_)
        | Change::Balloon(_)
        | Change::Serial(_)
        | Change::Logger(_)
        | Change::Metrics(_)
        | Change::Start => When::Before,
        Change::UpdateDrive(_)
        | Change::UpdateNetwork(_)
        | Change::RemoveDrive(_)
        | Change::RemovePmem(_)
        | Change::RemoveNetwork(_)
        | Change::ResizeBalloon(_)
        | Change::ResizeMemory(_)
        | Change::BalloonInterval(_)
        | Change::StartHinting(_)
        | Change::StopHinting
        | Change::FlushMetrics
        | Change::SendCtrlAltDel
        | Change::Pause
        | Change::Resume => When::After,
        // Afterwards, drives, pmem devices and network interfaces are hotplug.
        Change::Drive(_) | Change::Pmem(_) | Change::Network(_) | Change::PutMetadata(_) | Change::PatchMetadata(_) => {
            When::Ever
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rest::request::{Request, parse};

    #[test]
    fn configuration_comes_before_and_control_after() {
        for (method, path, body, before, after) in [
            ("PUT", "/boot-source", r#"{"kernel_image_path": "k"}"#, true, false),
            ("PATCH", "/machine-config", r#"{"vcpu_count": 1}"#, true, false),
            ("PUT", "/cpu-config", "{}", true, false),
            ("PUT", "/balloon", r#"{"amount_mib": 1, "deflate_on_oom": true}"#, true, false),
            ("PUT", "/logger", "{}", true, false),
            ("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#, true, false),
            ("PUT", "/drives/a", r#"{"drive_id": "a", "is_root_device": false}"#, true, true),
            ("PATCH", "/drives/a", r#"{"drive_id": "a"}"#, false, true),
            ("DELETE", "/drives/a", "", false, true),
            ("PUT", "/pmem/a", r#"{"id": "a", "path_on_host": "/a"}"#, true, true),
            ("DELETE", "/pmem/a", "", false, true),
            ("PUT", "/network-interfaces/a", r#"{"iface_id": "a", "host_dev_name": "t"}"#, true, true),
            ("DELETE", "/network-interfaces/a", "", false, true),
            ("PATCH", "/network-interfaces/a", r#"{"iface_id": "a"}"#, false, true),
            ("PUT", "/hotplug/memory", r#"{"total_size_mib": 128}"#, true, false),
            ("PATCH", "/hotplug/memory", r#"{"requested_size_mib": 0}"#, false, true),
            ("PUT", "/mmds/config", r#"{"network_interfaces": ["a"]}"#, true, false),
            ("PUT", "/mmds", "{}", true, true),
            ("PATCH", "/mmds", "{}", true, true),
            ("PATCH", "/balloon", r#"{"amount_mib": 1}"#, false, true),
            ("PATCH", "/vm", r#"{"state": "Paused"}"#, false, true),
            ("PUT", "/actions", r#"{"action_type": "FlushMetrics"}"#, false, true),
            ("PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#, false, true),
        ] {
            let Request::Change(change) = parse(method, path, body.as_bytes()).unwrap() else { panic!("{path}") };
            let found = [false, true].map(|has_booted| check(&change, has_booted).is_ok());
            assert_eq!(found, [before, after], "{method} {path}");
        }
    }
}
