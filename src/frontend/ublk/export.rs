//! A volume's export to this host, from its creation to its end.
//!
//! ```text
//! UblkControl --add--> PendingExport (number known, to be recorded) --start--> UblkExport --stop--> gone
//! ```
//!
//! Between the two steps the caller records (device number, volume) durably, so that a daemon that comes after a crash
//! knows which devices to clean up with [`UblkControl::delete_leftover`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;

use super::control::{Look, UblkControl};
use super::device::{Added, Device, DeviceSpec, block_path};
use super::error::UblkError;
use super::link::Links;
use super::queue::{Queue, Serving};
use super::usage::Observer;
use crate::io::clock::monotonic;
use crate::io::{BlockDevice, Local, ReactorHandle};
use crate::model::{VolumeId, VolumeName};
use crate::volume::Geometry;
use crate::volume::volume::SharedVolume;

/// How long looking at every process of the host may take.
const USAGE_DEADLINE: Duration = Duration::from_secs(10);

/// How old a look at all exports' users may be. A pass of the reconciler asks for each export in turn.
const LOOK_AGE_MAX: Duration = Duration::from_secs(1);

/// What to export, and how.
#[derive(Clone, Debug)]
pub struct UblkParams {
    /// The volume's name, for the link.
    pub name: VolumeName,
    /// The volume's id, for the mark that the device bears.
    pub volume: VolumeId,
    /// What the host may know of it.
    pub geometry: Geometry,
    /// The number in `/dev/ublkbN`; the kernel chooses when it is not given.
    pub id: Option<u32>,
    /// Requests in flight, 1 to 4096.
    pub depth: u16,
}

/// A device that has its number but can't be used yet. Dropping it deletes the device.
#[derive(Debug)]
pub struct PendingExport {
    added: Added,
    params: UblkParams,
}

/// A running export. Dropping it without [`UblkExport::stop`] stops and deletes the device in the background.
#[derive(Debug)]
pub struct UblkExport {
    device: Arc<Device>,
    name: VolumeName,
    links: Links,
    link: PathBuf,
    is_served: Arc<AtomicBool>,
    queue: Option<oneshot::Receiver<i32>>,
}

/// What is known of an export without asking anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UblkStatus {
    /// The device's number.
    pub id: u32,
    /// `/dev/ublkbN`.
    pub device: PathBuf,
    /// `/dev/volund/<volume>`.
    pub link: PathBuf,
    /// Whether its queue is served; `false` once somebody else has stopped the device.
    pub is_served: bool,
}

impl UblkControl {
    /// Makes the device, up to the point where its number is known.
    ///
    /// # Errors
    /// [`UblkError::Unavailable`] without the driver, [`UblkError::IdTaken`], or what the kernel says.
    pub async fn add_export(&self, params: UblkParams) -> Result<PendingExport, UblkError> {
        let spec = DeviceSpec {
            id: params.id,
            volume: params.volume,
            depth: params.depth,
            geometry: params.geometry,
        };
        let added = self.add(spec).await?;
        Ok(PendingExport { added, params })
    }
}

impl PendingExport {
    /// The number in `/dev/ublkbN`, to be recorded before [`PendingExport::start`].
    #[must_use]
    pub fn id(&self) -> u32 {
        self.added.device.id()
    }

    /// Starts to serve the device from `volume`, which is called on the reactor, and publishes its link. When this
    /// returns, the block device and the link are there.
    ///
    /// # Errors
    /// When the reactor no longer has the volume, or the kernel refuses; the device is then deleted in the background.
    pub async fn start<D, F>(
        self,
        links: &Links,
        reactor: &ReactorHandle,
        volume: F,
    ) -> Result<UblkExport, UblkError>
    where
        D: BlockDevice,
        F: FnOnce(&Local) -> Option<SharedVolume<D, Local>> + Send + 'static,
    {
        let Self { added, params } = self;
        let device = added.device;
        let id = device.id();
        let mut queue = serve(id, added.queue, params.depth, reactor, volume).await?;
        tokio::select! {
            started = device.start(added.unstarted) => started?,
            errno = &mut queue.ended => return Err(queue_failed(id, errno.unwrap_or(0))),
        }
        let link = links.publish(&params.name, &block_path(id))?;
        Ok(UblkExport {
            device,
            name: params.name,
            links: links.clone(),
            link,
            is_served: queue.is_served,
            queue: Some(queue.ended),
        })
    }
}

