//! What an instance finds beside its image: images of one layer, mounted read-only at a path.

use crate::agent;
use crate::values::{ImageId, ValueError, VolumePath};

/// Most volumes of one instance.
pub const MAX_VOLUMES: usize = 16;

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its content: a mounted image of one layer.
    pub image: ImageId,
    /// Its place.
    pub path: VolumePath,
}

impl Volume {
    /// The volumes of a request.
    ///
    /// # Errors
    /// [`ValueError::Identifier`], [`ValueError::VolumePath`], [`ValueError::SameVolume`], [`ValueError::TooMany`].
    pub fn parse_all(volumes: &[agent::Volume]) -> Result<Vec<Self>, ValueError> {
        let parse = |volume: &agent::Volume| Ok(Self { image: volume.image_id.parse()?, path: volume.path.parse()? });
        // Not more than are allowed are looked at.
        let parsed = volumes.iter().take(MAX_VOLUMES).map(parse).collect::<Result<Vec<_>, _>>()?;
        Self::check_count(volumes.len())?;
        Self::check_all(&parsed)?;
        Ok(parsed)
    }

    /// Checks that the volumes of an instance get along.
    ///
    /// # Errors
    /// [`ValueError::SameVolume`], [`ValueError::TooMany`].
    pub fn check_all(volumes: &[Self]) -> Result<(), ValueError> {
        Self::check_count(volumes.len())?;
        for (index, volume) in volumes.iter().enumerate() {
            if volumes[..index].iter().any(|other| other.path == volume.path) {
                return Err(ValueError::SameVolume(volume.path.to_string()));
            }
        }
        Ok(())
    }

    /// Checks that an instance with these volumes can have something else at `path`.
    ///
    /// # Errors
    /// [`ValueError::SameVolume`].
    pub fn check_beside(volumes: &[Self], path: &VolumePath) -> Result<(), ValueError> {
        match volumes.iter().any(|volume| volume.path == *path) {
            true => Err(ValueError::SameVolume(path.to_string())),
            false => Ok(()),
        }
    }

    fn check_count(count: usize) -> Result<(), ValueError> {
        if count > MAX_VOLUMES {
            return Err(ValueError::TooMany { what: "volumes", count, limit: MAX_VOLUMES });
        }
        Ok(())
    }

    /// It in a request.
    #[must_use]
    pub fn message(&self) -> agent::Volume {
        agent::Volume { image_id: self.image.to_string(), path: self.path.to_string(), ..Default::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(image: &str, path: &str) -> agent::Volume {
        agent::Volume { image_id: image.into(), path: path.into(), ..Default::default() }
    }

    #[test]
    fn a_volume_has_a_place_below_the_root_that_is_not_the_kernels() {
        for path in ["/data", "/a/b.c/..d", "/device", "/var/proc", &format!("/{}", "x".repeat(255))] {
            let parsed = Volume::parse_all(&[volume("data", path)]).unwrap();
            assert_eq!(parsed[0].message().path, path);
        }
        let long = format!("/{}", "x/".repeat(2047)) + "x";
        for path in [
            "",
            "/",
            "data",
            "./data",
            "//data",
            "/data/",
            "/a//b",
            "/a/./b",
            "/a/..",
            "/..",
            "/proc",
            "/proc/x",
            "/sys",
            "/dev/shm",
            "/a\0b",
            &format!("/{}", "x".repeat(256)),
            &long,
        ] {
            let refused = Volume::parse_all(&[volume("data", path)]).unwrap_err();
            assert!(matches!(refused, ValueError::VolumePath(_)), "{path:?}: {refused}");
        }
    }

    #[test]
    fn volumes_get_along() {
        assert!(Volume::parse_all(&[volume("a", "/a"), volume("a", "/b"), volume("b", "/a/b")]).is_ok());
        let twice = Volume::parse_all(&[volume("a", "/a"), volume("b", "/a")]);
        assert_eq!(twice, Err(ValueError::SameVolume("/a".into())));
        let one = Volume::parse_all(&[volume("a", "/a")]).unwrap();
        assert!(Volume::check_beside(&one, &"/a/b".parse().unwrap()).is_ok());
        assert_eq!(Volume::check_beside(&one, &"/a".parse().unwrap()), twice.map(drop));
        assert!(matches!(Volume::parse_all(&[volume("../a", "/a")]), Err(ValueError::Identifier(_))));
        let many: Vec<_> = (0..=MAX_VOLUMES).map(|number| volume("a", &format!("/{number}"))).collect();
        assert!(Volume::parse_all(&many[1..]).is_ok());
        let limit = ValueError::TooMany { what: "volumes", count: MAX_VOLUMES + 1, limit: MAX_VOLUMES };
        assert_eq!(Volume::parse_all(&many), Err(limit));
    }
}
