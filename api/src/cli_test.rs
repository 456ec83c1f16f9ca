use super::*;
use crate::network::options::NetMode;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::read(std::iter::once("bellows").chain(line.split_whitespace()).map(OsString::from).collect())
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
fn run_takes_the_documented_options() {
    let arguments = run(
        "--kernel k --initramfs i --memory 512M --base 128M --vcpus 2 --store s --layer l --env A=1 --env B=2 --serial - \
         --json --partition-mode stock python:3 python3 -c x --json",
    );
    assert_eq!((arguments.memory, arguments.guest.base), (Some(ByteSize::mib(512)), Some(ByteSize::mib(128))));
    assert_eq!(arguments.guest.vcpus, Some(2));
    assert_eq!(arguments.env, ["A=1", "B=2"]);
    assert_eq!(arguments.serial, Some(SerialOutput::Stdout));
    assert!(arguments.json);
    assert_eq!(arguments.guest.partition_mode, Some(PartitionMode::Stock));
    assert_eq!(arguments.image(), Some("python:3"));
    assert_eq!(arguments.command(), ["python3", "-c", "x", "--json"]);
    assert!(!arguments.former.is_used());
    assert_eq!(arguments.guest.timeout, Duration::from_secs(120));
    assert_eq!((arguments.profile, run("--profile record").profile), (ProfileUse::Auto, ProfileUse::Record));
    assert_eq!(run("--serial log").serial, Some(SerialOutput::File("log".into())));
}

/// As with `docker run`: options come before IMAGE, and the rest is the command's.
#[test]
fn everything_after_the_image_belongs_to_the_command() {
    for (line, image, command) in [
        ("", None, &[] as &[&str]),
        ("busybox", Some("busybox"), &[]),
        ("-it -m 1G busybox sh", Some("busybox"), &["sh"]),
        ("busybox --memory 1G --json -t", Some("busybox"), &["--memory", "1G", "--json", "-t"]),
        ("busybox --unknown", Some("busybox"), &["--unknown"]),
        ("--env A=-- busybox -- x", Some("busybox"), &["--", "x"]),
        ("run help", Some("run"), &["help"]),
        ("help", Some("help"), &[]),
    ] {
        let arguments = run(line);
        assert_eq!((arguments.image(), arguments.command()), (image, &strings(command)[..]), "{line}");
        assert!(!arguments.former.is_used(), "{line}");
    }
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

#[test]
fn the_former_command_line_is_recognised() {
    for line in [
        "--memory 512M --partition 1G --image busybox -- sh -c true",
        "--memory 512M --image busybox -- sh",
        "--image busybox",
        "--memory 512M --partition 1G busybox",
        "--layer l -- sh",
        "-- busybox sh",
    ] {
        assert!(run(line).former.is_used(), "{line}");
    }
}

#[test]
fn an_invalid_command_line_is_named_and_ends_with_2() {
    for (line, named) in [
        ("", "Usage"),
        ("fly", "fly"),
        ("run --memory 1Q", "1Q"),
        ("run --memory -5", "-5"),
        ("run --vcpus 300", "300"),
        ("run --vcpus two", "two"),
        ("run --base 1.5G", "1.5G"),
        ("run --timeout 0", "0"),
        ("run --partition-mode strict", "strict"),
        ("run --profile always", "always"),
        ("run --wings 2", "--wings"),
        ("run -x busybox", "-x"),
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
fn a_profile_is_recorded_on_request_or_if_missing() {
    use ProfileUse::{Auto, Off, Record, Use};
    let table =
        [(Auto, true, true, false), (Record, false, true, true), (Use, true, false, false), (Off, false, false, false)];
    for (what, uses, records, replaces) in table {
        assert_eq!((what.uses(), what.records(false), what.records(true)), (uses, records, replaces), "{what:?}");
    }
}

#[test]
fn a_network_is_asked_for_in_one_word_or_by_a_port() {
    for (line, mode, image) in [
        ("busybox", NetMode::None, "busybox"),
        ("--net busybox", NetMode::Passt, "busybox"),
        ("--network passt busybox", NetMode::Passt, "busybox"),
        ("--network=none busybox --net", NetMode::None, "busybox"),
        ("--network vm busybox", NetMode::Vm, "busybox"),
        ("-p 8080:80 busybox", NetMode::Passt, "busybox"),
        ("--host-loopback busybox", NetMode::Passt, "busybox"),
        ("--network cni=functions -p 8080:80 busybox", NetMode::Cni("functions".into()), "busybox"),
    ] {
        let arguments = run(line);
        assert_eq!((arguments.network.mode(), arguments.image()), (mode, Some(image)), "{line}");
    }
    let arguments = run("-p 8080:80 --publish=127.0.0.1:53:5353/udp busybox");
    let ports: Vec<_> = arguments.network.publish.iter().map(ToString::to_string).collect();
    assert_eq!(ports, ["8080:80/tcp", "127.0.0.1:53:5353/udp"]);
    let error = parse("run -p 80 busybox").unwrap_err().to_string();
    assert!(error.contains("`80`: there is no port of the guest") && error.contains("8080:80"), "{error}");
    for wrong in ["bridge", "cni=", "CNI=x"] {
        let error = parse(&format!("run --network {wrong} busybox")).unwrap_err().to_string();
        assert!(error.contains("passt") && error.contains("cni="), "{error}");
    }
    assert!(parse("run --net --network vm busybox").is_err());
}
