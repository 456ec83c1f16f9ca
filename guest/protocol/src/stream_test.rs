use std::io::Write;

use proptest::prelude::*;

use super::*;

const LIMIT: Duration = Duration::from_secs(30);

fn request(stream: StreamName) -> StreamRequest {
    StreamRequest { instance: "f-1".parse().unwrap(), process: "shell".parse().unwrap(), stream }
}

#[test]
fn a_request_is_understood() {
    for stream in [StreamName::Stdin, StreamName::Stdout, StreamName::Stderr, StreamName::Terminal] {
        let line = request_line(&request(stream));
        assert_eq!(line, format!("stream {PROTOCOL_VERSION} f-1 shell {stream}\n"));
        assert_eq!(parse_request_line(line.as_bytes()), Ok(request(stream)));
    }
    let longest = "x".repeat(64);
    let stream = StreamName::Terminal;
    let request = StreamRequest { instance: longest.parse().unwrap(), process: longest.parse().unwrap(), stream };
    assert!(request_line(&request).len() <= MAX_STREAM_LINE);
}

#[test]
fn another_version_is_told_whatever_follows_it() {
    for line in ["stream 77\n", "stream 77 whatever 1\n"] {
        assert_eq!(parse_request_line(line.as_bytes()), Err(StreamLineError::Version(77)), "{line:?}");
    }
}

#[test]
fn anything_else_is_refused() {
    // With V for the version of this side.
    for line in [
        "",
        "stream",
        "stream \n",
        "stream V\n",
        "stream V f-1 shell\n",
        "stream V f-1 shell stdin",
        "stream V f-1 shell stdin \n",
        "stream V f-1 shell stdin x\n",
        "stream V f-1 shell stdin\n\n",
        "stream V  f-1 shell stdin\n",
        "stream V f-1  stdin\n",
        "stream V f_1 shell stdin\n",
        "stream V f-1 ../x stdin\n",
        "stream V f-1 shell Stdin\n",
        "stream V f-1 shell stdio\n",
        "stream +V f-1 shell stdin\n",
        "stream 99999999999 f-1 shell stdin\n",
        "Stream V f-1 shell stdin\n",
    ] {
        let line = line.replace('V', &PROTOCOL_VERSION.to_string());
        let error = parse_request_line(line.as_bytes()).unwrap_err();
        assert!(matches!(error, StreamLineError::Malformed(_)), "{line:?} {error}");
    }
    assert!(parse_request_line(b"stream \xff\n").is_err());
}

#[test]
fn answers_are_one_line_whatever_is_in_them() {
    assert_eq!(parse_answer_line(answer_line(Ok(())).as_bytes()), Ok(()));
    let refusal = |why: &str| match parse_answer_line(answer_line(Err(&why)).as_bytes()) {
        Err(AnswerError::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(refusal("there is no instance \"f-1\""), "there is no instance \"f-1\"");
    assert_eq!(refusal("two\nlines\u{1b}"), "two lines ");
    let long = answer_line(Err(&"\u{e4}".repeat(1000)));
    assert!(long.len() <= MAX_ANSWER_LINE && long.ends_with("\u{e4}\n"), "{}", long.len());
    for bad in [&b""[..], b"ok", b"ok\n\n", b"OK\n", b"refused", b"refused x", b"refused \xff\n"] {
        assert!(matches!(parse_answer_line(bad), Err(AnswerError::Malformed(_))), "{bad:?}");
    }
}

#[test]
fn a_line_is_read_and_no_more() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(b"one\ntwo").unwrap();
    assert_eq!(read_line(&theirs, 10, LIMIT).unwrap(), b"one\n");
    assert_eq!(read_line(&theirs, 2, LIMIT).unwrap(), b"tw", "no more than was asked for");
    assert_eq!(read_line(&theirs, 1, LIMIT).unwrap(), b"o");
    let error = read_line(&theirs, 2, Duration::from_millis(5)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    drop(ours);
    assert_eq!(read_line(&theirs, 2, LIMIT).unwrap(), b"");
}

proptest! {
    #[test]
    fn a_request_is_written_in_one_way(
        line in "(stream )?[0-9+]{0,3}( [a-z0-9-]{0,3}){0,4}( (stdin|stdout|stderr|terminal))?\n?|\\PC*",
    ) {
        if let Ok(request) = parse_request_line(line.as_bytes()) {
            prop_assert_eq!(request_line(&request), line);
        }
    }

    #[test]
    fn any_bytes_are_an_answer_or_none(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = (parse_request_line(&bytes), parse_answer_line(&bytes));
    }
}
