//! Only the folders named for KVM and the architecture may use them.

use std::path::Path;

use super::rust::Source;

/// Crates, and the prefixes of the only folders that may name them.
const CONFINED: [(&str, &[&str]); 3] = [
    ("kvm_bindings", &["vmm/src/kvm/", "vmm/src/arch/"]),
    ("kvm_ioctls", &["vmm/src/kvm/", "vmm/src/arch/"]),
    ("acpi_tables", &["vmm/src/arch/"]),
];

/// Names files that reach past them.
pub fn check(sources: &[Source]) -> Vec<String> {
    let product = sources.iter().filter(|source| !source.path.starts_with("xtask"));
    product.flat_map(|source| named_outside(source).map(|krate| wrong(&source.path, krate))).collect()
}

fn named_outside(source: &Source) -> impl Iterator<Item = &'static str> {
    let confined =
        CONFINED.into_iter().filter(|(_, folders)| !folders.iter().any(|folder| source.path.starts_with(folder)));
    confined.filter_map(|(krate, _)| source.has_word(krate).then_some(krate))
}

fn wrong(path: &Path, krate: &str) -> String {
    let folders = CONFINED.iter().find(|(known, _)| *known == krate).map(|(_, folders)| folders.join(" or "));
    format!("{} uses {krate}: expected only below {}", path.display(), folders.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::rust::parse;
    use super::*;

    #[test]
    fn kvm_is_used_in_its_folder_only() {
        let check = |path: &str| check(&[parse(path.as_ref(), "use kvm_bindings::KVM_API_VERSION;").unwrap()]);
        assert!(check("vmm/src/kvm/vcpu.rs").is_empty() && check("vmm/src/arch/x86_64/cpuid.rs").is_empty());
        assert_eq!(
            check("devices/src/bus.rs"),
            ["devices/src/bus.rs uses kvm_bindings: expected only below vmm/src/kvm/ or vmm/src/arch/"]
        );
    }
}
