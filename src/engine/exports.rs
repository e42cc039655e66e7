//! Making volumes reachable, and unreachable again.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use tokio::time::Instant;

use super::assemble::no_such_volume;
use super::engine::Engine;
use super::error::EngineError;
use super::live::{self, Live};
use crate::frontend::ublk::{UblkExport, UblkParams};
use crate::frontend::vhost_user::{ExportConfig, VhostUserExport, VolumeOnReactor};
use crate::io::Local;
use crate::io::planted::kill_point;
use crate::model::observed::{ObservedExport, Problem};
use crate::model::spec::ExportSpec;
use crate::model::{VolumeId, VolumeName};
use crate::volume::Geometry;

/// An export that exists.
#[derive(Debug)]
pub(super) struct LiveExport {
    spec: ExportSpec,
    read_only: bool,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    VhostUser(VhostUserExport),
    Ublk(UblkExport),
}

impl LiveExport {
    /// Who uses it at this moment, in words; none when nobody does.
    async fn user(&self) -> Option<String> {
        match &self.kind {
            Kind::VhostUser(export) => {
                let connected = export.status().connected;
                connected.then(|| "a front end is connected".to_owned())
            }
            // Who can't be asked counts as a user.
            Kind::Ublk(export) => export
                .user()
                .await
                .unwrap_or_else(|error| Some(error.to_string())),
        }
    }

    /// Shows the client that the volume has grown to `bytes`. Some: in words, why it will see that later.
    pub(super) async fn resize(&self, bytes: u64) -> Option<String> {
        match &self.kind {
            Kind::VhostUser(export) => {
                export.resize(bytes);
                let connected = export.status().connected;
                connected.then(|| "a guest sees it when it next attaches the disk".to_owned())
            }
            Kind::Ublk(export) => {
                let failed = export.resize(bytes).await.err()?;
                Some(format!(
                    "the block device shows it once the export is made anew ({})",
                    EngineError::from(failed)
                ))
            }
        }
    }

    /// How many clients came after the first.
    pub(super) fn reconnects(&self) -> u64 {
        match &self.kind {
            Kind::VhostUser(export) => export.status().connections.saturating_sub(1),
            // The block device has one client, the kernel, and that never goes.
            Kind::Ublk(_) => 0,
        }
    }

    /// Whether somebody used it a moment ago, and where it is.
    async fn observe(&self) -> ObservedExport {
        let (in_use, address, problem) = match &self.kind {
            Kind::VhostUser(export) => {
                let status = export.status();
                let address = format!("vhost-user {}", export.socket().display());
                (status.connected, address, None)
            }
            Kind::Ublk(export) => {
                let status = export.status();
                let address = format!("ublk {}", status.link.display());
                // Who can't be asked counts as a user.
                let user = export
                    .user_lately()
                    .await
                    .map_or(true, |user| user.is_some());
                let stopped = (!status.is_served).then(|| Problem {
                    reason: "DeviceStopped".to_owned(),
                    message: format!(
                        "{} was stopped by somebody else; take the export out of the files and put it back",
                        status.device.display()
                    ),
                });
                (user, address, stopped)
            }
        };
        ObservedExport {
            spec: self.spec.clone(),
            read_only: self.read_only,
            in_use,
            address,
            problem,
        }
    }
}

