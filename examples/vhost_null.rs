//! `vhost_null --socket PATH [--size BYTES] [--queues N] [--depth N] [--poll off|auto|MICROSECONDS]`: a disk that answers
//! everything at once and stores nothing, over vhost-user.
//!
//! For measurements of the protocol alone, against qemu-storage-daemon's `null-co`: the frontend, the volume and the reactor
//! are the daemon's, the nexus and what is below are not there. Ends with SIGTERM or SIGINT.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use volund::frontend::vhost_user::{ExportConfig, VhostUserExport, VolumeOnReactor};
use volund::io::{Alignment, BlockDevice, IoBuffer, IoError, Local, ReactorHandle, ZeroOptions};
use volund::model::{Polling, VolumeId, VolumeName};
use volund::volume::{Geometry, Volume};

/// A disk that answers everything at once and stores nothing.
#[derive(Debug, Parser)]
struct Options {
    /// Where to listen.
    #[arg(long)]
    socket: PathBuf,
    /// The disk's size, bytes.
    #[arg(long, default_value_t = 4 << 30)]
    size: u64,
    /// Virtqueues offered.
    #[arg(long, default_value_t = 4)]
    queues: u16,
    /// The most requests of a virtqueue that are served at a time.
    #[arg(long, default_value_t = 256)]
    depth: u16,
    /// How long the I/O thread looks for more work before it sleeps.
    #[arg(long, default_value_t = Polling::Off)]
    poll: Polling,
}

/// The disk. What is read is whatever the buffer held.
struct Null {
    size: u64,
}

impl BlockDevice for Null {
    fn size(&self) -> u64 {
        self.size
    }

    fn alignment(&self) -> Alignment {
        Alignment {
            offset: 512,
            memory: 1,
        }
    }

    async fn read(&self, _offset: u64, _buf: &IoBuffer) -> Result<(), IoError> {
        Ok(())
    }

    async fn write(&self, _offset: u64, _buf: &IoBuffer, _fua: bool) -> Result<(), IoError> {
        Ok(())
    }

    async fn write_zeroes(
        &self,
        _offset: u64,
        _len: u64,
        _options: ZeroOptions,
    ) -> Result<(), IoError> {
        Ok(())
    }

    async fn flush(&self) -> Result<(), IoError> {
        Ok(())
    }

    async fn grow(&self, _size: u64) -> Result<(), IoError> {
        Err(IoError::EOPNOTSUPP)
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let reactor = ReactorHandle::start_polling(0, options.poll)?;
    let name: VolumeName = "null".parse()?;
    let (named, size) = (name.clone(), options.size);
    let volume = VolumeOnReactor::new(name, reactor.clone(), move |local: &Local| {
        Some(local.extension(|| {
            let identity = (named.clone(), VolumeId::nil());
            let geometry = Geometry {
                size,
                block_size: 512,
                read_only: false,
            };
            Volume::new(
                identity,
                Null { size },
                local.clone(),
                geometry,
                Arc::default(),
            )
        }))
    });
    let config = ExportConfig {
        socket: options.socket,
        queues: options.queues,
        depth: options.depth,
        pin_guest_memory: false,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let export = VhostUserExport::start(&config, volume)?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        export.stop().await;
        anyhow::Ok(())
    })?;
    reactor.stop();
    Ok(())
}
