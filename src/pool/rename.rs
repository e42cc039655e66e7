//! Giving a closed replica's volume another name, which is in its label.

use std::rc::Rc;
use std::time::Duration;

use tokio_uring::buf::BoundedBuf;
use tokio_uring::fs::File;

use super::directory::Directory;
use super::error::Fault;
use super::files::{newest, open_locked};
use super::listing::{Place, aligned};
use crate::io::slots::SLOT_SIZE;
use crate::model::VolumeName;
use crate::replica::Access;
use crate::replica::layout::LABEL_OFFSETS;

/// Rewrites the name in the label of a closed replica, durably, by the rules of every label update (spec L1): the
/// older slot, the next sequence number. Doing it twice is doing it once.
pub(super) async fn rename(
    directory: Rc<Directory>,
    place: Place,
    name: VolumeName,
    patience: Duration,
) -> Result<(), Fault> {
    let (folder, file_name) = place.locate(&directory);
    let path = folder.join(&file_name);
    let fd = open_locked(folder, &file_name, patience).await?;
    let size = super::files::stat(folder, &file_name)?.size;
    let (current, mut label, _) = newest(&fd, &path, size).await?;
    if label.replica != place.replica() {
        let found = label.replica;
        return Err(Fault::Misnamed { path, found });
    }
    if label.access() != Access::ReadWrite {
        return Err(Fault::ReadOnlyLabel { path });
    }
    if label.name == name {
        return Ok(());
    }
    label.name = name;
    label.slot_seq += 1;
    let older = LABEL_OFFSETS[1 - current];
    let (mut buffer, start) = aligned();
    buffer[start..start + SLOT_SIZE].copy_from_slice(&label.encode());
    let written = async {
        // The lock goes with the last copy of the fd, which is closed before the answer.
        let file = File::from_std(fd.into());
        let range = start..start + SLOT_SIZE;
        let (written, _) = file.write_all_at(buffer.slice(range), older).await;
        let synced = file.sync_all().await;
        file.close().await?;
        written.and(synced)
    };
    written
        .await
        .map_err(|error| Fault::io("write the label of", path, error))
}
