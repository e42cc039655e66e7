//! [`UblkError`]: why an export on this host can't be made, kept or taken away.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why something about a ublk export failed.
#[derive(Debug, thiserror::Error)]
pub enum UblkError {
    /// The driver is not there, or not for us.
    #[error(
        "the ublk driver can't be used: {found}; run `modprobe ublk_drv` as root (it takes a kernel of at least \
         6.5 with CONFIG_BLK_DEV_UBLK)"
    )]
    Unavailable {
        /// What was found instead of a usable `/dev/ublk-control`.
        found: String,
    },
    /// The driver lacks something that volund needs.
    #[error(
        "the kernel's ublk driver does not offer {feature}, which volund needs; update to {needs}"
    )]
    FeatureMissing {
        /// The driver's name of it.
        feature: &'static str,
        /// The first kernel that has it.
        needs: &'static str,
    },
    /// The kernel did not answer a control command in time.
    #[error(
        "the kernel did not answer the ublk command `{command}` within {} s; it may still be at it",
        deadline.as_secs()
    )]
    Deadline {
        /// The command.
        command: &'static str,
        /// How long it was waited for.
        deadline: Duration,
    },
    /// An earlier command on the same device has not come back yet.
    #[error("an earlier command on \"/dev/ublkb{id}\" has not come back from the kernel yet")]
    Busy {
        /// The device.
        id: u32,
    },
    /// Too many control commands hang in the kernel to start another.
    #[error(
        "{hanging} ublk commands hang in the kernel, no further one is tried; see the kernel's log, and free \
         whoever holds the devices"
    )]
    Stuck {
        /// How many hang.
        hanging: usize,
    },
    /// The control thread is gone: a bug, or no thread could be made.
    #[error("the thread for ublk commands ended before it answered `{command}`")]
    ControlGone {
        /// The command.
        command: &'static str,
    },
    /// The kernel refused a control command.
    #[error("the kernel refused the ublk command `{command}`")]
    Command {
        /// The command.
        command: &'static str,
        /// Its reason.
        source: io::Error,
    },
    /// Someone else has the device number that the configuration asks for.
    #[error(
        "the device number {id} is taken, by another device or by a deleted one that somebody still has open; choose \
         another `id`, or leave it out"
    )]
    IdTaken {
        /// The number.
        id: u32,
    },
    /// A recorded device number now belongs to a device that is not this volume's.
    #[error("\"/dev/ublkc{id}\" is not the device that was made for this volume; it is left alone")]
    NotOurs {
        /// The number.
        id: u32,
    },
    /// A recorded device is being served by a process that lives.
    #[error("\"/dev/ublkb{id}\" is served by the running process {pid}; stop that daemon first")]
    ServedElsewhere {
        /// The number.
        id: u32,
        /// Who serves it.
        pid: i32,
    },
    /// The device's queue could not be set up on the reactor.
    #[error("the queue of \"/dev/ublkc{id}\" could not be {step}")]
    Queue {
        /// The device.
        id: u32,
        /// What failed.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The reactor that should serve the device is gone, or does not have the volume.
    #[error("the reactor that should serve \"/dev/ublkb{id}\" no longer has the volume")]
    NoVolume {
        /// The device.
        id: u32,
    },
    /// The stable link could not be made or removed.
    #[error("{:?} could not be {step}", path.display())]
    Link {
        /// The link, or its folder.
        path: PathBuf,
        /// What failed.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Something that is not a symbolic link stands where the stable link belongs.
    #[error("{:?} is not a symbolic link, so it is left alone; remove it", path.display())]
    LinkBlocked {
        /// The place.
        path: PathBuf,
    },
}

impl UblkError {
    /// The reason of a condition, one CamelCase word.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } | Self::FeatureMissing { .. } => "UblkUnavailable",
            Self::Deadline { .. } | Self::Busy { .. } | Self::Stuck { .. } => "UblkTimeout",
            Self::ControlGone { .. } | Self::Command { .. } | Self::Queue { .. } => "UblkFailed",
            Self::IdTaken { .. } => "UblkIdTaken",
            Self::NotOurs { .. } | Self::ServedElsewhere { .. } => "UblkDeviceForeign",
            Self::NoVolume { .. } => "VolumeGone",
            Self::Link { .. } | Self::LinkBlocked { .. } => "LinkFailed",
        }
    }

    /// The errno behind it, when the kernel gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Command { source, .. }
            | Self::Queue { source, .. }
            | Self::Link { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
