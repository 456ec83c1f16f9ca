//! Images in registries, and the credentials for them.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bellows_block::ImageName;
use bellows_block::oci::{AuthFile, CredentialSource, Proxies, RegistryOptions, RegistryReference, Retries, Retry};

use crate::error::CliError;

/// The prefix of an image's name in a registry.
pub(crate) const SCHEME: &str = "docker://";

/// The image in a registry that `source` names; `None` if it names another kind of source.
pub(crate) fn reference(source: &Path) -> Result<Option<RegistryReference>, CliError> {
    let name = source.to_str().and_then(|text| text.strip_prefix(SCHEME));
    Ok(name.map(str::parse).transpose()?)
}

/// The name by which the store knows an image of a registry: its whole reference, if that can be a name.
pub(crate) fn image_name(reference: &RegistryReference) -> Option<ImageName> {
    reference.to_string().parse().ok()
}

/// Default parents of registries' folders: ours, containerd's, Docker's and Podman's.
const HOSTS_FOLDERS: [&str; 4] =
    ["/etc/bellows/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d", "/etc/containers/certs.d"];

/// The registry client's settings. `hosts_folder` replaces the usual folders.
pub(crate) fn options(
    plain_http: bool,
    hosts_folder: Option<&Path>,
    notice: impl Fn(&Retry) + Send + Sync + 'static,
) -> Result<RegistryOptions, CliError> {
    let files = auth_files(|name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from));
    let files = files.into_iter().map(AuthFile::read).collect::<Result<Vec<_>, _>>()?;
    let hosts_folders = match hosts_folder {
        Some(folder) => vec![folder.to_owned()],
        None => HOSTS_FOLDERS.map(PathBuf::from).into(),
    };
    let retries = Retries { notice: Arc::new(notice), ..Retries::default() };
    let credentials = CredentialSource::Files(files.into());
    let proxies = Proxies::from_variables(|name| env::var(name).ok())?;
    Ok(RegistryOptions { plain_http, credentials, hosts_folders, proxies, retries, ..RegistryOptions::default() })
}

/// Files of credentials: the variable's alone, or else Podman's and Docker's usual files that exist.
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
    fn only_the_prefix_means_a_registry() {
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
        let variable = |name: &str| match name {
            "XDG_RUNTIME_DIR" => Some(path("run")),
            "HOME" => Some(path("home")),
            _ => None,
        };
        assert!(auth_files(variable).is_empty());
        let (podman, docker) = (path("run/containers/auth.json"), path("home/.docker/config.json"));
        fs::write(&docker, "{}").unwrap();
        assert_eq!(auth_files(variable), std::slice::from_ref(&docker));
        fs::write(&podman, "{}").unwrap();
        assert_eq!(auth_files(variable), [podman, docker]);
        // A named file must exist.
        let named = |name: &str| (name == "REGISTRY_AUTH_FILE").then(|| path("nowhere"));
        assert_eq!(auth_files(named), [path("nowhere")]);
        assert!(AuthFile::read(path("nowhere")).unwrap_err().to_string().contains("nowhere"));
    }
}
