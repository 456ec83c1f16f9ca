//! Programs that keep credentials: `docker-credential-*` (the protocol of Docker's credential helpers).

use std::io::{self, Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use serde::Deserialize;

use super::credentials::Credentials;

/// Longest time that a program may take: it may ask its user.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most bytes of its answer.
const MAX_ANSWER: u64 = 256 << 10;
/// The user that an identity token comes with.
const TOKEN_USER: &str = "<token>";
/// What a program says that knows nothing of a registry.
const NOT_FOUND: &str = "credentials not found";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks `program` for what it keeps for `server`; `None` where it has nothing.
pub(super) fn ask(program: &str, server: &str, patience: Option<Duration>) -> io::Result<Option<Credentials>> {
    let mut child =
        Command::new(program).arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not want to hear it says more with its answer.
        let _ = writeln!(stdin, "{server}");
    }
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        thread::spawn(move || {
            let mut answer = Vec::new();
            let result = stdout.take(MAX_ANSWER).read_to_end(&mut answer).map(|_| answer);
            // The receiver may be gone.
            let _ = sender.send(result);
        });
    }
    let patience = patience.unwrap_or(PATIENCE);
    let answer = match receiver.recv_timeout(patience) {
        Ok(answer) => answer,
        Err(RecvTimeoutError::Timeout) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("it has not answered within {} s", patience.as_secs())))
        }
        Err(RecvTimeoutError::Disconnected) => Err(io::ErrorKind::BrokenPipe.into()),
    };
    if answer.is_err() {
        // It may have ended by itself.
        let _ = child.kill();
    }
    let status = child.wait()?;
    let answer = answer?;
    if !status.success() {
        // Programs say why on their standard output.
        let said = String::from_utf8_lossy(&answer);
        return match said.starts_with(NOT_FOUND) {
            true => Ok(None),
            false => Err(io::Error::other(format!("{status}: {}", crate::oci::words::quoted(said.trim())))),
        };
    }
    let Answer { username, secret } = serde_json::from_slice(&answer).map_err(io::Error::other)?;
    Ok(Some(match username.as_str() {
        TOKEN_USER => Credentials::IdentityToken(secret),
        _ => Credentials::Password { user: username, password: secret },
    }))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Instant;

    use super::*;

    fn said(script: &str, patience: Option<Duration>) -> Result<Option<Credentials>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docker-credential-test");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        // Another test's fork may have the file open for writing still.
        loop {
            match ask(path.to_str().unwrap(), "r.io", patience) {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => thread::yield_now(),
                result => return result.map_err(|error| error.to_string()),
            }
        }
    }

    #[test]
    fn a_program_is_asked_for_a_server() {
        let script =
            r#"read server; echo "{\"ServerURL\": \"$server\", \"Username\": \"$1 $server\", \"Secret\": \"s\"}""#;
        let expected = Credentials::Password { user: "get r.io".to_owned(), password: "s".to_owned() };
        assert_eq!(said(script, None), Ok(Some(expected)));
        let script = r#"echo '{"Username": "<token>", "Secret": "t"}'"#;
        assert_eq!(said(script, None), Ok(Some(Credentials::IdentityToken("t".to_owned()))));
    }

    #[test]
    fn a_program_may_have_nothing_or_fail() {
        assert_eq!(said("echo 'credentials not found in native keychain'; exit 1", None), Ok(None));
        let message = said("printf 'no \\033[31mkeychain'; exit 3", None).unwrap_err();
        assert!(message.contains("exit status: 3: no  [31mkeychain"), "{message:?}");
        assert!(said("echo '{}'", None).unwrap_err().contains("missing field"));
        assert!(said("exec yes", None).is_err());
        assert!(ask("/nowhere/docker-credential-x", "r.io", None).is_err());
    }

    #[test]
    fn a_program_that_does_not_answer_is_ended() {
        let start = Instant::now();
        let message = said("exec sleep 1000", Some(Duration::from_millis(50))).unwrap_err();
        assert!(message.contains("has not answered") && start.elapsed() < PATIENCE, "{message}");
    }
}
