use std::io;
use std::path::Path;

use bellows_block::Digest;
use bellows_memory::ByteSize;
use bellows_vmm::{InstanceNetwork, PartitionId, PartitionMode, Stdio};

use super::*;
use crate::cli::{Cli, Command};
use crate::places::tests::named;

fn args(line: &str) -> RunArgs {
    let words = ["bellows", "run"].into_iter().chain(line.split_whitespace());
    match Cli::read(words.map(Into::into).collect()).unwrap().command {
        Command::Run(args) => *args,
        other => panic!("{other:?}"),
    }
}

/// The configuration and the function that a command line gives.
fn planned(line: &str) -> Result<(VmConfig, Option<Function>), CliError> {
    let args = args(line);
    check(&args)?;
    let mut config = configuration(&args, &named("k", "i"))?;
    let function = prepare(&args, &mut config, &Interrupts::default())?;
    config.validate().map_err(|error| as_given(&args, error))?;
    Ok((config, function))
}

/// A file that can be a layer.
fn layer(directory: &Path) -> String {
    let layer = directory.join("layer.erofs");
    std::fs::write(&layer, [0; 4096]).unwrap();
    layer.display().to_string()
}

#[test]
fn an_image_is_enough() {
    let directory = tempfile::tempdir().unwrap();
    let (config, function) = planned(&format!("--layer {} scratch sh", layer(directory.path()))).unwrap();
    assert_eq!((config.kernel.as_path(), config.initramfs.as_deref()), (Path::new("k"), Some(Path::new("i"))));
    assert_eq!((config.memory, &config.partitions[..]), (ByteSize::mib(256), &[ByteSize::gib(1)][..]));
    let function = function.unwrap();
    assert_eq!((function.memory, function.spec.partition), (ByteSize::gib(1), PartitionId::new(1)));
}

#[test]
fn the_former_command_line_is_refused_with_the_new_one() {
    for line in
        ["--memory 512M --partition 1G --image busybox -- sh", "--memory 512M --image busybox", "--layer l -- sh"]
    {
        let error = planned(line).map(drop).unwrap_err();
        for word in ["IMAGE [CMD]", "--memory", "--base", "scratch"] {
            assert!(error.chain().contains(word), "{line}: {}", error.chain());
        }
        assert_eq!([true, false].map(|run| error.failure().exit_code(run)), [125, 2]);
    }
}

/// Only a configuration gives the VM interfaces.
#[test]
fn the_vms_network_is_there_before_it_is_shared() {
    let directory = tempfile::tempdir().unwrap();
    let line = |options: &str| format!("{options} --layer {} scratch sh", layer(directory.path()));
    let network = |options: &str| planned(&line(options)).map(|(_, function)| function.unwrap().spec.network);
    assert_eq!(network("").unwrap(), InstanceNetwork::None);
    assert_eq!(network("--network none").unwrap(), InstanceNetwork::None);
    let error = network("--network vm").unwrap_err();
    assert!(error.chain().contains("network_interfaces"), "{}", error.chain());
    let config = directory.path().join("vm.json");
    let text =
        r#"{ "kernel": "k", "memory": "256M", "network_interfaces": [{ "id": "eth0", "tap": { "name": "tap0" } }] }"#;
    std::fs::write(&config, text).unwrap();
    let options = format!("--config {} --network vm", config.display());
    assert_eq!(network(&options).unwrap(), InstanceNetwork::Vm);
}

