use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("bellows").chain(line.split_whitespace()))
}

fn run(line: &str) -> RunArgs {
    match parse(&format!("run {line}")).unwrap().command {
        Command::Run(arguments) => *arguments,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_definition_is_sound() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn run_takes_what_the_documentation_says() {
    let arguments = run(
        "--kernel k --initramfs i --image dir --memory 512M --vcpus 2 --partition 1G --partition 256M \
                         --store s --layer l --env A=1 --env B=2 --serial - --json --partition-mode stock -- python3 -c x --json",
    );
    assert_eq!(arguments.guest.memory, Some(ByteSize::mib(512)));
    assert_eq!(arguments.guest.vcpus, Some(2));
    assert_eq!(arguments.partitions, [ByteSize::gib(1), ByteSize::mib(256)]);
    assert_eq!(arguments.env, ["A=1", "B=2"]);
    assert_eq!(arguments.serial, Some(SerialOutput::Stdout));
    assert!(arguments.json);
    assert_eq!(arguments.guest.partition_mode, Some(PartitionMode::Stock));
    assert_eq!(arguments.command, ["python3", "-c", "x", "--json"]);
    assert_eq!(arguments.guest.timeout, Duration::from_secs(120));
    assert_eq!((arguments.profile, run("--profile record").profile), (ProfileUse::Auto, ProfileUse::Record));
    assert_eq!(run("--serial log").serial, Some(SerialOutput::File("log".into())));
}

#[test]
fn what_can_not_be_is_named_and_ends_with_2() {
    for (line, named) in [
        ("", "Usage"),
        ("fly", "fly"),
        ("run --memory 1Q", "1Q"),
        ("run --memory -5", "-5"),
        ("run --vcpus 300", "300"),
        ("run --vcpus two", "two"),
        ("run --partition 1.5G", "1.5G"),
        ("run --timeout 0", "0"),
        ("run --partition-mode strict", "strict"),
        ("run --profile always", "always"),
        ("run --wings 2", "--wings"),
        ("run python3", "python3"),
        ("image import", "SRC"),
        ("image import docker://a --plain-http=x", "plain-http"),
        ("image ls --store", "--store"),
        ("image rm", "IMAGE"),
        ("image gc x", "x"),
        ("image import x --platform linux", "linux"),
        ("demo --image x --host moon", "moon"),
    ] {
        let error = parse(line).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
        assert!(error.to_string().contains(named), "{line}: {error}");
    }
}

#[test]
fn image_commands_name_their_store() {
    let Command::Image(ImageCommand::Verify(ImagesArgs { images, store })) =
        parse("image verify a b --store s --json").unwrap().command
    else {
        panic!("not verify");
    };
    assert_eq!(images, ["a", "b"]);
    assert_eq!((store.store, store.json), (Some("s".into()), true));
}

#[test]
fn a_profile_is_recorded_where_it_should_be() {
    use ProfileUse::{Auto, Off, Record, Use};
    let table =
        [(Auto, true, true, false), (Record, false, true, true), (Use, true, false, false), (Off, false, false, false)];
    for (what, uses, records, replaces) in table {
        assert_eq!((what.uses(), what.records(false), what.records(true)), (uses, records, replaces), "{what:?}");
    }
}
