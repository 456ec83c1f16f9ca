use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<User, ValueError> {
    text.parse()
}

fn number(number: u32) -> Account {
    Account::Number(number)
}

fn name(text: &str) -> Account {
    Account::Name(text.into())
}

#[test]
fn users_and_groups_are_names_or_numbers() {
    for (text, user, group) in [
        ("", number(0), None),
        ("0", number(0), None),
        ("root", name("root"), None),
        ("7", number(7), None),
        ("+7", number(7), None),
        ("007", number(7), None),
        ("7:8", number(7), Some(number(8))),
        ("app:8", name("app"), Some(number(8))),
        ("7:staff", number(7), Some(name("staff"))),
        ("app:staff", name("app"), Some(name("staff"))),
        ("app:", name("app"), None),
        (":staff", number(0), Some(name("staff"))),
        ("2147483647", number(MAX_ACCOUNT), None),
        // Not numbers, so they can only be names.
        ("0x10", name("0x10"), None),
        ("1e3", name("1e3"), None),
        ("٣", name("٣"), None),
        ("-", name("-"), None),
        (" 1", name(" 1"), None),
    ] {
        assert_eq!(parse(text), Ok(User { user, group }), "{text:?}");
    }
}

#[test]
fn numbers_that_are_nobodys_are_refused_with_their_value() {
    for value in ["2147483648", "4294967295", "4294967296", "18446744073709551616", "99999999999999999999999", "-1"] {
        for text in [value.to_owned(), format!("0:{value}"), format!("app:{value}")] {
            let error = parse(&text).unwrap_err();
            assert_eq!(error, ValueError::AccountNumber(value.into()), "{text:?}");
            assert!(error.to_string().contains(value), "{error}");
        }
    }
}

#[test]
fn what_cannot_be_in_the_images_files_is_refused() {
    for text in
        ["1:2:3", "a:b:", "a\nroot", "a\0", &"x".repeat(MAX_NAME + 1), &format!(":{}", "x".repeat(MAX_NAME + 1))]
    {
        assert_eq!(parse(text), Err(ValueError::User(excerpt(text))), "{text:?}");
    }
}

proptest! {
    #[test]
    fn what_is_printed_is_what_was_meant(text in "[-+0-9a-z:]{0,24}|\\PC{0,24}") {
        if let Ok(user) = parse(&text) {
            prop_assert_eq!(parse(&user.to_string()), Ok(user));
        }
    }

    #[test]
    fn no_number_is_taken_for_another(number in any::<u64>()) {
        let expected = u32::try_from(number).ok().filter(|&number| number <= MAX_ACCOUNT);
        prop_assert_eq!(parse(&number.to_string()).ok().map(|user| user.user), expected.map(Account::Number));
    }
}
