//! The places of the guest's kernel and initramfs if no argument names them.

use std::env;
use std::path::{Path, PathBuf};

use crate::error::CliError;

/// Folders for all users: an administrator's files come before the package's.
const SYSTEM_FOLDERS: [&str; 2] = ["/usr/local/lib/bellows", "/usr/lib/bellows"];

/// A file that a guest boots from.
struct GuestFile {
    description: &'static str,
    name: &'static str,
    variable: &'static str,
    option: &'static str,
}

const KERNEL: GuestFile =
    GuestFile { description: "the guest's kernel", name: "vmlinux", variable: "BELLOWS_KERNEL", option: "--kernel" };

const INITRAMFS: GuestFile = GuestFile {
    description: "the guest's initramfs",
    name: "initramfs.cpio",
    variable: "BELLOWS_INITRAMFS",
    option: "--initramfs",
};

/// The places to search.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// The values of `$BELLOWS_KERNEL` and `$BELLOWS_INITRAMFS`.
    kernel: Option<PathBuf>,
    initramfs: Option<PathBuf>,
    /// Searched in this order.
    folders: Vec<PathBuf>,
}

impl Places {
    /// The files that the environment names, then `$XDG_DATA_HOME/bellows` (`~/.local/share/bellows`),
    /// `/usr/local/lib/bellows` and `/usr/lib/bellows`.
    pub(crate) fn of_user() -> Self {
        Self::from_variables(|name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let own = data_home(&variable).map(|data| data.join("bellows"));
        Self {
            kernel: variable(KERNEL.variable),
            initramfs: variable(INITRAMFS.variable),
            folders: own.into_iter().chain(SYSTEM_FOLDERS.map(PathBuf::from)).collect(),
        }
    }

    /// The guest's kernel.
    ///
    /// # Errors
    /// No folder has it: [`CliError::NoGuestFile`].
    pub(crate) fn kernel(&self) -> Result<PathBuf, CliError> {
        self.find(&KERNEL, self.kernel.as_deref())
    }

    /// The initramfs with the agent.
    ///
    /// # Errors
    /// As [`Places::kernel`].
    pub(crate) fn initramfs(&self) -> Result<PathBuf, CliError> {
        self.find(&INITRAMFS, self.initramfs.as_deref())
    }

    fn find(&self, file: &GuestFile, named: Option<&Path>) -> Result<PathBuf, CliError> {
        if let Some(path) = named {
            // If it is missing, the boot fails and names it.
            return Ok(path.to_owned());
        }
        let places: Vec<_> = self.folders.iter().map(|folder| folder.join(file.name)).collect();
        match places.iter().find(|path| path.is_file()) {
            Some(path) => Ok(path.clone()),
            None => Err(CliError::NoGuestFile {
                description: file.description,
                places: places.iter().map(|path| format!("`{}`", path.display())).collect::<Vec<_>>().join(", "),
                option: file.option,
                variable: file.variable,
            }),
        }
    }
}

/// The folder of the user's data (XDG base directory specification: a relative path is ignored).
pub(crate) fn data_home(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let absolute = |name: &str| variable(name).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;

    /// Places that name the files, which need not exist.
    pub(crate) fn named(kernel: &str, initramfs: &str) -> Places {
        Places { kernel: Some(kernel.into()), initramfs: Some(initramfs.into()), folders: Vec::new() }
    }

    #[test]
    fn the_environment_comes_before_the_users_folder_and_that_before_the_systems() {
        let directory = tempfile::tempdir().unwrap();
        let (own, system) = (directory.path().join("own"), directory.path().join("system"));
        let places = |kernel: Option<&str>| Places {
            kernel: kernel.map(PathBuf::from),
            folders: vec![own.clone(), system.clone()],
            ..Places::default()
        };
        for folder in [&system, &own] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("vmlinux"), "").unwrap();
            assert_eq!(places(None).kernel().unwrap(), folder.join("vmlinux"));
        }
        assert_eq!(places(Some("k")).kernel().unwrap(), Path::new("k"));
    }

    #[test]
    fn a_missing_file_is_reported_with_all_places_and_a_command_that_makes_it() {
        let variable = |name: &str| (name == "HOME").then(|| PathBuf::from("/nowhere"));
        let places = Places { folders: vec!["/nowhere/a".into(), "/nowhere/b".into()], ..Places::default() };
        let error = places.initramfs().unwrap_err();
        let text = error.chain();
        for named in [
            "`/nowhere/a/initramfs.cpio`, `/nowhere/b/initramfs.cpio`",
            "cargo xtask guest",
            "--initramfs",
            "$BELLOWS_INITRAMFS",
        ] {
            assert!(text.contains(named), "{named}: {text}");
        }
        assert_eq!([true, false].map(|run| error.failure().exit_code(run)), [125, 2]);
        let folders = ["/nowhere/.local/share/bellows", "/usr/local/lib/bellows", "/usr/lib/bellows"];
        assert_eq!(Places::from_variables(variable).folders, folders.map(PathBuf::from));
    }

    #[test]
    fn the_users_data_follows_the_specification() {
        let home = |data: Option<&str>, home: Option<&str>| {
            data_home(|name| if name == "HOME" { home } else { data }.map(PathBuf::from))
        };
        assert_eq!(home(Some("/d"), Some("/h")), Some("/d".into()));
        assert_eq!(home(None, Some("/h")), Some("/h/.local/share".into()));
        assert_eq!(home(Some("rel"), Some("/h")), Some("/h/.local/share".into()));
        assert_eq!(home(Some("rel"), None), None);
    }
}
