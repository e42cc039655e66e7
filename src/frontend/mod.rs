//! How clients reach a volume: as a block device of this host, or as a disk of a virtual machine.
//!
//! A frontend decodes requests, owns their buffers, hands them to a [`crate::volume::Volume`], and answers. It must
//! never know what lies below the volume.

pub mod ublk;
pub mod vhost_user;
