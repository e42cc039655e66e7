//! Serves volumes in memory as ublk devices, all on one reactor, until SIGTERM: `ublk_ram STATE COUNT MEBIBYTES`.
//!
//! The part of the daemon that only a kernel with ublk can test, without the rest. `STATE` is a file that records the
//! devices; those that an earlier run left behind are deleted first. `cargo xtask guest ublk` runs it in a guest.

#![allow(
    clippy::print_stdout,
    reason = "a test program that reports to a script"
)]

use std::fs;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Context as _;
use volund::frontend::ublk::{Links, UblkControl, UblkParams};
use volund::io::{Local, MemoryDevice, ReactorHandle};
use volund::model::VolumeId;
use volund::volume::{Counters, Geometry, Volume};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(std::io::stderr)
        .init();
    let arguments: Vec<String> = std::env::args().collect();
    let [_, state, count, mebibytes] = arguments.as_slice() else {
        anyhow::bail!("usage: ublk_ram STATE COUNT MEBIBYTES");
    };
    let (count, size) = (count.parse::<u32>()?, mebibytes.parse::<u64>()? << 20);
    let mut stopped = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let control = UblkControl::start()?;
    let links = Links::default();
    delete_leftovers(&control, state).await?;
    links.clean()?;
    let reactor = ReactorHandle::start(0)?;
    let mut exports = Vec::new();
    let mut record = String::new();
    for n in 0..count {
        let name: volund::model::VolumeName = format!("ram{n}").parse()?;
        let volume = VolumeId::generate();
        let geometry = Geometry {
            size,
            block_size: if n % 2 == 0 { 4096 } else { 512 },
            read_only: false,
        };
        let params = UblkParams {
            name: name.clone(),
            volume,
            geometry,
            id: None,
            depth: 64,
        };
        let pending = control.add_export(params).await.context("add")?;
        record.push_str(&format!("{} {volume}\n", pending.id()));
        fs::write(state, &record)?;
        let make = move |local: &Local| {
            let device = MemoryDevice::new(size);
            let identity = (name, volume);
            let counters = Arc::new(Counters::default());
            Some(Rc::new(Volume::new(
                identity,
                device,
                local.clone(),
                geometry,
                counters,
            )))
        };
        let export = pending
            .start(&links, &reactor, make)
            .await
            .context("start")?;
        println!("{:?}", export.status());
        exports.push(export);
    }
    println!("ready");
    while tokio::time::timeout(std::time::Duration::from_secs(2), stopped.recv())
        .await
        .is_err()
    {
        for export in &exports {
            println!("{} {:?}", export.link().display(), export.user().await?);
        }
    }
    for export in &mut exports {
        export.stop().await.context("stop")?;
    }
    fs::remove_file(state)?;
    println!("stopped");
    Ok(())
}

async fn delete_leftovers(control: &UblkControl, state: &str) -> anyhow::Result<()> {
    for line in fs::read_to_string(state).unwrap_or_default().lines() {
        let (id, volume) = line.split_once(' ').context("a line is `ID VOLUME`")?;
        let deleted = control.delete_leftover(id.parse()?, volume.parse()?).await;
        println!("leftover {id}: {deleted:?}");
    }
    Ok(())
}
