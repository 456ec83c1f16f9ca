//! What there is to say of images and layers, as plain data: the same types for the library, for `--json` and for servers.
//!
//! In JSON, sizes are numbers of bytes; digests and names are text. What nobody asked about is left out.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Serialize;

use crate::digest::Digest;
use crate::oci::ImageConfig;
use crate::store::ImageName;

/// An image, with an `L` for each of its layers.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct ImageReport<L> {
    /// Digest of its manifest.
    pub digest: Digest,
    /// Its names, sorted; its digest is not among them.
    pub names: Vec<ImageName>,
    /// How to run it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<ImageConfig>,
    /// Its layers, lowest first, and the fix-up on top of them if there is one.
    pub layers: Vec<L>,
    /// The topmost of `layers`, where it is not the image's own: it makes a stack of the others show what unpacking them gives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fixup: Option<Digest>,
    /// Where it is mounted on this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mounts: Option<Vec<MountReport>>,
}

/// A mount of an image on this host.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct MountReport {
    /// Where it is.
    pub directory: PathBuf,
    /// What it keeps in memory beside the page cache of the layers' files.
    pub cached_bytes: u64,
}

/// A layer.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct LayerReport {
    /// Its name.
    pub digest: Digest,
    /// Size of its file; 0 with an error.
    pub bytes: u64,
    /// What a check has found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Who uses a layer, and how much of it is in memory.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct LayerUsage {
    /// Its name.
    pub digest: Digest,
    /// Size of its file.
    pub bytes: u64,
    /// Of that, in the host's page cache.
    pub resident_bytes: u64,
    /// Numbers of the processes that use it, each of which is a VM.
    pub users: BTreeSet<u32>,
}

/// What the removal of an image's name did.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct RemovedReport {
    /// The name.
    pub name: ImageName,
    /// It was the last one: nothing is left of the image but its layers.
    pub image_removed: bool,
}

#[cfg(test)]
mod tests {
    use serde_json::{json, to_string};

    use super::*;
    use crate::store::{Collected, LayerDetails};
    use crate::stored_file::StoredFile;

    /// What scripts read: every name, and the order of a person's reading.
    #[test]
    fn reports_are_what_scripts_know() {
        let (digest, name) = (Digest::of(b""), "app:1".parse::<ImageName>().unwrap());
        let text = digest.to_string();
        let layer = LayerReport { digest, bytes: 4096, error: None };
        let mut image = ImageReport {
            digest,
            names: vec![name.clone()],
            config: None,
            layers: vec![layer],
            fixup: None,
            mounts: None,
        };
        let json = format!(r#"{{"digest":"{text}","names":["app:1"],"layers":[{{"digest":"{text}","bytes":4096}}]}}"#);
        assert_eq!(to_string(&image).unwrap(), json);

        image.layers[0].error = Some("it is damaged".into());
        image.fixup = Some(digest);
        image.mounts = Some(vec![MountReport { directory: "/mnt".into(), cached_bytes: 8192 }]);
        let image = serde_json::to_value(&image).unwrap();
        assert_eq!(image["layers"][0]["error"], "it is damaged");
        assert_eq!(image["fixup"], *text);
        assert_eq!(image["mounts"], json!([{ "directory": "/mnt", "cached_bytes": 8192 }]));

        let usage = LayerUsage { digest, bytes: 4096, resident_bytes: 1024, users: [3, 2].into() };
        let json = format!(r#"{{"digest":"{text}","bytes":4096,"resident_bytes":1024,"users":[2,3]}}"#);
        assert_eq!(to_string(&usage).unwrap(), json);

        let layer = StoredFile { digest, path: "/l".into(), bytes: 4096 };
        let details = LayerDetails { layer, sha256: digest, opaque_root: true, verity: None };
        let json = format!(r#"{{"digest":"{text}","path":"/l","bytes":4096,"sha256":"{text}","verity":null}}"#);
        assert_eq!(to_string(&details).unwrap(), json);

        let removed = RemovedReport { name, image_removed: true };
        assert_eq!(to_string(&removed).unwrap(), r#"{"name":"app:1","image_removed":true}"#);

        let collected = Collected { layers: vec![digest], in_use: Vec::new(), bytes: 4 };
        assert_eq!(to_string(&collected).unwrap(), format!(r#"{{"layers":["{text}"],"in_use":[],"bytes":4}}"#));
    }
}
