use super::super::options::Jailer;
use super::*;

fn plan(line: &str) -> Result<Plan, String> {
    let words: Vec<_> =
        format!("jailer --id vm-1 --uid 1234 --gid 100 {line}").split_whitespace().map(OsString::from).collect();
    let args = Jailer::read(&words).unwrap().map_err(|error| error.to_string())?;
    Plan::new(&args).map_err(|error| error.to_string())
}

fn command_line(line: &str) -> String {
    let times = Times { start: 1, cpu: 2, parent_cpu: 3 };
    let words = plan(line).unwrap().command_line(times);
    words.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_jailers_command_line_is_read() {
    let plan =
        plan("--exec-file /usr/bin/firecracker --resource-limit fsize=9 --resource-limit no-file=7 --netns /run/n")
            .unwrap();
    assert_eq!((&*plan.name, &*plan.id, plan.uid.as_raw(), plan.gid.as_raw()), ("firecracker", "vm-1", 1234, 100));
    assert_eq!((plan.base, plan.network), ("/srv/jailer".into(), Some("/run/n".into())));
    let limits = [(Resource::RLIMIT_NOFILE, 2048), (Resource::RLIMIT_FSIZE, 9), (Resource::RLIMIT_NOFILE, 7)];
    assert_eq!((plan.limits, plan.cgroup), (limits.into(), None));
    assert!(!plan.daemonize && !plan.new_pid_ns);
    let words = ["jailer", "--version"].map(OsString::from);
    assert!(Jailer::read(&words).unwrap().unwrap_err().to_string().starts_with("jailer v1.16.1\n"));
    assert!(Jailer::read(&["bellows".into(), "jail".into()]).is_none());
}

#[test]
fn the_monitor_is_told_its_id_and_the_times() {
    let told = "--id vm-1 --start-time-us 1 --start-time-cpu-us 2 --parent-cpu-time-us 3";
    for (arguments, expected) in [
        ("--exec-file /firecracker", format!("/firecracker {told}")),
        ("--exec-file /firecracker -- --no-api", format!("/firecracker {told} --no-api")),
        ("--exec-file a/bellows -- api --no-api x", format!("/bellows api {told} --no-api x")),
        ("--exec-file a/bellows -- run --memory 1G image", "/bellows run --memory 1G image".into()),
    ] {
        assert_eq!(command_line(arguments), expected, "{arguments}");
    }
}

#[test]
fn a_control_group_has_names_and_values() {
    let group =
        |line: &str| plan(&format!("--exec-file /m --cgroup-version 2 {line}")).map(|plan| plan.cgroup.unwrap());
    let pairs =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<Vec<_>>();
    let own = group("--parent-cgroup a/b --cgroup memory.max=1G --cgroup cpu.max=max").unwrap();
    assert_eq!((own.parents, own.own), (vec!["a".into(), "b".into()], Some("vm-1".into())));
    assert_eq!(own.values, pairs(&[("memory.max", "1G"), ("cpu.max", "max")]));
    let joined = group("").unwrap();
    assert_eq!((joined.parents, joined.own, joined.values), (vec!["m".into()], None, vec![]));
    for wrong in [
        "--cgroup memory.max",
        "--cgroup a/../b.c=1",
        "--cgroup cgroup.procs=1",
        "--cgroup a.b=",
        "--parent-cgroup /a",
        "--parent-cgroup a/../b",
    ] {
        let error = group(wrong).unwrap_err();
        assert!(error.contains("expected"), "{error}");
    }
}

#[test]
fn wrong_arguments_are_refused() {
    for (line, part) in [
        ("--exec-file /m --cgroup memory.max=1", "no support for version 1"),
        ("--exec-file /m --cgroup-version 3", "`3`"),
        ("--exec-file /m --resource-limit nproc=1", "`nproc=1`"),
        ("--exec-file /m --resource-limit fsize", "`fsize`"),
        ("--exec-file /", "`/`"),
        ("--exec-file /a/dev", "`/a/dev`"),
        ("", "--exec-file"),
        ("--exec-file /m api", "api"),
    ] {
        let error = plan(line).map(drop).unwrap_err();
        assert!(error.contains(part), "{line}: {error}");
    }
    let words: Vec<_> = "jailer --id a --exec-file /m --uid 0 --gid 0".split(' ').map(OsString::from).collect();
    let root = Plan::new(&Jailer::read(&words).unwrap().unwrap()).unwrap_err().to_string();
    assert!(root.contains("other than the superuser"), "{root}");
}
