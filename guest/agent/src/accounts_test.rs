use proptest::prelude::*;

use super::*;

const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
    # a comment:x:5:5::/comment:\n\
    broken\n\
    letters:x:abc:5::/letters:/bin/sh\n\
    nogroup:x:6\n\
    \n\
    :x:7:7::/nameless:/bin/sh\n\
    \xff\xfe:x:8:8::/bytes:/bin/sh\n\
    \x20 app:x:1000:2000:App:/home/app:/bin/sh\r\n\
    app:x:1:1::/second:/bin/sh\n\
    alias:x:1000:3000::/home/alias:/bin/sh\n\
    1234:x:77:78:digits:/digits:/bin/sh\n\
    homeless:x:1001:1001\n\
    max:x:4294967295:0::/root:/bin/sh\n\
    over:x:4294967296:0::/root:/bin/sh\n\
    minus:x:-1:0::/root:/bin/sh\n\
    maxgroup:x:1002:4294967295::/:/bin/sh\n\
    badgroup:x:1003:1003::/:/bin/sh\n\
    last:x:1004:1004::/last:/bin/sh";

const GROUP: &[u8] = b"root:x:0:\n\
    wheel:x:10:root\n\
    # note:x:11:app\n\
    nonsense:x:many:app\n\
    staff:x:2000:\n\
    extra:x:3000:other,app\n\
    again:x:3000:app\n\
    app:x:4000:app,other\n\
    own:x:2000:app\n\
    similar:x:5000:ap,apps,application\n\
    huge:x:4294967295:badgroup\n\
    max:x:4294967295\n\
    short:x:12\n";

fn look_up(user: &str) -> Result<Credentials, AccountError> {
    resolve(&user.parse().unwrap(), PASSWD, GROUP)
}

#[test]
fn users_have_their_groups_and_their_home() {
    for (user, uid, groups, home) in [
        ("", 0, &[0, 10][..], "/root"),
        ("root", 0, &[0, 10], "/root"),
        ("0", 0, &[0, 10], "/root"),
        ("app", 1000, &[2000, 3000, 4000], "/home/app"),
        ("1000", 1000, &[2000, 3000, 4000], "/home/app"),
        // With a requested group they have only that one.
        ("app:staff", 1000, &[2000], "/home/app"),
        ("1000:extra", 1000, &[3000], "/home/app"),
        ("app:0", 1000, &[0], "/home/app"),
        ("app:5555", 1000, &[5555], "/home/app"),
        (":extra", 0, &[3000], "/root"),
        // The first name of a number gives its home directory.
        ("alias", 1000, &[3000], "/home/app"),
        // Not listed.
        ("4242", 4242, &[0], "/"),
        ("4242:4343", 4242, &[4343], "/"),
        ("4242:wheel", 4242, &[10], "/"),
        // A number, even if a user is called by it.
        ("1234", 1234, &[0], "/"),
        ("77", 77, &[78], "/digits"),
        ("homeless", 1001, &[1001], "/"),
        ("last", 1004, &[1004], "/last"),
        ("0:short", 0, &[12], "/root"),
        // Its group is not used.
        ("maxgroup:5", 1002, &[5], "/"),
    ] {
        let found = look_up(user).unwrap();
        assert_eq!((found.uid, found.gid, &found.groups[..], &*found.home), (uid, groups[0], groups, home), "{user:?}");
    }
}

#[test]
fn without_files_numbers_suffice() {
    let nobody = |user: &str| resolve(&user.parse().unwrap(), b"", b"");
    let root = Credentials { uid: 0, gid: 0, groups: vec![0], home: "/".into() };
    assert_eq!(nobody(""), Ok(root));
    assert_eq!(nobody("7:8").unwrap().groups, [8]);
    assert_eq!(nobody("root"), Err(AccountError::UnknownUser("root".into())));
    assert_eq!(nobody("0:root"), Err(AccountError::UnknownGroup("root".into())));
}

#[test]
fn an_error_names_a_user_or_group_with_a_bad_entry() {
    for user in ["nosuch", "letters", "nogroup", "broken", "# a comment", "App"] {
        assert_eq!(look_up(user), Err(AccountError::UnknownUser(user.into())));
        assert!(look_up(user).unwrap_err().to_string().contains(user));
    }
    for group in ["nosuch", "nonsense", "# note"] {
        assert_eq!(look_up(&format!("app:{group}")), Err(AccountError::UnknownGroup(group.into())));
    }
}

#[test]
fn numbers_that_would_leave_root_in_place_are_refused() {
    for (user, number) in [
        ("max", "4294967295"),
        ("over", "4294967296"),
        ("minus", "-1"),
        ("maxgroup", "4294967295"),
        ("1002", "4294967295"),
        ("badgroup", "4294967295"),
        ("app:max", "4294967295"),
    ] {
        let error = look_up(user).unwrap_err();
        assert!(matches!(error, AccountError::Number { .. }), "{user}: {error}");
        assert!(error.to_string().contains(user) && error.to_string().contains(number), "{user}: {error}");
    }
}

#[test]
fn the_groups_of_a_process_have_a_limit() {
    let group: String = (1..=MAX_GROUPS).map(|gid| format!("g:x:{gid}:app\n")).collect();
    let user = "app".parse().unwrap();
    let error = resolve(&user, b"app:x:1:0::/:", group.as_bytes()).unwrap_err();
    assert_eq!(error, AccountError::TooManyGroups { user: "app".into(), count: MAX_GROUPS + 1 });
    let fits = resolve(&user, b"app:x:1:1::/:", group.as_bytes()).unwrap();
    assert_eq!(fits.groups.len(), MAX_GROUPS);
}

proptest! {
    /// Whatever an image's files hold, no user has a number that the kernel reserves.
    #[test]
    fn no_user_has_a_number_that_means_no_change(
        user in "[a-c]|[0-9]{1,3}|[a-c]:[a-c]|[0-9]:[0-9]",
        passwd in "([a-c0-9]:x:(-?[0-9]{1,3}|4294967295|4294967296|x?):[0-9]{1,11}:::?\n?){0,6}",
        group in "([a-c0-9]:x:(-?[0-9]{1,3}|4294967295|x?):[a-c,]{0,5}\n?){0,6}",
    ) {
        let user: User = user.parse().unwrap();
        if let Ok(found) = resolve(&user, passwd.as_bytes(), group.as_bytes()) {
            for number in found.groups.iter().chain([&found.uid, &found.gid]) {
                prop_assert!(*number <= bellows_protocol::user::MAX_ACCOUNT);
            }
            prop_assert_eq!(found.groups[0], found.gid);
            if let Account::Number(uid) = user.user {
                prop_assert_eq!(found.uid, uid);
            }
        }
    }

    #[test]
    fn any_bytes_are_read(passwd in prop::collection::vec(any::<u8>(), 0..200), group in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = resolve(&"app".parse().unwrap(), &passwd, &group);
    }
}