/// A configuration's partition may be larger than the instance.
#[test]
fn memory_is_the_instances_and_base_the_vms() {
    let directory = tempfile::tempdir().unwrap();
    let layer = layer(directory.path());
    let path = directory.path().join("vm.json");
    std::fs::write(&path, r#"{"kernel": "k", "memory": "384M", "partitions": ["2G", "1G"]}"#).unwrap();
    let file = format!("--config {}", path.display());
    for (line, base, windows, memory) in [
        ("--memory 512M --base 128M", "128M", &["512M"] as &[&str], "512M"),
        ("-m 511M", "256M", &["512M"], "512M"),
        (&file, "384M", &["2G", "1G"], "2G"),
        (&format!("{file} --memory 511M --base 512M"), "512M", &["2G", "1G"], "512M"),
    ] {
        let (config, function) = planned(&format!("{line} --layer {layer} scratch sh")).unwrap();
        let size = |text: &str| text.parse::<ByteSize>().unwrap();
        assert_eq!((config.memory, function.unwrap().memory), (size(base), size(memory)), "{line}");
        assert_eq!(config.partitions, windows.iter().map(|window| size(window)).collect::<Vec<_>>(), "{line}");
    }
    let (config, function) = planned(&format!("{file} --memory 0 --layer {layer} scratch sh")).unwrap();
    assert_eq!((config.partitions.len(), function.unwrap().spec.partition), (2, None));
    let (config, function) = planned(&format!("--memory 0 --layer {layer} scratch sh")).unwrap();
    assert_eq!((config.partitions.len(), function.unwrap().spec.partition), (0, None));
    let error = planned(&format!("{file} --memory 3G --layer {layer} scratch sh")).map(drop).unwrap_err();
    assert!(error.chain().contains("--memory is 3 GiB: expected at most 2 GiB"), "{}", error.chain());
}

#[test]
fn an_image_of_the_configuration_is_known_by_its_id() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.json");
    let digest = Digest::of(b"x");
    let image =
        |id: &str| serde_json::json!({ "id": id, "layers": [{ "path": "l", "digest": digest, "bytes": 4096 }] });
    let config = serde_json::json!({ "kernel": "k", "memory": "256M", "images": [image("one"), image("two")] });
    std::fs::write(&path, config.to_string()).unwrap();
    let (config, function) = planned(&format!("--config {} two sh", path.display())).unwrap();
    assert_eq!((config.images.len(), function.unwrap().spec.image.as_str()), (2, "two"));
}

#[test]
fn arguments_win_over_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.json");
    std::fs::write(
        &path,
        r#"{"kernel": "k", "memory": "256M", "vcpus": 3, "partitions": ["1G"], "partition_mode": "extension"}"#,
    )
    .unwrap();
    let line = format!("--config {} --base 1G --kernel-parameter a=b --partition-mode stock", path.display());
    let config = configuration(&args(&line), &named("other", "i")).unwrap();
    assert_eq!((config.kernel.as_path(), config.vcpus), (Path::new("k"), 3));
    assert_eq!(config.memory, ByteSize::gib(1));
    assert_eq!(config.partitions, [ByteSize::gib(1)]);
    assert_eq!(config.extra_command_line, ["a=b"]);
    assert_eq!(config.partition_mode, PartitionMode::Stock);
}

