use clap::Parser;

use super::*;
use crate::cli::{Cli, Command};

fn args(line: &str) -> RunArgs {
    match Cli::try_parse_from(["bellows", "run"].into_iter().chain(line.split_whitespace())).unwrap().command {
        Command::Run(args) => *args,
        other => panic!("{other:?}"),
    }
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
    let line =
        format!("--config {} --memory 1G --partition 2G --kernel-parameter a=b --partition-mode stock", path.display());
    let config = configuration(&args(&line)).unwrap();
    assert_eq!((config.kernel.as_path(), config.vcpus), (Path::new("k"), 3));
    assert_eq!(config.memory, ByteSize::gib(1));
    assert_eq!(config.partitions, [ByteSize::gib(1), ByteSize::gib(2)]);
    assert_eq!(config.extra_command_line, ["a=b"]);
    assert_eq!(config.partition_mode, PartitionMode::Stock);
}

#[test]
fn bad_input_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let unknown = file("unknown.json", r#"{"kernel": "k", "memory": "1G", "colour": "red"}"#);
    let broken = file("broken.json", "{ }");
    let zero = file("zero.json", r#"{"kernel": "k", "memory": 0}"#);
    let kernel = "--kernel k --memory 512M";
    let store = format!("--store {}", directory.path().join("store").display());
    for (line, named) in [
        ("".to_owned(), "--kernel"),
        ("--kernel k".to_owned(), "--memory"),
        ("--kernel k --memory 0".to_owned(), "`memory` is 0 bytes"),
        ("--kernel k --memory 16M".to_owned(), "`memory` is 16 MiB"),
        ("--kernel k --memory 100000G".to_owned(), "`memory` is 100000 GiB"),
        ("--kernel k --memory 512M --vcpus 0".to_owned(), "`vcpus` is 0"),
        (format!("--config {unknown}"), "colour"),
        (format!("--config {broken}"), "broken.json"),
        (format!("--config {zero}"), "`memory` is 0 bytes"),
        ("--config /nowhere/vm.json".to_owned(), "/nowhere/vm.json"),
        (format!("{kernel} -- true"), "--image"),
        (format!("{kernel} --partition 1G"), "--image"),
        (format!("{kernel} {store} --image /nowhere/image"), "/nowhere/image"),
        (format!("{kernel} {store} --image {}", directory.path().display()), "has no image in it"),
        (format!("{kernel} --layer /nowhere/layer -- true"), "/nowhere/layer"),
        (format!("{kernel} --layer {broken}"), "-- CMD"),
        (format!("{kernel} --layer {broken} --user 4294967295 -- true"), "4294967295"),
        (format!("{kernel} --layer {broken} --cwd opt -- true"), "opt"),
        (format!("{kernel} --layer {broken} --env =8300 -- true"), "=8300"),
        (format!("{kernel} --layer {broken} --env-file {broken} -- true"), "line 1"),
        (format!("{kernel} --layer {broken} --partition 1M -- true"), "`partitions[0]` is 1 MiB"),
        (format!("{kernel} --layer {broken} --layer {broken} -- true"), "images[0].layers[1].digest"),
        (format!("{kernel} --layer {broken} --shape flat -- true"), "`images[0].shape` is flat"),
    ] {
        let args = args(&line);
        let result = configuration(&args).and_then(|mut config| {
            prepare(&args, &mut config, &Interrupts::default())?;
            Ok(config.validate()?)
        });
        let error = result.expect_err(&line);
        assert!(error.chain().contains(named), "{line}: {}", error.chain());
        assert_eq!(error.run_exit_code(), 125, "{line}: {}", error.chain());
    }
}

#[test]
fn an_instance_is_the_images_with_the_users_changes() {
    let directory = tempfile::tempdir().unwrap();
    let layer = directory.path().join("layer.erofs");
    std::fs::write(&layer, [0; 4096]).unwrap();
    let line = format!(
        "--kernel k --memory 512M --partition 1G --layer {} --env A=1 --cwd /x --user app:8 -- sh -c true",
        layer.display()
    );
    let args = args(&line);
    let mut config = configuration(&args).unwrap();
    let Function { spec, profile } = prepare(&args, &mut config, &Interrupts::default()).unwrap().unwrap();
    assert!(profile.is_none() && !config.record_reads, "files have no profile");
    assert_eq!(spec.process.argv, ["sh", "-c", "true"]);
    assert_eq!((spec.process.cwd.as_str(), spec.process.user.to_string().as_str()), ("/x", "app:8"));
    assert_eq!(spec.partition, PartitionId::new(1));
    let image = &config.images[0];
    assert_eq!((&spec.image, image.layers.len()), (&image.id, 1));
    assert_eq!((image.layers[0].bytes, image.layers[0].digest), (4096, Digest::of(&[0; 4096])));
}

#[test]
fn memory_of_any_size_is_rounded_up() {
    for (given, memory) in [("512M", "512M"), ("3329M", "3330M"), ("536870913", "514M")] {
        let config = configuration(&args(&format!("--kernel k --memory {given}"))).unwrap();
        assert_eq!(config.memory, memory.parse().unwrap(), "{given}");
        config.validate().unwrap();
    }
    let most = configuration(&args(&format!("--kernel k --memory {}", u64::MAX))).unwrap();
    assert!(most.validate().is_err());
}

#[test]
fn another_entrypoint_goes_without_the_images_command() {
    let directory = tempfile::tempdir().unwrap();
    let layer = directory.path().join("layer.erofs");
    std::fs::write(&layer, [0; 4096]).unwrap();
    let argv = |line: &str| {
        let line = format!("--kernel k --memory 512M --layer {} {line}", layer.display());
        let args = args(&line);
        let function = prepare(&args, &mut configuration(&args).unwrap(), &Interrupts::default())?;
        Ok::<_, CliError>(function.unwrap().spec.process.argv)
    };
    assert_eq!(argv("--entrypoint env -- -i sh").unwrap(), ["env", "-i", "sh"]);
    assert_eq!(argv("--entrypoint env").unwrap(), ["env"]);
    assert_eq!(argv("--entrypoint= -- sh").unwrap(), ["sh"]);
    assert!(matches!(argv("--entrypoint="), Err(CliError::Missing("the command", _))));
}

#[test]
fn input_and_terminals_are_for_who_asks() {
    let directory = tempfile::tempdir().unwrap();
    let layer = directory.path().join("layer.erofs");
    std::fs::write(&layer, [0; 4096]).unwrap();
    let stdio = |options: &str| {
        let args = args(&format!("--kernel k --memory 512M {options} --layer {} -- cat", layer.display()));
        let mut config = configuration(&args).unwrap();
        prepare(&args, &mut config, &Interrupts::default()).map(|function| function.unwrap().spec.process.stdio)
    };
    assert_eq!(stdio("").unwrap(), Stdio::Pipes { stdin: false });
    assert_eq!(stdio("-i").unwrap(), Stdio::Pipes { stdin: true });
    assert!(matches!(stdio("-t").unwrap(), Stdio::Terminal(_)));
    // Who runs tests may have a terminal.
    if !io::IsTerminal::is_terminal(&io::stdin()) {
        let error = stdio("-it").unwrap_err();
        assert!(error.to_string().contains("-t") && error.exit_code() == 2, "{error}");
    }
}
