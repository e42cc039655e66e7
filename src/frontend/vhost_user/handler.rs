//! The vhost-user protocol of one client: what each message means for the session on the reactor.
//!
//! Runs on the client's own thread, which may block. An error that a method returns ends the connection, after the
//! front end got a negative acknowledgement if it asked for one: going on with half a configuration helps nobody.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{self, Error, GpuBackend, VhostUserBackendReqHandlerMut};

use super::address::{MemoryError, RegionSpec};
use super::device::{Device, feature};
use super::event::Event;
use super::memory::Region;
use super::ring::{RING_SIZE_MAX, RingAddresses};
use super::session::{Change, Letter, QueueSetup, SessionError};
use super::status::Shared;

/// The most memory regions of a client.
const REGIONS_MAX: usize = 128;
/// How long the reactor may take to answer. It only has to come round, so more means that it is stuck.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long stopping a queue may take: it waits for the disk. A front end that gets no answer in time must not believe
/// that no more is written, so it gets none at all.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

/// The kind of error after which a client is still served.
pub(super) const SURVIVED: io::ErrorKind = io::ErrorKind::PermissionDenied;

/// Why a message could not be obeyed.
#[derive(Debug, thiserror::Error)]
enum HandlerError {
    #[error("virtqueue {index} does not exist: this export has {queues}")]
    Queue { index: u32, queues: usize },
    #[error("virtqueue {index} of {size} entries: expected a power of two up to {RING_SIZE_MAX}")]
    Size { index: usize, size: u32 },
    #[error("an index of {0} can't be in a virtqueue")]
    Base(u32),
    #[error("features {0:#x} were accepted but not offered")]
    Features(u64),
    #[error("features change while virtqueue {0} runs")]
    FeaturesLate(usize),
    #[error("virtqueue {0} without a kick eventfd: polling is not supported")]
    NoKick(u8),
    #[error("{regions} memory regions with {files} files")]
    Files { regions: usize, files: usize },
    #[error("more than {REGIONS_MAX} memory regions")]
    Regions,
    #[error("the configuration space is read-only")]
    Config,
    #[error("`{0}` is not supported and was not offered")]
    Unsupported(&'static str),
    #[error("the volume's reactor did not answer in {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("the volume has gone")]
    Gone,
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<HandlerError> for Error {
    fn from(error: HandlerError) -> Self {
        // The one refusal that the connection survives: guests may try to write to the configuration space.
        let kind = match error {
            HandlerError::Config => SURVIVED,
            _ => io::ErrorKind::Other,
        };
        Self::ReqHandlerError(io::Error::new(kind, error))
    }
}

/// What the front end has said about one virtqueue.
#[derive(Debug, Default)]
struct Vring {
    size: u32,
    addresses: Option<RingAddresses>,
    base: u16,
    kick: Option<Event>,
    call: Option<Event>,
    error: Option<Event>,
    enabled: bool,
    /// Whether the session serves it.
    running: bool,
}

/// One client's protocol state.
#[derive(Debug)]
pub(super) struct Handler {
    device: Device,
    shared: Arc<Shared>,
    session: UnboundedSender<Letter>,
    features: u64,
    vrings: Vec<Vring>,
    regions: usize,
}

impl Handler {
    pub(super) fn new(
        device: Device,
        shared: Arc<Shared>,
        session: UnboundedSender<Letter>,
    ) -> Self {
        let vrings = (0..device.queues).map(|_| Vring::default()).collect();
        Self {
            device,
            shared,
            session,
            features: 0,
            vrings,
            regions: 0,
        }
    }

    /// Has the session make a change and waits for it.
    fn ask(&self, change: Change) -> Result<u16, HandlerError> {
        let timeout = match change {
            Change::Start(_) | Change::Stop(_) => DRAIN_TIMEOUT,
            // Which pins it, a part at a time.
            Change::SetMemory(_) | Change::AddMemory(_) if self.device.pin_guest_memory => {
                DRAIN_TIMEOUT
            }
            _ => ANSWER_TIMEOUT,
        };
        let (answer, answers) = sync_channel(1);
        let letter = Letter { change, answer };
        self.session.send(letter).map_err(|_| HandlerError::Gone)?;
        match answers.recv_timeout(timeout) {
            Ok(result) => Ok(result?),
            Err(RecvTimeoutError::Timeout) => Err(HandlerError::Timeout(timeout)),
            Err(RecvTimeoutError::Disconnected) => Err(HandlerError::Gone),
        }
    }

    fn index(&self, index: u32) -> Result<usize, HandlerError> {
        let queues = self.vrings.len();
        let found = usize::try_from(index).ok().filter(|i| *i < queues);
        found.ok_or(HandlerError::Queue { index, queues })
    }

    /// Stops a queue, drained, and notes where it stopped.
    fn stop(&mut self, index: usize) -> Result<(), HandlerError> {
        if self.vrings[index].running {
            let base = self.ask(Change::Stop(index))?;
            self.vrings[index].base = base;
            self.vrings[index].running = false;
        }
        Ok(())
    }

    /// Starts a queue if all that it takes is there: addresses, kick, and `SET_VRING_ENABLE` if that is in use.
    fn start_if_ready(&mut self, index: usize) -> Result<(), HandlerError> {
        let always_enabled = self.features & feature::PROTOCOL_FEATURES == 0;
        let vring = &self.vrings[index];
        let (Some(addresses), Some(kick)) = (vring.addresses, &vring.kick) else {
            return Ok(());
        };
        if vring.running || vring.size == 0 || !(vring.enabled || always_enabled) {
            return Ok(());
        }
        let again = |event: &Option<Event>| event.as_ref().map(Event::try_clone).transpose();
        let setup = QueueSetup {
            index,
            size: vring.size,
            addresses,
            base: vring.base,
            features: self.features,
            kick: kick.try_clone()?,
            call: again(&vring.call)?,
            error: again(&vring.error)?,
        };
        self.ask(Change::Start(Box::new(setup)))?;
        self.vrings[index].running = true;
        Ok(())
    }

    /// Changes what is known of a queue, which does not run meanwhile.
    fn change(&mut self, index: u32, how: impl FnOnce(&mut Vring)) -> Result<(), HandlerError> {
        let index = self.index(index)?;
        self.stop(index)?;
        how(&mut self.vrings[index]);
        self.start_if_ready(index)
    }

    /// Stops and forgets every queue.
    fn reset(&mut self) -> Result<(), HandlerError> {
        for index in 0..self.vrings.len() {
            self.stop(index)?;
            self.vrings[index] = Vring::default();
        }
        self.features = 0;
        self.shared.on_features(0);
        Ok(())
    }

    fn accept_features(&mut self, features: u64) -> Result<(), HandlerError> {
        let unknown = features & !self.device.features();
        if unknown != 0 {
            return Err(HandlerError::Features(unknown));
        }
        if features != self.features
            && let Some(index) = self.vrings.iter().position(|vring| vring.running)
        {
            return Err(HandlerError::FeaturesLate(index));
        }
        self.features = features;
        self.shared
            .on_features(features & !feature::PROTOCOL_FEATURES);
        for index in 0..self.vrings.len() {
            self.start_if_ready(index)?;
        }
        Ok(())
    }

    fn map_all(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: &[File],
    ) -> Result<(), HandlerError> {
        if regions.len() != files.len() {
            let (regions, files) = (regions.len(), files.len());
            return Err(HandlerError::Files { regions, files });
        }
        let mapped = regions
            .iter()
            .zip(files)
            .map(|(region, file)| self.map(spec(region), file))
            .collect::<Result<Vec<_>, _>>()?;
        let count = mapped.len();
        self.ask(Change::SetMemory(mapped))?;
        self.regions = count;
        Ok(())
    }

    fn map(&self, spec: RegionSpec, file: &File) -> Result<Region, MemoryError> {
        let mut region = Region::map(spec, file)?;
        if self.device.pin_guest_memory {
            // Here it holds up nobody else.
            region.populate(file);
        }
        Ok(region)
    }

    fn map_one(&mut self, region: &VhostUserMemoryRegion, file: &File) -> Result<(), HandlerError> {
        if self.regions == REGIONS_MAX {
            return Err(HandlerError::Regions);
        }
        self.ask(Change::AddMemory(self.map(spec(region), file)?))?;
        self.regions += 1;
        Ok(())
    }

    fn set_kick(&mut self, index: u8, file: Option<File>) -> Result<(), HandlerError> {
        let file = file.ok_or(HandlerError::NoKick(index))?;
        let kick = Event::new(file)?;
        self.change(u32::from(index), |vring| vring.kick = Some(kick))
    }

    fn set_call(&mut self, index: u8, file: Option<File>) -> Result<(), HandlerError> {
        let index = self.index(u32::from(index))?;
        let call = file.map(Event::new).transpose()?;
        if self.vrings[index].running {
            let again = call.as_ref().map(Event::try_clone).transpose()?;
            self.ask(Change::SetCall(index, again))?;
        }
        self.vrings[index].call = call;
        Ok(())
    }
}

fn spec(region: &VhostUserMemoryRegion) -> RegionSpec {
    RegionSpec {
        guest: region.guest_phys_addr,
        user: region.user_addr,
        size: region.memory_size,
        offset: region.mmap_offset,
    }
}

fn unsupported<T>(what: &'static str) -> vhost_user::Result<T> {
    Err(HandlerError::Unsupported(what).into())
}

impl VhostUserBackendReqHandlerMut for Handler {
    fn set_owner(&mut self) -> vhost_user::Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> vhost_user::Result<()> {
        Ok(self.reset()?)
    }

    fn reset_device(&mut self) -> vhost_user::Result<()> {
        Ok(self.reset()?)
    }

    fn get_features(&mut self) -> vhost_user::Result<u64> {
        Ok(self.device.features())
    }

    fn set_features(&mut self, features: u64) -> vhost_user::Result<()> {
        Ok(self.accept_features(features)?)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> vhost_user::Result<Option<Vec<u64>>> {
        self.map_all(regions, &files)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> vhost_user::Result<()> {
        // Over virtio-mmio a guest takes the 1024 entries that QEMU offers, and nobody asks us; so any size will do.
        if !num.is_power_of_two() || num > u32::from(RING_SIZE_MAX) {
            let index = self.index(index)?;
            return Err(HandlerError::Size { index, size: num }.into());
        }
        Ok(self.change(index, |vring| vring.size = num)?)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> vhost_user::Result<()> {
        let addresses = RingAddresses {
            descriptors,
            available,
            used,
        };
        Ok(self.change(index, |vring| vring.addresses = Some(addresses))?)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> vhost_user::Result<()> {
        let base = u16::try_from(base).map_err(|_| HandlerError::Base(base))?;
        Ok(self.change(index, |vring| vring.base = base)?)
    }

    fn get_vring_base(&mut self, index: u32) -> vhost_user::Result<VhostUserVringState> {
        let at = self.index(index)?;
        self.stop(at)?;
        // A stopped ring starts again when it gets a kick.
        self.vrings[at].kick = None;
        let base = u32::from(self.vrings[at].base);
        Ok(VhostUserVringState::new(index, base))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> vhost_user::Result<()> {
        Ok(self.set_kick(index, fd)?)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> vhost_user::Result<()> {
        Ok(self.set_call(index, fd)?)
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> vhost_user::Result<()> {
        let index = self.index(u32::from(index))?;
        let event = fd.map(Event::new).transpose().map_err(HandlerError::from)?;
        self.vrings[index].error = event;
        Ok(())
    }

    fn get_protocol_features(&mut self) -> vhost_user::Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&mut self, _features: u64) -> vhost_user::Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> vhost_user::Result<u64> {
        Ok(u64::from(self.device.queues))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> vhost_user::Result<()> {
        let at = self.index(index)?;
        if self.vrings[at].enabled == enable {
            return Ok(());
        }
        Ok(self.change(index, |vring| vring.enabled = enable)?)
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> vhost_user::Result<Vec<u8>> {
        let number = |value: u32| usize::try_from(value).map_err(|_| HandlerError::Config);
        let geometry = &mut self.device.geometry;
        geometry.size = self.shared.size().max(geometry.size);
        Ok(self.device.config(number(offset)?, number(size)?))
    }

    fn set_config(
        &mut self,
        _offset: u32,
        _buf: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> vhost_user::Result<()> {
        Err(HandlerError::Config.into())
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> vhost_user::Result<()> {
        unsupported("GPU_SET_SOCKET")
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> vhost_user::Result<File> {
        unsupported("GET_SHARED_OBJECT")
    }

    fn get_inflight_fd(
        &mut self,
        _inflight: &VhostUserInflight,
    ) -> vhost_user::Result<(VhostUserInflight, File)> {
        unsupported("GET_INFLIGHT_FD")
    }

    fn set_inflight_fd(
        &mut self,
        _inflight: &VhostUserInflight,
        _file: File,
    ) -> vhost_user::Result<()> {
        unsupported("SET_INFLIGHT_FD")
    }

    fn get_max_mem_slots(&mut self) -> vhost_user::Result<u64> {
        Ok(REGIONS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy_listening: Option<bool>,
    ) -> vhost_user::Result<Option<u64>> {
        self.map_one(region, &fd)?;
        Ok(None)
    }

    fn remove_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
    ) -> vhost_user::Result<()> {
        self.ask(Change::RemoveMemory(spec(region)))?;
        self.regions -= 1;
        Ok(())
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> vhost_user::Result<Option<File>> {
        unsupported("SET_DEVICE_STATE_FD")
    }

    fn check_device_state(&mut self) -> vhost_user::Result<()> {
        unsupported("CHECK_DEVICE_STATE")
    }

    fn get_shmem_config(&mut self) -> vhost_user::Result<VhostUserShMemConfig> {
        unsupported("GET_SHMEM_CONFIG")
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> vhost_user::Result<()> {
        unsupported("SET_LOG_BASE")
    }
}