impl Live {
    /// What the export is like now or, while somebody changes it or the kernel does not answer until `deadline`, was
    /// like when last seen.
    pub(super) async fn observe_export(&self, deadline: Instant) -> Option<ObservedExport> {
        if let Ok(export) = self.export.try_lock() {
            let seen = match export.as_ref() {
                Some(export) => tokio::time::timeout_at(deadline, export.observe())
                    .await
                    .map(Some),
                None => Ok(None),
            };
            if let Ok(seen) = seen {
                *self
                    .export_seen
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = seen;
            }
        }
        self.export_seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Engine {
    /// Makes a running volume reachable in this way. An export with other parameters is replaced.
    ///
    /// # Errors
    /// `InUse` when it would have to be replaced under a client; what the frontend says.
    pub async fn ensure_export(
        &self,
        name: &VolumeName,
        export: &ExportSpec,
        read_only: bool,
    ) -> Result<(), EngineError> {
        let _turn = self.turn(name).await;
        let live = self.live(name).ok_or_else(|| no_such_volume(name))?;
        let mut current = live.export.lock().await;
        if let Some(existing) = current.as_ref() {
            if existing.spec == *export && existing.read_only == read_only {
                return Ok(());
            }
            if let Some(user) = existing.user().await {
                return Err(in_use(name, &user));
            }
            self.end_export(&live, &mut current).await?;
        }
        kill_point();
        self.set_read_only(&live, read_only).await?;
        let kind = match export {
            ExportSpec::None => return Ok(()),
            ExportSpec::VhostUser {
                socket,
                queues,
                depth,
                pin_guest_memory,
            } => {
                let socket = socket.clone().unwrap_or_else(|| self.default_socket(name));
                let config = ExportConfig {
                    socket,
                    queues: *queues,
                    depth: *depth,
                    pin_guest_memory: *pin_guest_memory,
                };
                let id = live.id;
                let volume = VolumeOnReactor::new(name.clone(), live.reactor.clone(), move |l| {
                    attach(l, id)
                });
                let export = VhostUserExport::start(&config, volume)?;
                self.watch_clients(export.vacancy());
                Kind::VhostUser(export)
            }
            ExportSpec::Ublk { id, depth } => {
                Kind::Ublk(self.start_ublk(name, &live, *id, *depth).await?)
            }
        };
        let made = LiveExport {
            spec: export.clone(),
            read_only,
            kind,
        };
        kill_point();
        let address = made.observe().await.address;
        tracing::info!(volume = %name, %address, "exported");
        *current = Some(made);
        drop(current);
        self.touch();
        Ok(())
    }

    /// A client that comes or goes decides what may be done to its volume: whoever waits for that wants to know at once.
    fn watch_clients(&self, mut vacancy: tokio::sync::watch::Receiver<bool>) {
        let shared = Arc::downgrade(&self.shared);
        tokio::spawn(async move {
            while vacancy.changed().await.is_ok() {
                match shared.upgrade() {
                    Some(shared) => shared.touch(),
                    None => return,
                }
            }
        });
    }

    fn default_socket(&self, name: &VolumeName) -> PathBuf {
        self.shared.config.runtime_dir.join(format!("{name}.sock"))
    }

    async fn set_read_only(&self, live: &Live, read_only: bool) -> Result<(), EngineError> {
        let id = live.id;
        let set = live.reactor.run(move |local| async move {
            if let Some(volume) = live::find(&local, id) {
                volume.set_read_only(read_only);
            }
        });
        set.await.map_err(|_| EngineError::stopping())
    }

    async fn start_ublk(
        &self,
        name: &VolumeName,
        live: &Live,
        number: Option<u32>,
        depth: u16,
    ) -> Result<UblkExport, EngineError> {
        let id = live.id;
        let found = live.reactor.run(move |local| async move {
            live::find(&local, id).map(|volume| volume.geometry())
        });
        let geometry: Geometry = found
            .await
            .map_err(|_| EngineError::stopping())?
            .ok_or_else(|| no_such_volume(name))?;
        let params = UblkParams {
            name: name.clone(),
            volume: id,
            geometry,
            id: number,
            depth,
        };
        let pending = self.shared.ublk.add_export(params).await?;
        // Before the device can be seen: a daemon that comes after a crash must know that it is ours.
        self.record_ublk(id, Some(pending.id())).await?;
        let links = &self.shared.links;
        let started = pending
            .start(links, &live.reactor, move |local| attach(local, id))
            .await;
        if started.is_err() {
            self.record_ublk(id, None).await?;
        }
        Ok(started?)
    }

    async fn record_ublk(&self, id: VolumeId, number: Option<u32>) -> Result<(), EngineError> {
        let mut record = self.shared.store.volume(id).unwrap_or_default();
        record.ublk = number;
        Ok(self.shared.store.set_volume(id, record).await?)
    }

    /// Makes a volume unreachable.
    ///
    /// # Errors
    /// `InUse` while a client is there.
    pub async fn remove_export(&self, name: &VolumeName) -> Result<(), EngineError> {
        let _turn = self.turn(name).await;
        match self.live(name) {
            Some(live) => self.remove_unused_export(name, &live).await,
            None => Ok(()),
        }
    }

    /// As [`Engine::remove_export`], for who has the volume's turn already.
    pub(super) async fn remove_unused_export(
        &self,
        name: &VolumeName,
        live: &Arc<Live>,
    ) -> Result<(), EngineError> {
        let mut current = live.export.lock().await;
        if let Some(export) = current.as_ref() {
            if let Some(user) = export.user().await {
                return Err(in_use(name, &user));
            }
            tracing::info!(volume = %name, "export removed");
            self.end_export(live, &mut current).await?;
        }
        drop(current);
        self.touch();
        Ok(())
    }

    /// Makes a volume unreachable whether a client is there or not.
    pub(super) async fn withdraw(&self, live: &Arc<Live>) -> Result<(), EngineError> {
        self.end_export(live, &mut *live.export.lock().await).await
    }

    /// Ends the export if there is one; one that can't be ended stays, so that it can be tried again.
    async fn end_export(
        &self,
        live: &Live,
        current: &mut Option<LiveExport>,
    ) -> Result<(), EngineError> {
        if let Some(Kind::Ublk(export)) = current.as_mut().map(|export| &mut export.kind) {
            export.stop().await?;
            *current = None;
            return self.record_ublk(live.id, None).await;
        }
        if let Some(Kind::VhostUser(export)) = current.take().map(|export| export.kind) {
            export.stop().await;
        }
        Ok(())
    }

    /// Deletes ublk devices that an earlier run left behind: ours by their recorded number and volume, or left alone.
    pub(super) async fn delete_leftovers(&self) {
        for (volume, record) in self.shared.store.volumes() {
            let Some(number) = record.ublk else { continue };
            match self.shared.ublk.delete_leftover(number, volume).await {
                Ok(deleted) => {
                    if deleted {
                        tracing::info!(%volume, number, "deleted a ublk device of an earlier run");
                    }
                    if let Err(error) = self.record_ublk(volume, None).await {
                        tracing::error!(%error, "a deleted ublk device could not be forgotten");
                    }
                }
                Err(error) => {
                    tracing::error!(%volume, number, error = %EngineError::from(error), "left behind")
                }
            }
        }
        if let Err(error) = self.shared.links.clean() {
            tracing::warn!(error = %EngineError::from(error), "stale links could not be removed");
        }
    }
}

fn in_use(name: &VolumeName, user: &str) -> EngineError {
    EngineError::in_use(format!(
        "volume \"{name}\" has a client ({user}): stop it or detach its disk first"
    ))
}

/// The volume, for a client that comes new: to that client everything before was a power loss (spec F2).
fn attach(local: &Local, id: VolumeId) -> Option<std::rc::Rc<live::LiveVolume>> {
    let volume = live::find(local, id)?;
    volume.device().reattached();
    Some(volume)
}
