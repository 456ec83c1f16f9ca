use clap::Parser;

use super::*;
use crate::cli::{Cli, Command};

fn args(line: &str) -> RunArgs {
    match Cli::try_parse_from(["bellows", "run"].into_iter().chain(line.split_whitespace())).unwrap().command {
        Command::Run(args) => args,
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
fn bad_input_is_named_with_its_exit_code() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let unknown = file("unknown.json", r#"{"kernel": "k", "memory": "1G", "colour": "red"}"#);
    let broken = file("broken.json", "{");
    let zero = file("zero.json", r#"{"kernel": "k", "memory": 0}"#);
    let kernel = "--kernel k --memory 512M";
    let store = format!("--store {}", directory.path().join("store").display());
    for (line, code, named) in [
        ("".to_owned(), 2, "--kernel"),
        ("--kernel k".to_owned(), 2, "--memory"),
        ("--kernel k --memory 0".to_owned(), 2, "`memory` is 0 bytes"),
        ("--kernel k --memory 16M".to_owned(), 2, "`memory` is 16 MiB"),
        ("--kernel k --memory 100000G".to_owned(), 2, "`memory` is 100000 GiB"),
        ("--kernel k --memory 512M --vcpus 0".to_owned(), 2, "`vcpus` is 0"),
        (format!("--config {unknown}"), 2, "colour"),
        (format!("--config {broken}"), 2, "broken.json"),
        (format!("--config {zero}"), 2, "`memory` is 0 bytes"),
        ("--config /nowhere/vm.json".to_owned(), 1, "/nowhere/vm.json"),
        (format!("{kernel} -- true"), 2, "--image"),
        (format!("{kernel} --partition 1G"), 2, "--image"),
        (format!("{kernel} {store} --image /nowhere/image"), 2, "/nowhere/image"),
        (format!("{kernel} {store} --image {}", directory.path().display()), 2, "has no image in it"),
        (format!("{kernel} --layer /nowhere/layer -- true"), 1, "/nowhere/layer"),
        (format!("{kernel} --layer {broken}"), 2, "-- CMD"),
        (format!("{kernel} --layer {broken} --user 4294967295 -- true"), 2, "4294967295"),
        (format!("{kernel} --layer {broken} --partition 1M -- true"), 2, "`partitions[0]` is 1 MiB"),
        (format!("{kernel} --layer {broken} --layer {broken} -- true"), 2, "images[0].layers[1].digest"),
        (format!("{kernel} --layer {broken} --shape flat -- true"), 2, "`images[0].shape` is flat"),
    ] {
        let args = args(&line);
        let result = configuration(&args).and_then(|mut config| {
            prepare(&args, &mut config, &Interrupts::default())?;
            Ok(config.validate()?)
        });
        let error = result.expect_err(&line);
        assert!(error.chain().contains(named), "{line}: {}", error.chain());
        assert_eq!(error.exit_code(), code, "{line}: {}", error.chain());
    }
}

#[test]
fn an_instance_is_the_images_with_the_users_changes() {
    let directory = tempfile::tempdir().unwrap();
    let layer = directory.path().join("layer.erofs");
    std::fs::write(&layer, [0; 4096]).unwrap();
    let line = format!(
        "--kernel k --memory 512M --partition 1G --layer {} --env A=1 --cwd /x --user 7:8 -- sh -c true",
        layer.display()
    );
    let args = args(&line);
    let mut config = configuration(&args).unwrap();
    let Function { spec, profile } = prepare(&args, &mut config, &Interrupts::default()).unwrap().unwrap();
    assert!(profile.is_none() && !config.record_reads, "files have no profile");
    assert_eq!(spec.argv, ["sh", "-c", "true"]);
    assert_eq!((spec.cwd.as_str(), spec.user.to_string().as_str()), ("/x", "7:8"));
    assert_eq!(spec.partition, PartitionId::new(1));
    let image = &config.images[0];
    assert_eq!((&spec.image, image.layers.len()), (&image.id, 1));
    assert_eq!((image.layers[0].bytes, image.layers[0].digest), (4096, LayerDigest::of(&[0; 4096])));
}

#[test]
fn the_users_environment_wins_by_name() {
    let texts = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
    let merged = environment(&texts(&["A=1", "AB=2", "C=3"]), &texts(&["A=9", "D=4"]));
    assert_eq!(merged, ["AB=2", "C=3", "A=9", "D=4"]);
}