#[test]
fn errors_name_bad_input() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let unknown = file("unknown.json", r#"{"kernel": "k", "memory": "1G", "colour": "red"}"#);
    let broken = file("broken.json", "{ }");
    let zero = file("zero.json", r#"{"kernel": "k", "memory": 0}"#);
    let store = format!("--store {}", directory.path().join("store").display());
    let digest = Digest::of(b"x");
    for (line, named) in [
        ("".to_owned(), "IMAGE"),
        ("--memory 512M".to_owned(), "--base"),
        ("--kernel k --layer l".to_owned(), "scratch"),
        ("--kernel k --base 0".to_owned(), "`--base` is 0 bytes"),
        ("--kernel k --base 16M".to_owned(), "`--base` is 16 MiB"),
        ("--kernel k --base 100000G".to_owned(), "`--base` is 100000 GiB"),
        ("--kernel k --vcpus 0".to_owned(), "`vcpus` is 0"),
        (format!("--config {unknown}"), "colour"),
        (format!("--config {broken}"), "broken.json"),
        (format!("--config {zero}"), "`memory` is 0 bytes"),
        ("--config /nowhere/vm.json".to_owned(), "/nowhere/vm.json"),
        ("scratch true".to_owned(), "--layer"),
        (format!("{store} /nowhere/image"), "/nowhere/image"),
        (format!("{store} {}", directory.path().display()), "has no image in it"),
        (format!("{store} {digest}"), "is not in the store"),
        ("--layer /nowhere/layer scratch true".to_owned(), "/nowhere/layer"),
        (format!("--layer {broken} scratch"), "IMAGE CMD"),
        (format!("--layer {broken} --user 4294967295 scratch true"), "4294967295"),
        (format!("--layer {broken} --cwd opt scratch true"), "opt"),
        (format!("--layer {broken} --env =8300 scratch true"), "=8300"),
        (format!("--layer {broken} --env-file {broken} scratch true"), "line 1"),
        (format!("--layer {broken} --memory 100000G scratch true"), "`--memory` is 100000 GiB"),
        (format!("--layer {broken} --layer {broken} scratch true"), "images[0].layers[1].digest"),
        (format!("--layer {broken} --shape flat scratch true"), "`images[0].shape` is flat"),
    ] {
        let error = planned(&line).map(drop).expect_err(&line);
        assert!(error.chain().contains(named), "{line}: {}", error.chain());
        assert_eq!(error.failure().exit_code(true), 125, "{line}: {}", error.chain());
    }
}

#[test]
fn an_instance_is_the_images_with_the_users_changes() {
    let directory = tempfile::tempdir().unwrap();
    let layer = layer(directory.path());
    let line = format!("--layer {layer} --env A=1 --cwd /x --user app:8 scratch sh -c true");
    let (config, function) = planned(&line).unwrap();
    let Function { spec, profile, .. } = function.unwrap();
    assert!(profile.is_none() && !config.record_reads, "files have no profile");
    assert_eq!(spec.process.argv, ["sh", "-c", "true"]);
    assert_eq!((spec.process.cwd.as_str(), spec.process.user.to_string().as_str()), ("/x", "app:8"));
    let image = &config.images[0];
    assert_eq!((&spec.image, image.layers.len()), (&image.id, 1));
    assert_eq!((image.layers[0].bytes, image.layers[0].digest), (4096, Digest::of(&[0; 4096])));
}

#[test]
fn memory_of_any_size_is_rounded_up() {
    for (given, memory) in [("512M", "512M"), ("3329M", "3330M"), ("536870913", "514M")] {
        let (config, _) = planned(&format!("--kernel k --base {given}")).unwrap();
        assert_eq!(config.memory, memory.parse().unwrap(), "{given}");
    }
    planned(&format!("--kernel k --base {}", u64::MAX)).map(drop).unwrap_err();
}

#[test]
fn another_entrypoint_goes_without_the_images_command() {
    let directory = tempfile::tempdir().unwrap();
    let layer = layer(directory.path());
    let argv = |entrypoint: &str, command: &str| {
        let (_, function) = planned(&format!("--layer {layer} {entrypoint} scratch {command}"))?;
        Ok::<_, CliError>(function.unwrap().spec.process.argv)
    };
    assert_eq!(argv("--entrypoint env", "-i sh").unwrap(), ["env", "-i", "sh"]);
    assert_eq!(argv("--entrypoint env", "").unwrap(), ["env"]);
    assert_eq!(argv("--entrypoint=", "sh").unwrap(), ["sh"]);
    assert!(matches!(argv("--entrypoint=", ""), Err(CliError::Missing("the command", _))));
}

#[test]
fn input_and_terminals_are_given_on_request() {
    let directory = tempfile::tempdir().unwrap();
    let layer = layer(directory.path());
    let stdio = |options: &str| {
        let planned = planned(&format!("{options} --layer {layer} scratch cat"));
        planned.map(|(_, function)| function.unwrap().spec.process.stdio)
    };
    assert_eq!(stdio("").unwrap(), Stdio::Pipes { stdin: false });
    assert_eq!(stdio("-i").unwrap(), Stdio::Pipes { stdin: true });
    assert!(matches!(stdio("-t").unwrap(), Stdio::Terminal(_)));
    // The tests themselves may run at a terminal.
    if !io::IsTerminal::is_terminal(&io::stdin()) {
        let error = stdio("-it").unwrap_err();
        assert!(error.to_string().contains("-t") && error.failure().exit_code(false) == 2, "{error}");
    }
}

#[test]
fn networks_that_contradict_themselves_are_refused() {
    for (line, words) in [
        ("--network none -p 8080:80 busybox", "found none"),
        ("--network vm -p 8080:80 busybox", "found vm"),
        ("--network none --host-loopback busybox", "--host-loopback"),
        ("--net none busybox", "write --network none"),
        ("--net passt busybox", "write --network passt"),
    ] {
        let error = planned(line).map(drop).unwrap_err();
        assert!(error.chain().contains(words), "{line}: {}", error.chain());
        assert_eq!(error.failure().exit_code(true), 125);
    }
}