/// Sets the queue up on the reactor.
async fn serve<D, F>(
    id: u32,
    file: std::os::fd::OwnedFd,
    depth: u16,
    reactor: &ReactorHandle,
    volume: F,
) -> Result<Serving, UblkError>
where
    D: BlockDevice,
    F: FnOnce(&Local) -> Option<SharedVolume<D, Local>> + Send + 'static,
{
    let started = reactor.run(move |local| async move {
        let volume = volume(&local).ok_or(UblkError::NoVolume { id })?;
        let step = "mapped";
        Queue::start(file, depth, volume, &local).map_err(|source| UblkError::Queue {
            id,
            step,
            source,
        })
    });
    started.await.map_err(|_| UblkError::NoVolume { id })?
}

fn queue_failed(id: u32, errno: i32) -> UblkError {
    let source = std::io::Error::from_raw_os_error(errno);
    let step = "served";
    UblkError::Queue { id, step, source }
}

impl UblkExport {
    /// What is known of it.
    #[must_use]
    pub fn status(&self) -> UblkStatus {
        UblkStatus {
            id: self.device.id(),
            device: block_path(self.device.id()),
            link: self.link.clone(),
            is_served: self.is_served.load(Ordering::Acquire),
        }
    }

    /// Who on this host uses the device at this moment, in words; none when nobody does. Takes a look at every process,
    /// on the control thread.
    ///
    /// # Errors
    /// When the look takes too long.
    pub async fn user(&self) -> Result<Option<String>, UblkError> {
        let id = self.device.id();
        let look = move || Ok(Observer::default().users([id]).remove(&id));
        let control = self.device.control();
        control.call("look for users", USAGE_DEADLINE, look).await
    }

    /// As [`UblkExport::user`], but as of a moment ago: one look serves all exports for [`LOOK_AGE_MAX`]. For showing,
    /// not for deciding.
    ///
    /// # Errors
    /// When the look takes too long.
    pub async fn user_lately(&self) -> Result<Option<String>, UblkError> {
        let (id, control) = (self.device.id(), self.device.control().clone());
        // A task of its own: when the caller gives up, the next one waits for this look and does not ask for another.
        let looked = tokio::spawn(async move {
            let mut last = std::sync::Arc::clone(&control.last_look).lock_owned().await;
            if let Some(look) = last.as_ref()
                && look.at.elapsed() < LOOK_AGE_MAX
            {
                return Ok(look.users.get(&id).cloned());
            }
            let look = || Ok(Observer::default().all_users());
            let users = control.call("look for users", USAGE_DEADLINE, look).await?;
            let user = users.get(&id).cloned();
            let at = monotonic();
            *last = Some(Look { at, users });
            Ok(user)
        });
        let command = "look for users";
        let gone = |_| UblkError::ControlGone { command };
        looked.await.map_err(gone)?
    }

    /// Shows that the volume has grown to `bytes`.
    ///
    /// # Errors
    /// When the kernel can't: before 6.16 the size stays as it was until the device is made anew.
    pub async fn resize(&self, bytes: u64) -> Result<(), UblkError> {
        self.device.resize(bytes).await
    }

    /// Stops and deletes the device, whoever has it open: they get errors from then on. Ask [`UblkExport::user`] first
    /// where that matters. The volume has to be served until this returns. May be called again after an error.
    ///
    /// # Errors
    /// When the kernel does not do it in time.
    pub async fn stop(&mut self) -> Result<(), UblkError> {
        let path = block_path(self.device.id());
        self.links.withdraw(&self.name, &path)?;
        self.device.stop().await?;
        if let Some(ended) = self.queue.take() {
            // Every request was answered before STOP returned, so this is a matter of the reactor's next turn.
            let _ = ended.await;
        }
        self.device.delete().await
    }

    /// The link, `/dev/volund/<volume>`.
    #[must_use]
    pub fn link(&self) -> &Path {
        &self.link
    }
}

impl Drop for UblkExport {
    fn drop(&mut self) {
        if self.queue.is_some() {
            let path = block_path(self.device.id());
            if let Err(error) = self.links.withdraw(&self.name, &path) {
                tracing::warn!(volume = %self.name, %error, "a link could not be removed");
            }
        }
    }
}
