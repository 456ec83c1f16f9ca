//! Kernel modules, for kernels that have the drivers as modules: `/modules/load` lists plain `.ko` files in order.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// Path of the list.
pub const LIST: &str = "/modules/load";

/// The module files that a list names: one a line, relative ones in the list's folder; `#` starts a comment. The rest of
/// a line, after the file's name, holds the module's parameters.
pub fn parse_list(text: &str, folder: &Path) -> Vec<(PathBuf, String)> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (file, parameters) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            (folder.join(file), parameters.trim().to_owned())
        })
        .collect()
}

/// Loads every module that `list` names. A module that is loaded already, or whose file is missing because it is built
/// in, is skipped; other failures are logged.
pub fn load_listed(list: &Path) {
    let Ok(text) = std::fs::read_to_string(list) else { return };
    for (path, parameters) in parse_list(&text, list.parent().unwrap_or(Path::new("/"))) {
        match load(&path, &parameters) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::debug!(path = %path.display(), "a module's file is missing");
            }
            Err(error) => tracing::error!(path = %path.display(), %error, "cannot load a module"),
        }
    }
}

fn load(path: &Path, parameters: &str) -> io::Result<()> {
    let file = File::open(path)?;
    let parameters = CString::new(parameters)?;
    match nix::kmod::finit_module(file, &parameters, nix::kmod::ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_files_in_order() {
        let list = "virtio_pci.ko\n\n# comment\n  /lib/erofs.ko  # trailing\nvirtio_mem.ko force_bbm=1 x=2\n";
        let modules = parse_list(list, Path::new("/modules"));
        let expected =
            [("/modules/virtio_pci.ko", ""), ("/lib/erofs.ko", ""), ("/modules/virtio_mem.ko", "force_bbm=1 x=2")];
        assert_eq!(modules.len(), expected.len());
        for ((path, parameters), (want, want_parameters)) in modules.iter().zip(expected) {
            assert_eq!((path.as_path(), parameters.as_str()), (Path::new(want), want_parameters));
        }
    }

    #[test]
    fn a_missing_list_is_fine() {
        load_listed(Path::new("/nonexistent/load"));
    }
}
