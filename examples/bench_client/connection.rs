//! The vhost-user side: connecting, what both sides can do, the device's configuration, memory and queues.

use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use vhost::VhostBackend as _;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend as _};
use volund::frontend::vhost_user::feature;

use crate::memory::Memory;
use crate::queue::{Dialect, Queue};

/// The most queues that the crate is to expect before the backend says how many it has.
const QUEUES_MAX: u64 = 256;
/// `struct virtio_blk_config` up to write zeroes.
const CONFIG_LEN: u32 = 60;

/// A connection whose features are agreed on.
pub(crate) struct Connection {
    frontend: Frontend,
    /// For hearing that the backend has gone.
    pub(crate) socket: UnixStream,
    features: u64,
    protocol: VhostUserProtocolFeatures,
    config: Option<Vec<u8>>,
}

impl Connection {
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let socket = UnixStream::connect(path)
            .with_context(|| format!("cannot connect to {}", path.display()))?;
        let mut frontend = Frontend::from_stream(socket.try_clone()?, QUEUES_MAX);
        let wanted = feature::VERSION_1
            | feature::EVENT_IDX
            | feature::INDIRECT_DESC
            | feature::MQ
            | feature::FLUSH
            | feature::DISCARD
            | feature::PROTOCOL_FEATURES;
        let features = frontend.get_features()? & wanted;
        ensure!(
            features & feature::PROTOCOL_FEATURES != 0,
            "the backend has no protocol features"
        );
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG;
        let protocol = frontend.get_protocol_features()? & wanted;
        frontend.set_protocol_features(protocol)?;
        frontend.set_owner()?;
        frontend.set_features(features)?;
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let config = match protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            true => {
                let flags = VhostUserConfigFlags::WRITABLE;
                let space = [0; CONFIG_LEN as usize];
                Some(frontend.get_config(0, CONFIG_LEN, flags, &space)?.1)
            }
            false => None,
        };
        Ok(Self {
            frontend,
            socket,
            features,
            protocol,
            config,
        })
    }

    pub(crate) fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    pub(crate) fn dialect(&self) -> Dialect {
        Dialect {
            has_event_idx: self.has(feature::EVENT_IDX),
            has_indirect: self.has(feature::INDIRECT_DESC),
        }
    }

    /// The device's size, if it says so.
    pub(crate) fn size(&self) -> Option<u64> {
        let sectors = self.config.as_ref()?.first_chunk()?;
        Some(u64::from_le_bytes(*sectors) * 512)
    }

    /// How many queues there may be.
    pub(crate) fn queues(&mut self) -> Result<u64> {
        let is_offered = self.has(feature::MQ);
        if !is_offered || !self.protocol.contains(VhostUserProtocolFeatures::MQ) {
            return Ok(1);
        }
        let most = self.frontend.get_queue_num()?;
        let config = self.config.as_ref().and_then(|config| config.get(34..36));
        let configured = config.map(|bytes| u64::from(bytes[0]) | u64::from(bytes[1]) << 8);
        Ok(configured.map_or(most, |configured| configured.min(most)))
    }

    /// Gives the backend the memory and starts the queues.
    pub(crate) fn start(&mut self, memory: &Memory, queues: &[Queue]) -> Result<()> {
        self.frontend.set_mem_table(&[memory.region()])?;
        for (index, queue) in queues.iter().enumerate() {
            let layout = queue.layout();
            self.frontend.set_vring_num(index, layout.size())?;
            self.frontend.set_vring_base(index, 0)?;
            self.frontend
                .set_vring_addr(index, &layout.config(memory))?;
            self.frontend.set_vring_call(index, queue.call_fd())?;
            self.frontend.set_vring_kick(index, queue.kick_fd())?;
            self.frontend.set_vring_enable(index, true)?;
        }
        Ok(())
    }

    /// Stops the queues, as a driver's reset does; nothing may be in flight.
    pub(crate) fn stop(&mut self, queues: usize) -> Result<()> {
        for index in 0..queues {
            self.frontend.set_vring_enable(index, false)?;
            self.frontend.get_vring_base(index)?;
        }
        Ok(())
    }
}
