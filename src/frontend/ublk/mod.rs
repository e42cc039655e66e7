//! Exports to this host: a volume becomes `/dev/ublkbN`, with the stable name `/dev/volund/<volume>`.
//!
//! libublk drives the control device, from one thread of its own ([`control`]); no call that can hang in the kernel is
//! made anywhere else. The queue is ours ([`queue`], hop 1), on the volume's reactor, so that many devices share a thread.
//! Must never stop or delete a device that volund did not make. Start with [`export`].
//!
//! Devices are made with `UBLK_F_USER_COPY`: a request's data is copied between the request and a buffer that is taken
//! from the reactor's pool when the request comes and given back when it is answered. The alternative, buffers that are
//! handed to the kernel per tag beforehand, would tie up depth times the largest request per device (64 MiB at 128 x
//! 512 KiB) once they have been used, and would let the kernel write the next request into memory that a slow member
//! of a mirror may still be reading from (spec W2). The price is one system call per request with data.
//!
//! Devices are made without recovery flags: when the daemon dies, requests fail with EIO instead of waiting for it.

mod control;
mod descriptor;
mod device;
mod error;
mod export;
mod leftover;
mod link;
mod occupancy;
mod params;
mod queue;
mod usage;

pub use control::UblkControl;
pub use error::UblkError;
pub use export::{PendingExport, UblkExport, UblkParams, UblkStatus};
pub use link::Links;

/// The most data that one request carries, bytes: the largest buffer that a reactor's pool recycles.
const DATA_LEN_MAX: u32 = 1 << 20;
