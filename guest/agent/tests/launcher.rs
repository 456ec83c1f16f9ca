//! The launcher for Python, on this machine's `python3`. No process adopts its memory here: its `fork()` is replaced by one that
//! really forks, gives the child its start document, and ends after some times.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use bellows_agent::zygote::PYTHON_LAUNCHER;
use bellows_protocol::stream::read_line;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(30);

const FORK: &str = r#"
import os
real, calls = os.fork, 0
def fork():
    global calls
    calls += 1
    if calls == 1:
        return real()
    if calls > 1 + int(os.environ["FORKS"]):
        os._exit(0)
    child = real()
    if child == 0:
        document = os.open(os.path.join(os.path.dirname(__file__), "document"), os.O_RDONLY)
        os.dup2(document, 3)
        os.close(document)
    elif code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        os._exit(code)
    return child
os.fork = fork
"#;

/// Has an atfork handler that ends its thread, as OpenBLAS has.
const THREADED: &str = r#"
import os, threading
end = threading.Event()
thread = threading.Thread(target=end.wait)
thread.start()
os.register_at_fork(before=lambda: (end.set(), thread.join()))
"#;

/// Remembers who compiles: whether it is the zygote.
const WATCHED: &str = r#"
import builtins, os
zygote, compilers, real = os.getpid(), set(), builtins.compile
def compile(*arguments, **named):
    compilers.add(os.getpid() == zygote)
    return real(*arguments, **named)
builtins.compile = compile
"#;

const TOOL: &str = "import os, sys\nprint(__name__, sys.argv[1:], os.environ.get('A'), flush=True)\nsys.exit(7)\n";

/// A zygote, and its end of the control socket.
struct Zygote {
    folder: tempfile::TempDir,
    process: Child,
    control: UnixStream,
}

impl Zygote {
    fn new(modules: &[&str], forks: usize, document: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in
            [("sitecustomize.py", FORK), ("threaded.py", THREADED), ("watched.py", WATCHED), ("tool.py", TOOL)]
        {
            fs::write(folder.path().join(name), text).unwrap();
        }
        fs::write(folder.path().join("document"), document.to_string()).unwrap();
        let (control, theirs) = UnixStream::pair().unwrap();
        let mut command = python();
        command.args(["-c", PYTHON_LAUNCHER]).args(modules).current_dir(&folder).env("PYTHONPATH", folder.path());
        command.env("BELLOWS_ZYGOTE_FD", "0").env("FORKS", forks.to_string()).env("OWN", "yes");
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { folder, process: command.spawn().unwrap(), control }
    }

    fn line(&self) -> String {
        String::from_utf8(read_line(&self.control, 512, LIMIT).unwrap()).unwrap()
    }

    fn go_on(mut self) -> Output {
        assert_eq!(self.line(), "ready\n");
        self.control.write_all(b"fork\n").unwrap();
        self.process.wait_with_output().unwrap()
    }
}

fn python() -> Command {
    let mut command = Command::new("python3");
    command.env_remove("PYTHONUNBUFFERED");
    command
}

