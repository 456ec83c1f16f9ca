//! Where a copy goes: the rules of `docker cp`, for either direction.

/// What is at a destination; links count as what they lead to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum There {
    Folder,
    File,
    Nothing,
}

/// Where a copy goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Place {
    /// A folder that must exist.
    pub(super) folder: String,
    /// What the copy is called there; `.` is for what is in a folder, without it.
    pub(super) name: String,
}

/// Where what is at `source`, called `name`, goes if `destination` is what is `there`.
///
/// # Errors
/// The two do not fit; the text says why.
pub(super) fn place(
    is_folder: bool,
    source: &str,
    name: &str,
    there: There,
    destination: &str,
) -> Result<Place, String> {
    let contents = is_folder && is_contents(source);
    match there {
        There::Folder => {
            let name = if contents { "." } else { name };
            Ok(Place { folder: destination.to_owned(), name: name.to_owned() })
        }
        There::File if is_folder => Err(format!("`{destination}` is a file: a folder cannot be copied over it")),
        There::File if destination.ends_with('/') => Err(format!("`{destination}` is not a folder")),
        There::Nothing if !is_folder && destination.ends_with('/') => {
            Err(format!("there is no folder `{destination}`"))
        }
        There::File | There::Nothing => {
            let path = destination.trim_end_matches('/');
            let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
            if matches!(name, "" | "." | "..") {
                return Err(format!("there is no folder `{destination}`"));
            }
            let folder = if folder.is_empty() { "/" } else { folder };
            Ok(Place { folder: folder.to_owned(), name: name.to_owned() })
        }
    }
}

/// Whether a path means what is in a folder.
pub(super) fn is_contents(path: &str) -> bool {
    path == "." || path.ends_with("/.")
}

/// The last name of a path.
///
/// # Errors
/// It has none.
pub(super) fn name(path: &str) -> Result<String, String> {
    let last = path.trim_end_matches('/');
    let last = last.strip_suffix("/.").unwrap_or(last).trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    match last {
        "." if is_contents(path) => Ok(".".into()),
        "" | "." | ".." => Err(format!("`{path}` does not end in a name: `{path}/.` is what is in it")),
        last => Ok(last.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of Docker's documentation.
    #[test]
    fn a_copy_goes_where_docker_puts_it() {
        let to = |is_folder, source: &str, there, destination: &str| {
            let place = place(is_folder, source, &name(source).unwrap(), there, destination);
            place.map(|Place { folder, name }| format!("{folder} {name}")).map_err(drop)
        };
        let ok = |text: &str| Ok(text.to_owned());
        // A file.
        assert_eq!(to(false, "a/f", There::Nothing, "/x/y"), ok("/x y"));
        assert_eq!(to(false, "a/f", There::Nothing, "/x/y/"), Err(()));
        assert_eq!(to(false, "a/f", There::File, "/y"), ok("/ y"));
        assert_eq!(to(false, "a/f", There::File, "/y/"), Err(()));
        assert_eq!(to(false, "a/f", There::Folder, "/x"), ok("/x f"));
        assert_eq!(to(false, "f", There::Nothing, "y"), ok(". y"));
        // A folder.
        assert_eq!(to(true, "a/d", There::Nothing, "/x/y"), ok("/x y"));
        assert_eq!(to(true, "a/d/.", There::Nothing, "/x/y/"), ok("/x y"));
        assert_eq!(to(true, "a/d", There::File, "/x/y"), Err(()));
        assert_eq!(to(true, "a/d/", There::Folder, "/x"), ok("/x d"));
        assert_eq!(to(true, "a/d/.", There::Folder, "/x"), ok("/x ."));
        assert_eq!(to(true, ".", There::Folder, "/x"), ok("/x ."));
        assert_eq!(to(true, "a/d", There::Nothing, ".."), Err(()));
    }

    #[test]
    fn a_name_is_the_last_of_a_path() {
        for (path, expected) in [("a/b", "b"), ("a/b/", "b"), ("a/b/.", "b"), ("./b", "b"), (".", "."), ("./.", ".")] {
            assert_eq!(name(path).as_deref(), Ok(expected), "{path}");
        }
        for path in ["..", "a/..", "/", ""] {
            name(path).unwrap_err();
        }
    }
}
