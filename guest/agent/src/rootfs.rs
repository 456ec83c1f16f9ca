//! An instance's root file system: the image's layers, and above them a tmpfs in the instance's partition.

use std::path::{Path, PathBuf};

use nix::mount::MsFlags;

use crate::error::{AgentError, Result};
use crate::placement::Placement;
use crate::tmpfs::Capacity;
use crate::{files, mounts};

/// Longest option string that `mount(2)` takes.
const MAX_OPTIONS: usize = 4095;

/// The mounts of one instance.
#[derive(Debug)]
pub struct RootFs {
    scratch: PathBuf,
    root: PathBuf,
}

impl RootFs {
    /// The mounts of an instance, below `folder`.
    pub fn below(folder: &Path) -> Self {
        Self { scratch: folder.join("s"), root: folder.join("root") }
    }

    /// Mounts a tmpfs of this capacity whose pages lie in `placement`, and over `layers`, lowest first, an overlay that
    /// writes to it.
    ///
    /// # Errors
    /// [`AgentError::Path`]; then one of the two may be mounted.
    pub fn mount(&self, layers: &[PathBuf], placement: Placement, capacity: Capacity) -> Result<()> {
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
        mounts::mount_at(Some("scratch"), &self.scratch, "tmpfs", flags, &scratch_options(placement, capacity))?;
        let (upper, work) = (self.scratch.join("u"), self.scratch.join("w"));
        files::make_directory(&upper)?;
        files::make_directory(&work)?;
        let options = overlay_options(layers, &upper, &work);
        if options.len() > MAX_OPTIONS {
            let source = std::io::Error::from_raw_os_error(libc::E2BIG);
            return Err(AgentError::Path { action: "mount", path: self.root.clone(), source });
        }
        mounts::mount_at(Some("overlay"), &self.root, "overlay", flags, &options)
    }

    /// The mount point.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Unmounts both if mounted; afterwards the tmpfs's pages are free.
    ///
    /// # Errors
    /// [`AgentError::Path`].
    pub fn unmount(&self) -> Result<()> {
        mounts::unmount(&self.root)?;
        mounts::unmount(&self.scratch)
    }
}

fn scratch_options(placement: Placement, capacity: Capacity) -> String {
    let place = placement.tmpfs_option().map(|option| format!(",{option}")).unwrap_or_default();
    format!("mode=0755{place},{}", capacity.options().join(","))
}

/// Overlayfs takes the topmost lower folder first. `volatile`: a tmpfs is not durable, so a sync is useless.
fn overlay_options(layers: &[PathBuf], upper: &Path, work: &Path) -> String {
    let lower: Vec<_> = layers.iter().rev().map(|layer| layer.to_string_lossy()).collect();
    format!("lowerdir={},upperdir={},workdir={},volatile", lower.join(":"), upper.display(), work.display())
}

#[cfg(test)]
mod tests {
    use bellows_protocol::values::{MAX_IDENTIFIER, MAX_LAYERS, MAX_SERIAL, Node};

    use super::*;

    #[test]
    fn the_topmost_layer_comes_first() {
        let layers = [PathBuf::from("/run/l/base"), PathBuf::from("/run/l/top")];
        let options = overlay_options(&layers, Path::new("/s/u"), Path::new("/s/w"));
        assert_eq!(options, "lowerdir=/run/l/top:/run/l/base,upperdir=/s/u,workdir=/s/w,volatile");
    }

    #[test]
    fn the_largest_image_fits_the_mount_options() {
        let layers = vec![Path::new(crate::image::LAYERS).join("x".repeat(MAX_SERIAL)); MAX_LAYERS];
        let scratch = Path::new(crate::instance::FOLDER).join("x".repeat(MAX_IDENTIFIER)).join("s");
        assert!(overlay_options(&layers, &scratch.join("u"), &scratch.join("w")).len() <= MAX_OPTIONS);
    }

    #[test]
    fn scratch_pages_lie_in_the_partition() {
        let node = Node::try_from(3).unwrap();
        let options = |placement| scratch_options(placement, Capacity { bytes: 4096, inodes: 9 });
        let size = "size=4096,nr_inodes=9";
        assert_eq!(options(Placement::Policy(node)), format!("mode=0755,mpol=bind=static:3,{size}"));
        assert_eq!(options(Placement::Private(node)), format!("mode=0755,private_node=3,{size}"));
        assert_eq!(options(Placement::Base), format!("mode=0755,{size}"));
    }
}
