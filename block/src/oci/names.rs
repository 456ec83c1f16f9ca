//! Which of several images is meant by a name.

use super::words::{MAX_LIST, listed};
use crate::digest::Digest;

/// The images of `all` that `wanted` means: those with that very name or digest; else those whose whole name it is, as Docker
/// completes names; else those with that tag.
pub(super) fn named<'a, T>(
    all: &'a [T],
    wanted: &str,
    digest: impl Fn(&T) -> Option<Digest>,
    names: impl Fn(&'a T) -> Vec<&'a str>,
) -> Vec<&'a T> {
    let wanted_digest: Option<Digest> = wanted.parse().ok();
    let complete_wanted = complete(wanted);
    let fits = |fit: &dyn Fn(&str) -> bool| -> Vec<&'a T> {
        all.iter().filter(|image| names(image).into_iter().any(fit)).collect()
    };
    let by_digest: Vec<_> =
        all.iter().filter(|image| wanted_digest.is_some() && digest(image) == wanted_digest).collect();
    let tiers = [
        by_digest,
        fits(&|name| name == wanted),
        fits(&|name| complete(name) == complete_wanted),
        fits(&|name| tag(name) == Some(wanted)),
    ];
    tiers.into_iter().find(|found| !found.is_empty()).unwrap_or_default()
}

/// Images for a message, by what they are called; by their digests where several have one name.
pub(super) fn list(images: &[(String, Digest)]) -> String {
    let word = |(shown, digest): &(String, Digest)| match images.iter().filter(|(other, _)| other == shown).count() {
        1 => shown.clone(),
        _ => format!("{shown} {digest}"),
    };
    // One more than a message has room for, so that it says that there are more.
    let mut words: Vec<_> = images.iter().take(MAX_LIST + 1).map(word).collect();
    words.dedup();
    if words.is_empty() { "nothing".to_owned() } else { listed(&words) }
}

/// The tag in a name; a colon may also be before a registry's port.
fn tag(name: &str) -> Option<&str> {
    let name = name.split('@').next()?;
    name.rsplit_once(':').map(|(_, tag)| tag).filter(|tag| !tag.contains('/'))
}

/// A name with the registry, the folder and the tag that Docker takes where they are left out.
fn complete(name: &str) -> String {
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => ("docker.io", name),
    };
    let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
    let folder = if registry == "docker.io" && !path.contains('/') { "library/" } else { "" };
    let tag = if tag(path).is_some() || path.contains('@') { "" } else { ":latest" };
    format!("{registry}/{folder}{path}{tag}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        for (name, expected) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1", "docker.io/library/busybox:1"),
            ("index.docker.io/a/b", "docker.io/a/b:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:2", "localhost:5000/app:2"),
            ("quay.io/a/b/c@sha256:0", "quay.io/a/b/c@sha256:0"),
        ] {
            assert_eq!(complete(name), expected);
            assert_eq!(complete(expected), expected);
        }
    }

    #[test]
    fn the_closest_name_counts() {
        let digest = |number: &u8| Some(Digest::of(&[*number]));
        let find = |images: &[(u8, &str)], wanted: &str| -> Vec<u8> {
            let found = named(images, wanted, |(number, _)| digest(number), |(_, name)| vec![*name]);
            found.into_iter().map(|(number, _)| *number).collect()
        };
        let images = [
            (1, "docker.io/library/app:latest"),
            (2, "localhost/app:stable"),
            (3, "docker.io/library/stable:2"),
            (4, "latest"),
        ];
        assert_eq!(find(&images, "app"), [1]);
        assert_eq!(find(&images, "app:latest"), [1]);
        assert_eq!(find(&images, "localhost/app:stable"), [2]);
        assert_eq!(find(&images, "stable"), [2]);
        assert_eq!(find(&images, "stable:2"), [3]);
        assert_eq!(find(&images, "latest"), [4]);
        assert_eq!(find(&images[..3], "latest"), [1]);
        assert_eq!(find(&images, &digest(&3).unwrap().to_string()), [3]);
        assert!(find(&images, "app:2").is_empty());
        assert!(find(&[(1, "localhost:5000/app")], "5000/app").is_empty());
    }
}
