use proptest::prelude::*;

use super::*;

fn host(name: &str) -> Option<OsString> {
    match name {
        "HERE" => Some("value of\nthis host".into()),
        "EMPTY" => Some("".into()),
        "BYTES" => {
            use std::os::unix::ffi::OsStringExt;
            Some(OsString::from_vec(vec![0xff]))
        }
        _ => None,
    }
}

fn texts(all: &[&str]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}

fn parse(content: &[u8]) -> Result<Vec<String>, (usize, EnvError)> {
    let variables = parse_file(content, host)?;
    Ok(variables.into_iter().map(|variable| format!("{}={}", variable.name, variable.value.unwrap())).collect())
}

#[test]
fn the_last_of_a_name_wins() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let files = [file("one", "B=one\nC=one\n"), file("two", "C=two\nD=two\n")];
    let image = texts(&["A=1", "AB=2", "B=3", "A=4", "EQ=a=b=c", "NL=x\ny", "E=", "PLAIN", "GONE=5"]);
    let all = environment(&image, &files, &texts(&["D=given", "AB=", "HERE", "GONE", "NOWHERE"]), host).unwrap();
    assert_eq!(
        all,
        ["A=4", "EQ=a=b=c", "NL=x\ny", "E=", "B=one", "C=two", "D=given", "AB=", "HERE=value of\nthis host"]
    );
}

#[test]
fn files_are_in_dockers_format() {
    let content = b"\xef\xbb\xbf# comment\n\n  \t# another\nA=1\n  B = 2\n";
    assert_eq!(parse(content), Err((5, EnvError::WhiteSpace("B ".into()))));
    let content = "A=1\r\n\tB= x \nC=\"quoted\" # kept\nD=\nE=a=b\nHERE\nEMPTY\nNOWHERE\nÄ=ö\n#\nLAST=end";
    let expected =
        ["A=1", "B= x ", "C=\"quoted\" # kept", "D=", "E=a=b", "HERE=value of\nthis host", "EMPTY=", "Ä=ö", "LAST=end"];
    assert_eq!(parse(content.as_bytes()).unwrap(), expected);
    assert_eq!(parse(b"").unwrap(), Vec::<String>::new());
}

#[test]
fn a_mistake_is_named_with_its_file_and_line() {
    assert_eq!(parse(b"A=1\n=2\n"), Err((2, EnvError::NoName("=2".into()))));
    assert_eq!(parse(b"\n\nexport A=1\n"), Err((3, EnvError::WhiteSpace("export A".into()))));
    assert_eq!(parse(b"A=1\nB=\xff\n"), Err((2, EnvError::Utf8)));
    assert_eq!(parse(b"BYTES"), Err((1, EnvError::Value("BYTES".into()))));
    assert!(matches!(parse(&vec![b'\n'; MAX_FILE as usize + 1]), Err((_, EnvError::TooLong))));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.env");
    std::fs::write(&path, "A=1\nB C\n").unwrap();
    let error = chain(environment(&[], std::slice::from_ref(&path), &[], host).unwrap_err());
    assert!(error.contains("line 2") && error.contains("app.env") && error.contains("B C"), "{error}");
    let missing = chain(environment(&[], &[directory.path().join("none")], &[], host).unwrap_err());
    assert!(missing.contains("none"), "{missing}");
}

#[test]
fn a_variable_has_a_name() {
    let given = |text: &str| environment(&[], &[], &texts(&[text]), host);
    for text in ["", "=", "=8300"] {
        let error = chain(given(text).unwrap_err());
        assert!(error.contains(&format!("`{text}`")), "{error}");
    }
    assert_eq!(given("A B=c").unwrap(), ["A B=c"], "no mistake where it is quoted");
}

proptest! {
    #[test]
    fn any_file_is_read(content in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&content);
    }

    #[test]
    fn each_name_is_there_once(
        image in prop::collection::vec("[A-C]{0,2}(=[a-c=]{0,3})?", 0..8),
        given in prop::collection::vec("[A-C]{1,2}(=[a-c=]{0,3})?", 0..8),
    ) {
        let all = environment(&image, &[], &given, host).unwrap();
        let mut names: Vec<_> = all.iter().map(|text| text.split('=').next().unwrap()).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        prop_assert_eq!(names.len(), count);
    }
}

fn chain(error: EnvironmentError) -> String {
    crate::error::CliError::from(error).chain()
}
