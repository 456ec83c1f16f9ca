//! Kernel modules of a Debian kernel package: the dependencies of a module, in load order.
//!
//! Debian ships `.ko.xz`; the lab loads a plain `.ko` by `finit_module`, so they are decompressed here.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Error;

/// One module, ready to load.
#[derive(Debug)]
pub struct Module {
    /// Name as the kernel knows it, with `_` and never `-`.
    pub name: String,
    /// The ELF object.
    pub object: Vec<u8>,
}

/// The modules of one kernel.
#[derive(Debug)]
pub struct ModuleTree {
    files: HashMap<String, PathBuf>,
}

impl ModuleTree {
    /// Reads the names below `root`, usually `lib/modules/<release>` of an unpacked package.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let mut files = HashMap::new();
        let mut pending = vec![root.to_path_buf()];
        while let Some(directory) = pending.pop() {
            for entry in std::fs::read_dir(&directory).map_err(Error::at(&directory))? {
                let entry = entry.map_err(Error::at(&directory))?;
                let path = entry.path();
                let kind = entry.file_type().map_err(Error::at(&path))?;
                if kind.is_dir() {
                    pending.push(path);
                } else if let Some(name) = module_name(&path) {
                    files.insert(name, path);
                }
            }
        }
        Ok(Self { files })
    }

    /// Reads `wanted` and all they depend on, in load order, each once. A name with no file is built into the kernel.
    pub fn load_order(&self, wanted: &[&str]) -> Result<Vec<Module>, Error> {
        let mut loaded = Vec::new();
        for name in wanted {
            self.visit(&name.replace('-', "_"), &mut loaded)?;
        }
        Ok(loaded)
    }

    fn visit(&self, name: &str, loaded: &mut Vec<Module>) -> Result<(), Error> {
        if loaded.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let Some(path) = self.files.get(name) else { return Ok(()) };
        let object = read_object(path)?;
        for dependency in dependencies(&object) {
            self.visit(&dependency, loaded)?;
        }
        loaded.push(Module { name: name.to_owned(), object });
        Ok(())
    }
}

fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let stem = file.strip_suffix(".ko.xz").or_else(|| file.strip_suffix(".ko"))?;
    Some(stem.replace('-', "_"))
}

fn read_object(path: &Path) -> Result<Vec<u8>, Error> {
    if path.extension().is_some_and(|extension| extension == "ko") {
        return std::fs::read(path).map_err(Error::at(path));
    }
    let output = Command::new("xz").arg("-dc").arg(path).output().map_err(Error::at(Path::new("xz")))?;
    if !output.status.success() {
        return Err(Error::Tool { tool: "xz", message: String::from_utf8_lossy(&output.stderr).into_owned() });
    }
    Ok(output.stdout)
}

/// The dependencies in the `.modinfo` section: `depends=a,b` and `softdep=pre: a b post: c`.
fn dependencies(object: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    for entry in object.split(|byte| *byte == 0).filter_map(|bytes| std::str::from_utf8(bytes).ok()) {
        if let Some(list) = entry.strip_prefix("depends=") {
            names.extend(list.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")));
        } else if let Some(list) = entry.strip_prefix("softdep=") {
            let pre = list.split_whitespace().skip_while(|word| *word != "pre:").skip(1);
            names.extend(pre.take_while(|word| !word.ends_with(':')).map(|name| name.replace('-', "_")));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_hard_and_soft_dependencies() {
        let object = b"\x7fELF\0\0name=x\0depends=libcrc32c,kvm-amd\0softdep=pre: crc32c post: late\0";
        assert_eq!(dependencies(object), ["libcrc32c", "kvm_amd", "crc32c"]);
    }

    #[test]
    fn names_follow_the_kernel() {
        assert_eq!(module_name(Path::new("a/virtio-rng.ko.xz")).as_deref(), Some("virtio_rng"));
        assert_eq!(module_name(Path::new("modules.order")), None);
    }
}
