use bellows_block::Digest;

use super::*;

fn sane() -> VmConfig {
    let mut config = VmConfig::new("vmlinux", ByteSize::mib(512));
    config.initramfs = Some("initramfs.cpio".into());
    config.partitions = vec![ByteSize::gib(1), ByteSize::mib(128)];
    config.prepare = ByteSize::mib(512);
    config.images = vec![image("first", 0..3)];
    config.drives = vec![drive("data.img")];
    config.balloon = Some(BalloonConfig { amount_mib: 64, free_page_reporting: true, ..BalloonConfig::default() });
    config
}

fn image(id: &str, layers: std::ops::Range<u32>) -> ImageConfig {
    let layer = |number| {
        let path = format!("layer{number}.erofs");
        LayerConfig { digest: Digest::of(path.as_bytes()), path: path.into(), bytes: 4096 }
    };
    ImageConfig::new(id.parse().unwrap(), layers.map(layer))
}

fn drive(path: &str) -> DriveConfig {
    DriveConfig::new(path, false)
}

#[test]
fn a_sane_configuration_passes_and_survives_json() {
    let config = sane();
    config.validate().unwrap();
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<VmConfig>(&json).unwrap(), config);
}

#[test]
fn omitted_fields_have_defaults() {
    let config: VmConfig = serde_json::from_str(r#"{"kernel": "k", "memory": 536870912}"#).unwrap();
    assert_eq!(config, VmConfig::new("k", ByteSize::mib(512)));
    assert_eq!(config.backing, Backing::Thp);
    assert_eq!(config.partition_mode, PartitionMode::Extension);
    assert_eq!(config.vsock.cid, 3);
}

#[test]
fn a_balloon_has_firecrackers_names_and_defaults_for_all() {
    let parse = |json: &str| serde_json::from_str::<BalloonConfig>(json).unwrap();
    assert_eq!(parse("{}"), BalloonConfig::default());
    let json = r#"{"amount_mib":64,"deflate_on_oom":true,"stats_polling_interval_s":5,"free_page_hinting":true,"free_page_reporting":true}"#;
    assert_eq!(serde_json::to_string(&parse(json)).unwrap(), json);
    let error = serde_json::from_str::<BalloonConfig>(r#"{"amount": 64}"#).unwrap_err().to_string();
    assert!(error.contains("`amount`"), "{error}");
}

#[test]
fn the_memory_limit_counts_base_memory() {
    let mut config = sane();
    assert_eq!(config.partition_limit(), None);
    config.memory_limit = Some(ByteSize::mib(512));
    config.validate().unwrap();
    assert_eq!(config.partition_limit(), Some(ByteSize::bytes(0)));
    config.memory_limit = Some(ByteSize::gib(1));
    assert_eq!(config.partition_limit(), Some(ByteSize::mib(512)));
    config.memory_limit = Some(ByteSize::mib(510));
    let error = config.validate().unwrap_err().to_string();
    for part in ["memory_limit", "510 MiB", "at least the 512 MiB of `memory`"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn memory_maps_of_prepared_partitions_leave_half_of_base_memory() {
    let mut config = sane();
    config.prepare = ByteSize::gib(2);
    config.partitions = vec![ByteSize::gib(4); 8];
    config.validate().unwrap();
    config.partitions.push(ByteSize::mib(2));
    let error = config.validate().unwrap_err().to_string();
    let expected = "`prepare` is 2 GiB of 9 partitions, whose memory maps take 258 MiB: expected memory maps of at most 256 MiB, \
                    half of `memory`";
    assert_eq!(error, expected, "a memory block for 2 MiB");
    config.memory = ByteSize::mib(516);
    config.validate().unwrap();
    config.partitions = vec![ByteSize::gib(7 << 10); 2];
    config.prepare = ByteSize::bytes(u64::MAX / BLOCK.get() * BLOCK.get());
    assert_eq!(config.validate().unwrap_err().field, "prepare");
    config.prepare = ByteSize::bytes(0);
    config.validate().unwrap();
}

#[test]
fn partition_modes_have_one_name_everywhere() {
    for mode in [PartitionMode::Stock, PartitionMode::Extension] {
        assert_eq!(mode.to_string().parse(), Ok(mode));
        assert_eq!(serde_json::to_value(mode).unwrap(), mode.to_string());
    }
    let error = "strict".parse::<PartitionMode>().unwrap_err();
    assert!(error.to_string().contains("\"strict\""), "{error}");
}

#[test]
fn an_error_names_json_that_is_not_understood() {
    for (json, named) in [
        (r#"{"kernel": "k", "memory": "1G", "partition_mode": "strict"}"#, "strict"),
        (r#"{"kernel": "k", "memory": "1G", "vcpu": 2}"#, "vcpu"),
        (r#"{"kernel": "k", "memory": "1Q"}"#, "1Q"),
        (r#"{"kernel": "k", "memory": -1}"#, "a size"),
        (r#"{"kernel": "k"}"#, "memory"),
        (r#"{"kernel": "k", "memory": "1G", "vcpus": 300}"#, "300"),
        (r#"{"kernel": "k", "memory": "1G", "backing": "gold"}"#, "gold"),
        (r#"{"kernel": "k", "memory": "1G", "serial": {"tape": "x"}}"#, "tape"),
        (r#"{"kernel": "k", "memory": "1G", "vsock": {"cid": 3, "udspath": "x"}}"#, "udspath"),
        (
            r#"{"kernel": "k", "memory": "1G", "images": [{"id": "i", "layers": [{"path": "l", "digest": "md5:0", "bytes": 1}]}]}"#,
            "md5:0",
        ),
        (r#"{"kernel": "k", "memory": "1G", "drives": [{"path": "l", "readonly": true}]}"#, "readonly"),
    ] {
        let message = serde_json::from_str::<VmConfig>(json).unwrap_err().to_string();
        assert!(message.contains(named), "{json}: {message}");
    }
}

#[test]
fn an_error_names_a_bad_value_and_its_field() {
    type Change = fn(&mut VmConfig);
    let table: &[(Change, &str, &str)] = &[
        (|c| c.kernel = "".into(), "kernel", "empty"),
        (|c| c.kernel = "a\0b".into(), "kernel", "a\0b"),
        (|c| c.initramfs = Some("".into()), "initramfs", "empty"),
        (|c| c.vcpus = 0, "vcpus", "0"),
        (|c| c.vcpus = 33, "vcpus", "33"),
        (|c| c.memory = ByteSize::bytes(0), "memory", "0 bytes"),
        (|c| c.memory = ByteSize::mib(30), "memory", "30 MiB"),
        (|c| c.memory = ByteSize::mib(33), "memory", "33 MiB"),
        (|c| c.memory = ByteSize::bytes(u64::MAX), "memory", "18446744073709551615"),
        (|c| c.memory = ByteSize::gib(1 << 20), "memory", "1024 TiB"),
        (|c| c.balloon.as_mut().unwrap().amount_mib = 513, "balloon.amount_mib", "513"),
        (|c| c.balloon.as_mut().unwrap().amount_mib = u32::MAX, "balloon.amount_mib", "4294967295"),
        (|c| c.backing = Backing::Hugetlbfs, "balloon", "set"),
        (|c| c.partitions[1] = ByteSize::bytes(0), "partitions[1]", "0 bytes"),
        (|c| c.partitions[1] = ByteSize::mib(129), "partitions[1]", "129 MiB"),
        (|c| c.memory = ByteSize::gib(8 << 10), "memory", "8 TiB"),
        (|c| c.partitions[0] = ByteSize::gib(8 << 10), "partitions[0]", "8 TiB"),
        (|c| c.partitions = vec![ByteSize::gib(7 << 10); 5], "partitions", "together"),
        (|c| c.partitions = vec![ByteSize::mib(128); 256], "partitions", "256 entries"),
        (|c| c.prepare = ByteSize::mib(3), "prepare", "3 MiB"),
        (|c| c.remove_parked_after_s = u32::MAX, "remove_parked_after_s", "4294967295"),
        (|c| (c.balloon, c.backing) = (None, Backing::Hugetlbfs), "prepare", "512 MiB"),
        (|c| c.extra_command_line = vec!["a b".into()], "extra_command_line[0]", "a b"),
        (|c| c.extra_command_line = vec!["x".into(), "".into()], "extra_command_line[1]", "\"\""),
        (|c| c.extra_command_line = vec!["x".repeat(1600)], "extra_command_line", "1601 bytes"),
        (|c| c.images.push(image("first", 1..2)), "images[1].id", "first"),
        (|c| c.images[0].layers[1].path = "".into(), "images[0].layers[1].path", "empty"),
        (|c| c.drives[0].path = "layer0.erofs".into(), "drives[0].path", "layer0.erofs"),
        (|c| c.drives.push(drive("data.img")), "drives[1].path", "data.img"),
        (|c| c.drives[0].path = "vmlinux".into(), "drives[0].path", "vmlinux"),
        (|c| c.images.extend([image("second", 0..100), image("third", 0..100)]), "images", "204 disks"),
        (|c| c.serial = SerialOutput::File("data.img".into()), "serial", "data.img"),
        (|c| c.serial = SerialOutput::File("".into()), "serial", "empty"),
        (|c| c.vsock.cid = 2, "vsock.cid", "2"),
        (|c| c.vsock.cid = u32::MAX, "vsock.cid", "4294967295"),
        (|c| c.vsock.uds_path = Some("x".repeat(97).into()), "vsock.uds_path", "97 bytes"),
        (|c| c.vsock.uds_path = Some("data.img".into()), "vsock.uds_path", "data.img"),
    ];
    for (index, (change, field, value)) in table.iter().enumerate() {
        let mut config = sane();
        change(&mut config);
        let error = config.validate().expect_err(&format!("row {index} ({field})"));
        assert_eq!(error.field, *field, "row {index}: {error}");
        assert!(error.value.contains(value), "row {index}: {error}");
        assert!(error.to_string().contains("expected"), "row {index}: {error}");
    }
}

#[test]
fn devices_need_interrupt_vectors_of_the_vcpus() {
    let mut config = VmConfig::new("vmlinux", ByteSize::mib(512));
    let drives = |count: usize| (0..count).map(|number| drive(&format!("disk{number}"))).collect();
    config.drives = drives(92);
    config.validate().unwrap();
    config.drives = drives(93);
    let error = config.validate().unwrap_err().to_string();
    assert_eq!(
        error,
        "`vcpus` is 1 with 93 disks and 0 partitions: expected at least 2 for 192 interrupt vectors, 190 on each"
    );
    config.vcpus = 2;
    config.validate().unwrap();
    config.partitions = vec![ByteSize::mib(128); 255];
    let error = config.validate().unwrap_err().to_string();
    assert!(error.contains("2 with 93 disks and 255 partitions") && error.contains("at least 4"), "{error}");
    config.vcpus = 4;
    config.validate().unwrap();
    config.partitions.clear();
    (config.vcpus, config.drives) = (1, drives(90));
    config.balloon = Some(BalloonConfig::default());
    config.validate().unwrap();
    config.balloon = Some(BalloonConfig { free_page_reporting: true, ..BalloonConfig::default() });
    let error = config.validate().unwrap_err().to_string();
    assert!(error.contains("at least 2 for 192 interrupt vectors"), "{error}");
}
