//! The vhost-user-blk frontend: a volume as a virtio disk of a virtual machine, over a unix socket.
//!
//! Owns the socket, the protocol, the guest's memory and the walking of its virtqueues; must never trust anything that a
//! front end or a guest says, and never touch another volume because of it. A client's protocol runs on a thread of its
//! own (`handler`), its queues on the volume's reactor (`session`, `queue`). Start with [`export`], then `queue`.

mod address;
mod chain;
mod device;
mod event;
pub mod export;
pub mod fuzz;
mod handler;
mod memory;
mod pin;
mod queue;
mod request;
mod ring;
mod session;
mod socket;
mod status;

pub use device::feature;
pub use export::{ExportConfig, VhostUserExport, VolumeOnReactor};
pub use socket::SocketError;
pub use status::{ExportStatus, QueueStatus};