fn run(modules: &[&str], arguments: &[&str]) -> (Option<i32>, String, String) {
    let document = json!({ "args": arguments, "env": ["A=b=ü", "PATH=/bin"], "cwd": "/" });
    let output = Zygote::new(modules, 1, &document).go_on();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_fork_runs_code_a_module_or_a_script() {
    let code = "import os, sys; print(__name__, sys.argv, os.environ['A'], 'OWN' in os.environ, 'json' in sys.modules, 'x'); sys.exit(5)";
    let (status, stdout, stderr) = run(&["json"], &["python3", "-c", code, "1", "zwö"]);
    assert_eq!(
        (status, stdout.as_str(), stderr.as_str()),
        (Some(5), "__main__ ['-c', '1', 'zwö'] b=ü False True x\n", "")
    );
    for arguments in [&["python3", "-m", "tool", "1"][..], &["python3", "tool.py", "1"]] {
        let (status, stdout, stderr) = run(&[], arguments);
        assert_eq!((status, stdout.as_str(), stderr.as_str()), (Some(7), "__main__ ['1'] b=ü\n", ""), "{arguments:?}");
    }
    for arguments in [&["python3"][..], &["python3", "-u", "tool.py"], &["python3", "-c"], &[]] {
        let (status, _, stderr) = run(&[], arguments);
        assert!(status == Some(1) && stderr.contains("runs `-c CODE`"), "{arguments:?}: {stderr}");
    }
    let (status, _, stderr) = run(&[], &["python3", "-c", "1 / 0"]);
    assert!(status == Some(1) && stderr.contains("ZeroDivisionError"), "{stderr}");
}

/// The interpreter makes what it compiles with when it first does.
#[test]
fn a_zygote_has_compiled_and_imported_what_forks_need() {
    let code = "import sys, watched; print(sorted(watched.compilers), 'pkgutil' in sys.modules)";
    let (status, stdout, stderr) = run(&["watched"], &["python3", "-c", code]);
    assert_eq!((status, stdout.as_str(), stderr.as_str()), (Some(0), "[False, True] True\n", ""));
}

/// Leaves work for the end: a thread, exit functions, and files in three kinds of buffers.
const UNFINISHED: &str = r#"
import atexit, sys, threading, time, weakref
class Kept: pass
kept = Kept()
weakref.finalize(kept, print, "finalised")
atexit.register(print, "exit function")
text, binary, both = open("text", "w"), open("binary", "wb"), open("both", "w+b")
text.write("a"), binary.write(b"b"), both.write(b"c")
full = open("/dev/full", "w")
full.write("d")
main = threading.main_thread()
def work():
    while main.is_alive():
        time.sleep(0.001)
    print("thread")
threading.Thread(target=work).start()
print("end")
"#;

#[test]
fn a_fork_finishes_what_it_has_begun() {
    let document = json!({ "args": ["python3", "-c", format!("{UNFINISHED}sys.exit(9)")], "env": [], "cwd": "/" });
    let mut zygote = Zygote::new(&[], 1, &document);
    assert_eq!(zygote.line(), "ready\n");
    zygote.control.write_all(b"fork\n").unwrap();
    let output = zygote.process.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "end\nthread\nexit function\nfinalised\n");
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(9), ""));
    for (name, text) in [("text", "a"), ("binary", "b"), ("both", "c")] {
        assert_eq!(fs::read_to_string(zygote.folder.path().join(name)).unwrap(), text, "{name}");
    }
}

#[test]
fn a_fork_ends_with_the_status_of_a_python() {
    for (code, expected, message) in [
        ("pass", 0, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(True)", 1, ""),
        ("sys.exit(255)", 255, ""),
        ("sys.exit(257)", 1, ""),
        ("sys.exit(-1)", 255, ""),
        ("sys.exit(0.0)", 1, "0.0"),
        ("sys.exit('words')", 1, "words"),
        ("import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1); print('lost')", 120, "No space left"),
        ("sys.stdout = None; sys.stderr = None", 0, ""),
    ] {
        let code = format!("import sys; {code}");
        let python = python().args(["-c", &code]).output().unwrap();
        let (status, _, stderr) = run(&[], &["python3", "-c", &code]);
        assert_eq!((status, status), (Some(expected), python.status.code()), "{code}: {stderr}");
        assert!(stderr.contains(message) && stderr.is_empty() == python.stderr.is_empty(), "{code}: {stderr}");
    }
}

#[test]
fn an_import_that_fails_is_reported() {
    let zygote = Zygote::new(&["json", "no_such_module"], 0, &Value::Null);
    assert_eq!(zygote.line(), "error ModuleNotFoundError: No module named 'no_such_module'\n");
    let output = zygote.process.wait_with_output().unwrap();
    assert!(!output.status.success() && zygote.folder.path().exists());
}

#[test]
fn fork_handlers_have_stopped_threads_before_it_is_ready() {
    let mut zygote = Zygote::new(&["threaded"], 0, &Value::Null);
    assert_eq!(zygote.line(), "ready\n");
    let tasks = fs::read_dir(format!("/proc/{}/task", zygote.process.id())).unwrap().count();
    assert_eq!(tasks, 1);
    // Without an answer it ends.
    drop(zygote.control);
    assert!(!zygote.process.wait().unwrap().success());
}

#[test]
fn no_two_forks_have_the_same_random_numbers() {
    const FORKS: usize = 20;
    let code = "import os, random, ssl, uuid\n\
                print(random.random(), uuid.uuid4().hex, ssl.RAND_bytes(16).hex(), os.urandom(16).hex())";
    let document = json!({ "args": ["python3", "-c", code], "env": [], "cwd": "/" });
    let output = Zygote::new(&["random", "ssl", "uuid", "secrets"], FORKS, &document).go_on();
    let text = String::from_utf8(output.stdout).unwrap();
    let words: Vec<_> = text.split_whitespace().collect();
    assert_eq!(words.len(), 4 * FORKS, "{text}");
    assert_eq!(words.iter().collect::<HashSet<_>>().len(), words.len(), "{text}");
}
