//! The names of quarantined files: they say which volume it was, and when it was removed.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;

use crate::model::{ReplicaId, VolumeId, VolumeName};

/// How the time is written in file names: RFC 3339, basic format, UTC.
const FILE_TIME: &str = "%Y%m%dT%H%M%SZ";

/// A quarantined replica. Displayed and parsed as its file name,
/// `<volume>@<20261121T091403Z>.<volume uuid>.<replica uuid>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QuarantineName {
    /// The volume's name when it was removed.
    pub volume: VolumeName,
    /// When it was removed, to the second.
    pub removed_at: Timestamp,
    /// The volume.
    pub volume_id: VolumeId,
    /// The replica.
    pub replica: ReplicaId,
}

/// A file name that is not that of a quarantined replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a name like \"db@20261121T091403Z.<volume uuid>.<replica uuid>\"")]
pub struct QuarantineNameError;

impl QuarantineName {
    /// The name of a replica that is removed now. The fraction of the second is dropped, so that the name survives
    /// being written and read.
    #[must_use]
    pub fn new(
        volume: VolumeName,
        volume_id: VolumeId,
        replica: ReplicaId,
        removed_at: Timestamp,
    ) -> Self {
        Self {
            volume,
            removed_at: Timestamp::from_second(removed_at.as_second()).unwrap_or(removed_at),
            volume_id,
            replica,
        }
    }

    /// What the commands call it, the same for all replicas of one removal: `db@2026-11-21T09:14:03Z`.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}@{}", self.volume, self.removed_at)
    }
}

impl fmt::Display for QuarantineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.removed_at.strftime(FILE_TIME);
        write!(
            f,
            "{}@{time}.{}.{}",
            self.volume, self.volume_id, self.replica
        )
    }
}

impl FromStr for QuarantineName {
    type Err = QuarantineNameError;

    fn from_str(text: &str) -> Result<Self, QuarantineNameError> {
        let parse = || {
            let (volume, rest) = text.split_once('@')?;
            let mut rest = rest.split('.');
            let (time, volume_id, replica) = (rest.next()?, rest.next()?, rest.next()?);
            let time = jiff::civil::DateTime::strptime(FILE_TIME, time).ok()?;
            let name = Self {
                volume: volume.parse().ok()?,
                removed_at: time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp(),
                volume_id: volume_id.parse().ok()?,
                replica: replica.parse().ok()?,
            };
            // Only the one spelling that we write, so that a name leads back to its file.
            (name.to_string() == text).then_some(name)
        };
        parse().ok_or(QuarantineNameError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "db@20261121T091403Z.01970000-0000-7000-8000-000000000002.01970000-0000-7000-8000-000000000001";

    #[test]
    fn names_survive_being_written_and_read() {
        let name: QuarantineName = FILE.parse().unwrap();
        assert_eq!(name.to_string(), FILE);
        assert_eq!(name.id(), "db@2026-11-21T09:14:03Z");
        let now = "2026-11-21T09:14:03.987654321Z".parse().unwrap();
        let made = QuarantineName::new(name.volume.clone(), name.volume_id, name.replica, now);
        assert_eq!(made, name);
    }

    #[test]
    fn other_names_are_refused() {
        let check =
            |text: &str| assert_eq!(text.parse::<QuarantineName>(), Err(QuarantineNameError));
        check("");
        check("db");
        check("db@");
        check(&FILE.replace("db", "Db"));
        check(&FILE.replace("db", ".."));
        check(&FILE.replace("T09", "T99"));
        check(&FILE.replace("2026", "26"));
        check(&FILE[..FILE.len() - 1]);
        check(&format!("{FILE}.bak"));
        check(&FILE.replace("-7000-", ""));
    }
}
