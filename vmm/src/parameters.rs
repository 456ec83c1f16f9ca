//! The kernel parameters that every guest gets.

use crate::arch;
use crate::command_line::{CommandLine, CommandLineError};
use crate::config::{PartitionMode, SerialOutput, VmConfig};

/// A partition holds only movable memory.
const ONLINE_MOVABLE: (&str, &str) = ("memhp_default_state", "online_movable");

/// Name and value.
const ALWAYS: &[(&str, &str)] = &[
    // A panic ends the VM at once.
    ("panic", "-1"),
    // A hot-pluggable window above 4 GiB would otherwise cost 64 MiB of base memory for bounce buffers.
    ("swiotlb", "noforce"),
    ONLINE_MOVABLE,
    ("random.trust_cpu", "on"),
];

/// The command line of a guest built from `config`; the caller's own parameters come last, so that they win.
pub(crate) fn command_line(config: &VmConfig) -> Result<CommandLine, CommandLineError> {
    let mut line = CommandLine::new();
    match &config.command_line {
        None => add_own(&mut line, config)?,
        Some(text) => {
            if config.memory_devices() > 0 {
                let (name, value) = ONLINE_MOVABLE;
                line.set(name, value)?;
            }
            add_for_memory(&mut line, config)?;
            line.text(text)?;
        }
    }
    for parameter in &config.extra_command_line {
        line.text(parameter)?;
    }
    Ok(line)
}

/// What a guest gets unless the caller has a line of its own.
fn add_own(line: &mut CommandLine, config: &VmConfig) -> Result<(), CommandLineError> {
    for (name, value) in ALWAYS.iter().chain(arch::PARAMETERS) {
        line.set(name, value)?;
    }
    for flag in arch::FLAGS {
        line.flag(flag)?;
    }
    match config.serial {
        SerialOutput::Off => line.flag("quiet")?,
        SerialOutput::Stdout | SerialOutput::File(_) => line.set("console", arch::CONSOLE)?,
    };
    add_for_memory(line, config)
}

/// What devices for memory need.
fn add_for_memory(line: &mut CommandLine, config: &VmConfig) -> Result<(), CommandLineError> {
    if config.partition_mode == PartitionMode::Extension
        && (config.command_line.is_none() || config.memory_devices() > 0)
    {
        // Kernels that do not know it log that and go on.
        line.set("virtio_mem.private_nodes", "1")?;
        if let Some(after) = config.removes_parked_after() {
            line.set("virtio_mem.remove_parked_secs", &after.as_secs().to_string())?;
        }
    }
    if config.elastic_base.is_some_and(|elastic| !elastic.by_request) {
        // It follows how long instances wait for memory.
        line.set("psi", "1")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bellows_memory::ByteSize;

    use super::*;
    use crate::config::ElasticBaseConfig;

    fn rendered(config: &VmConfig) -> String {
        command_line(config).unwrap().render(2047).unwrap()
    }

    #[test]
    fn a_console_only_where_there_is_a_serial_port() {
        let mut config = VmConfig::new("vmlinux", ByteSize::mib(128));
        config.extra_command_line = vec!["init_on_alloc=0".into()];
        let silent = rendered(&config);
        assert!(silent.contains("swiotlb=noforce") && silent.contains("quiet"), "{silent}");
        assert!(!silent.contains("console="), "{silent}");
        assert!(silent.ends_with(" init_on_alloc=0"), "{silent}");

        config.serial = SerialOutput::Stdout;
        let talking = rendered(&config);
        assert!(talking.contains("swiotlb=noforce") && talking.contains("console=ttyS0"), "{talking}");
        assert!(!talking.contains("quiet"), "{talking}");
    }

    #[test]
    fn a_line_of_the_callers_replaces_the_monitors() {
        let mut config = VmConfig::new("vmlinux", ByteSize::mib(128));
        config.command_line = Some("console=ttyS0 reboot=k -- one".into());
        config.extra_command_line = vec!["root=/dev/vda".into()];
        assert_eq!(rendered(&config), "console=ttyS0 reboot=k root=/dev/vda -- one");
        // What a device for memory needs comes first, so that the caller's parameters win.
        config.partitions = vec![ByteSize::mib(128)];
        assert_eq!(
            rendered(&config),
            "memhp_default_state=online_movable virtio_mem.private_nodes=1 virtio_mem.remove_parked_secs=600 \
             console=ttyS0 reboot=k root=/dev/vda -- one"
        );
    }

    #[test]
    fn the_extension_can_be_turned_off() {
        let mut config = VmConfig::new("vmlinux", ByteSize::mib(128));
        assert!(rendered(&config).contains("virtio_mem.private_nodes=1"));
        config.partition_mode = PartitionMode::Stock;
        assert!(!rendered(&config).contains("private_nodes"));
    }

    #[test]
    fn what_is_prepared_is_not_removed() {
        let mut config = VmConfig::new("vmlinux", ByteSize::mib(128));
        assert!(rendered(&config).contains("virtio_mem.remove_parked_secs=600"));
        config.remove_parked_after_s = 7;
        assert!(rendered(&config).contains("virtio_mem.remove_parked_secs=7"));
        let changes: [fn(&mut VmConfig); 3] = [
            |config| config.remove_parked_after_s = 0,
            |config| config.prepare = ByteSize::mib(2),
            |config| config.partition_mode = PartitionMode::Stock,
        ];
        for change in changes {
            let mut config = config.clone();
            change(&mut config);
            assert!(!rendered(&config).contains("remove_parked"), "{config:?}");
        }
    }

    #[test]
    fn pressure_is_measured_where_base_memory_follows_it() {
        let mut config = VmConfig::new("vmlinux", ByteSize::mib(128));
        assert!(!rendered(&config).contains("psi"));
        config.elastic_base = Some(ElasticBaseConfig::new(ByteSize::mib(256)));
        assert!(rendered(&config).contains("psi=1"));
        let by_request = ElasticBaseConfig { by_request: true, ..ElasticBaseConfig::new(ByteSize::mib(256)) };
        config.elastic_base = Some(by_request);
        assert!(!rendered(&config).contains("psi"));
    }

    #[test]
    fn a_parameter_that_cannot_be_on_a_command_line_is_refused() {
        let mut config = VmConfig::new("vmlinux", ByteSize::mib(128));
        config.extra_command_line = vec!["x=\"".into()];
        assert!(command_line(&config).is_err());
    }
}
