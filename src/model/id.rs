//! Names that people give and ids that volund makes.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

/// The longest name: a DNS label, so that names can become host names, file names and metric labels.
pub const NAME_LEN_MAX: usize = 63;

/// Marks which sort of object a [`Name`] or [`Id`] belongs to.
pub mod kind {
    /// A state of a volume's membership table.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum Generation {}
    /// A machine that runs one daemon.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum Node {}
    /// Capacity that replicas are carved from.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum Pool {}
    /// One copy of a volume, in a pool.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum Replica {}
    /// What a client reads and writes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum Volume {}
}

/// A validated object name: `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name<K> {
    text: Arc<str>,
    kind: PhantomData<fn() -> K>,
}

/// The name of a node.
pub type NodeName = Name<kind::Node>;
/// The name of a pool.
pub type PoolName = Name<kind::Pool>;
/// The name of a volume.
pub type VolumeName = Name<kind::Volume>;

/// Why a text is not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No characters at all.
    #[error("a name may not be empty")]
    Empty,
    /// More than [`NAME_LEN_MAX`] bytes.
    #[error("a name has at most {NAME_LEN_MAX} characters, this one has {0}")]
    TooLong(usize),
    /// A character outside `[a-z0-9-]`.
    #[error("a name consists of a-z, 0-9 and `-`, not {0:?}")]
    Character(char),
    /// A hyphen at one of the ends.
    #[error("a name starts and ends with a letter or a digit")]
    Edge,
}

impl<K> Name<K> {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl<K> FromStr for Name<K> {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if let Some(bad) = text
            .chars()
            .find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-'))
        {
            return Err(NameError::Character(bad));
        }
        if text.len() > NAME_LEN_MAX {
            return Err(NameError::TooLong(text.len()));
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err(NameError::Edge);
        }
        Ok(Self {
            text: text.into(),
            kind: PhantomData,
        })
    }
}

impl<K> fmt::Display for Name<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl<K> fmt::Debug for Name<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

impl<K> Serialize for Name<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de, K> Deserialize<'de> for Name<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl<K> ToSchema for Name<K> {}

impl<K> PartialSchema for Name<K> {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))
            .into()
    }
}

/// A random id that volund made once and stored on disk; it never changes and is never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id<K> {
    uuid: Uuid,
    kind: PhantomData<fn() -> K>,
}

/// Identifies one generation of a volume's membership table; numbers alone may repeat on another branch.
pub type GenerationId = Id<kind::Generation>;
/// Identifies a node's daemon in labels.
pub type NodeId = Id<kind::Node>;
/// Identifies a pool: written once into its marker file.
pub type PoolId = Id<kind::Pool>;
/// Identifies a replica: written into its label.
pub type ReplicaId = Id<kind::Replica>;
/// Identifies a volume: written into the label of each of its replicas.
pub type VolumeId = Id<kind::Volume>;

impl<K> Id<K> {
    /// A fresh id, ordered by creation time (UUID version 7, RFC 9562 section 5.7).
    #[must_use]
    pub fn generate() -> Self {
        Self::from_uuid(Uuid::now_v7())
    }

    /// The id of nothing: all zeroes, as in unused fields on disk.
    #[must_use]
    pub const fn nil() -> Self {
        Self::from_uuid(Uuid::nil())
    }

    /// Whether this is the id of nothing.
    #[must_use]
    pub const fn is_nil(self) -> bool {
        self.uuid.is_nil()
    }

    /// Wraps an existing UUID.
    #[must_use]
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self {
            uuid,
            kind: PhantomData,
        }
    }

    /// The bare UUID.
    #[must_use]
    pub const fn uuid(self) -> Uuid {
        self.uuid
    }
}

impl<K> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.uuid, f)
    }
}

impl<K> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.uuid, f)
    }
}

impl<K> FromStr for Id<K> {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::parse_str(text).map(Self::from_uuid)
    }
}

impl<K> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.uuid.serialize(serializer)
    }
}

impl<'de, K> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Uuid::deserialize(deserializer).map(Self::from_uuid)
    }
}

impl<K> ToSchema for Id<K> {}

impl<K> PartialSchema for Id<K> {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::Custom("uuid".to_owned())))
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        let check = |text: &str, expected: Result<(), NameError>| {
            assert_eq!(text.parse::<VolumeName>().map(drop), expected, "{text:?}");
        };
        check("db", Ok(()));
        check("a", Ok(()));
        check("vm1-root", Ok(()));
        check("", Err(NameError::Empty));
        check("-db", Err(NameError::Edge));
        check("db-", Err(NameError::Edge));
        check("../etc", Err(NameError::Character('.')));
        check("a/b", Err(NameError::Character('/')));
        check("nul\0", Err(NameError::Character('\0')));
        check("Db", Err(NameError::Character('D')));
        check(&"x".repeat(63), Ok(()));
        check(&"x".repeat(300), Err(NameError::TooLong(300)));
    }
}
