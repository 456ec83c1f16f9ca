//! The versions of states.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The version of a state's type: the first field of each state that is saved. Written as the number `N`; reading another
/// number fails, so a state in memory is always of the version that this code knows.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Version<const N: u32>;

impl<const N: u32> Serialize for Version<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(N)
    }
}

impl<'de, const N: u32> Deserialize<'de> for Version<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u32::deserialize(deserializer)? {
            version if version == N => Ok(Self),
            version => Err(D::Error::custom(format_args!("the state's version is {version}: expected {N}"))),
        }
    }
}
