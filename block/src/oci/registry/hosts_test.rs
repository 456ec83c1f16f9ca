use std::process::Command;

use super::*;

/// A folder with files in it, by their paths.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}

fn found(files: &[(&str, &str)], registry: &str) -> Result<Vec<Host>, String> {
    let folder = folder(files);
    hosts(&[folder.path().join("missing"), folder.path().into()], registry, &format!("https://{registry}"))
        .map_err(|error| error.to_string())
}

fn bases(files: &[(&str, &str)], registry: &str) -> Vec<String> {
    found(files, registry).unwrap().into_iter().map(|host| host.base).collect()
}

#[test]
fn without_a_folder_the_registry_answers_itself() {
    let hosts = found(&[("other.io/hosts.toml", "nonsense")], "r.io").unwrap();
    assert_eq!(hosts.len(), 1);
    assert_eq!(hosts[0].base, "https://r.io/v2");
    assert!(hosts[0].is_registry && hosts[0].resolves && hosts[0].trust.is_usual());
}

#[test]
fn mirrors_come_in_the_files_order() {
    let file = r#"
        server = "https://up.io"
        capabilities = ["pull", "resolve"]
        [host."https://z.io:5000"]
          capabilities = ["pull"]
          skip_verify = true
          [host."https://z.io:5000".header]
            x-one = "1"
            x-two = ["2", "3"]
        [host."http://a.io/path/"]
        [host."b.io/v2/other"]
          override_path = true
        [host."https://c.io/v2"]
          dial_timeout = "3s"
    "#;
    let hosts = found(&[("r.io:5000/hosts.toml", file)], "r.io:5000").unwrap();
    let seen: Vec<_> = hosts.iter().map(|host| (host.base.as_str(), host.resolves, host.is_registry)).collect();
    assert_eq!(
        seen,
        [
            ("https://z.io:5000/v2", false, false),
            ("http://a.io/path/v2", true, false),
            ("https://b.io/v2/other", true, false),
            ("https://c.io/v2", true, false),
            ("https://up.io/v2", true, true),
        ]
    );
    assert!(hosts[0].trust.anybody && !hosts[1].trust.anybody);
    let headers: Vec<_> = hosts[0].headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    assert_eq!(headers, ["x-one: 1", "x-two: 2", "x-two: 3"]);
}

#[test]
fn folders_have_several_names() {
    let file = |name: &str| format!("server = \"https://{name}\"");
    let (exact, escaped, all) = (file("exact"), file("escaped"), file("all"));
    let files =
        [("r.io:1/hosts.toml", exact.as_str()), ("r.io_2_/hosts.toml", &escaped), ("_default/hosts.toml", &all)];
    assert_eq!(bases(&files, "r.io:1"), ["https://exact/v2"]);
    assert_eq!(bases(&files, "r.io:2"), ["https://escaped/v2"]);
    assert_eq!(bases(&files, "r.io:3"), ["https://all/v2"]);
    // A file without a server leaves the registry where it is.
    assert_eq!(bases(&[("r.io/hosts.toml", "[host.\"m.io\"]")], "r.io"), ["https://m.io/v2", "https://r.io/v2"]);
    let uploads = "[host.\"m.io\"]\ncapabilities = [\"push\"]";
    assert_eq!(bases(&[("r.io/hosts.toml", uploads)], "r.io"), ["https://r.io/v2"]);
}

#[test]
fn certificates_are_found_in_both_forms() {
    let made = tempfile::tempdir().unwrap();
    let path = |name: &str| made.path().join(name);
    let status = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x"])
        .arg("-keyout")
        .arg(path("key"))
        .arg("-out")
        .arg(path("certificate"))
        .output()
        .unwrap();
    assert!(status.status.success());
    let read = |name: &str| fs::read_to_string(path(name)).unwrap();
    let (certificate, key) = (read("certificate"), read("key"));
    let both = format!("{certificate}{key}");
    let files = |config: &'static str| {
        vec![("r.io/hosts.toml", config), ("r.io/ca.pem", &certificate), ("r.io/both.pem", &both), ("r.io/k.pem", &key)]
    };
    let docker = [("r.io/ca.crt", certificate.as_str()), ("r.io/c.cert", &certificate), ("r.io/c.key", &key)];
    let trust = |files: &[(&str, &str)]| found(files, "r.io").map(|mut hosts| hosts.remove(0).trust);
    let seen = |trust: Trust| (trust.authorities.len(), trust.client.is_some());
    assert_eq!(seen(trust(&docker).unwrap()), (1, true));
    for (config, expected) in [
        ("ca = \"ca.pem\"", (1, false)),
        ("ca = [\"ca.pem\", \"both.pem\"]\nclient = \"both.pem\"", (2, true)),
        ("client = [\"both.pem\"]", (0, true)),
        ("client = [[\"ca.pem\", \"k.pem\"]]", (0, true)),
        ("client = [[\"both.pem\", \"\"]]", (0, true)),
        ("[host.\"m.io\"]\nca = \"ca.pem\"", (1, false)),
    ] {
        assert_eq!(seen(trust(&files(config)).unwrap()), expected, "{config}");
    }
    for (config, words) in [
        ("ca = \"nowhere.pem\"", ["nowhere.pem", "No such file"]),
        ("ca = \"k.pem\"", ["k.pem", "no certificate"]),
        ("client = \"ca.pem\"", ["ca.pem", "no private key"]),
        ("client = [[\"a\", \"b\", \"c\"]]", ["hosts.toml", "3 files for one client"]),
    ] {
        let message = trust(&files(config)).unwrap_err();
        assert!(words.iter().all(|word| message.contains(word)), "{config}: {message}");
    }
    let message = trust(&[("r.io/c.cert", &certificate)]).unwrap_err();
    assert!(message.contains("c.key"), "{message}");
}

#[test]
fn what_is_wrong_in_a_file_is_named() {
    for (config, words) in [
        ("server = 5", ["hosts.toml", "server"]),
        ("host = \"x\"", ["hosts.toml", "a table of servers"]),
        ("[host.\"ftp://x\"]", ["hosts.toml", "`ftp://x` is not the URL"]),
        ("[host.\"https://x?a=b\"]", ["hosts.toml", "`https://x?a=b` is not the URL"]),
        ("[host", ["hosts.toml", "line 1"]),
    ] {
        let message = found(&[("r.io/hosts.toml", config)], "r.io").unwrap_err();
        assert!(words.iter().all(|word| message.contains(word)), "{config}: {message}");
        assert!(!message.contains('\n'));
    }
}
