//! Images in registries, and who to be there.

use std::env;
use std::path::{Path, PathBuf};

use bellows_block::oci::{AuthFile, Credentials, RegistryOptions, RegistryReference};

use crate::error::CliError;

/// What comes before an image's name to say that it is in a registry.
const SCHEME: &str = "docker://";

/// The image in a registry that `source` names; `None` where it means something else.
pub(crate) fn reference(source: &Path) -> Result<Option<RegistryReference>, CliError> {
    let name = source.to_str().and_then(|text| text.strip_prefix(SCHEME));
    Ok(name.map(str::parse).transpose()?)
}

/// How to speak to the registry of `reference`.
pub(crate) fn options(reference: &RegistryReference, plain_http: bool) -> Result<RegistryOptions, CliError> {
    let files = auth_files(|name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from));
    Ok(RegistryOptions { plain_http, credentials: credentials(&files, reference)?, ..RegistryOptions::default() })
}

/// The first file that knows the registry says it.
fn credentials(files: &[PathBuf], reference: &RegistryReference) -> Result<Option<Credentials>, CliError> {
    for file in files {
        if let Some(credentials) = AuthFile::read(file)?.credentials(reference)? {
            return Ok(Some(credentials));
        }
    }
    Ok(None)
}

/// Where credentials are: what the variable says and nothing else, or else Podman's and Docker's usual files, if they are there.
fn auth_files(variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    if let Some(file) = variable("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let podman = variable("XDG_RUNTIME_DIR").map(|directory| directory.join("containers/auth.json"));
    let docker = variable("DOCKER_CONFIG").or_else(|| variable("HOME").map(|home| home.join(".docker")));
    let docker = docker.map(|directory| directory.join("config.json"));
    [podman, docker].into_iter().flatten().filter(|file| file.exists()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_what_says_so_is_in_a_registry() {
        let named = |text: &str| reference(Path::new(text)).map(|reference| reference.map(|r| r.to_string()));
        assert_eq!(named("docker://busybox").unwrap().as_deref(), Some("docker.io/library/busybox:latest"));
        assert_eq!(named("busybox").unwrap(), None);
        assert!(named("docker://").is_err());
    }

    #[test]
    fn credentials_come_from_the_usual_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir_all(path("run/containers")).unwrap();
        fs::create_dir_all(path("home/.docker")).unwrap();
        let auths =
            |host: &str, user: &str| format!(r#"{{"auths":{{"{host}":{{"username":"{user}","password":"p"}}}}}}"#);
        fs::write(path("home/.docker/config.json"), auths("r.io", "docker")).unwrap();
        let variable = |name: &str| match name {
            "XDG_RUNTIME_DIR" => Some(path("run")),
            "HOME" => Some(path("home")),
            _ => None,
        };
        let user = |variable: &dyn Fn(&str) -> Option<PathBuf>| {
            credentials(&auth_files(variable), &"r.io/a".parse().unwrap()).map(|found| found.map(|found| found.user))
        };
        assert_eq!(user(&variable).unwrap().as_deref(), Some("docker"));
        fs::write(path("run/containers/auth.json"), auths("other.io", "podman")).unwrap();
        assert_eq!(user(&variable).unwrap().as_deref(), Some("docker"));
        fs::write(path("run/containers/auth.json"), auths("r.io", "podman")).unwrap();
        assert_eq!(user(&variable).unwrap().as_deref(), Some("podman"));
        assert_eq!(user(&|_| None).unwrap(), None);
        // What was named has to be there.
        let error = user(&|name| (name == "REGISTRY_AUTH_FILE").then(|| path("nowhere"))).unwrap_err();
        assert!(error.to_string().contains("nowhere"), "{error}");
    }
}
