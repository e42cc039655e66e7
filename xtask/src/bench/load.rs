//! What a contender is asked to do: read from a job of `fio-jobs/bench/`, so that fio and the vhost-user front end do the same.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::shell;

/// What the requests are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Op {
    RandRead,
    RandWrite,
    Read,
    Write,
    Discard,
}

impl Op {
    /// As fio calls it.
    fn parse(rw: &str) -> Result<Op> {
        Ok(match rw {
            "randread" => Op::RandRead,
            "randwrite" => Op::RandWrite,
            "read" => Op::Read,
            "write" => Op::Write,
            "trim" => Op::Discard,
            other => bail!("rw={other} is nothing that the front end can do"),
        })
    }

    /// As `bench_client` calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Op::RandRead => "randread",
            Op::RandWrite => "randwrite",
            Op::Read => "read",
            Op::Write => "write",
            Op::Discard => "discard",
        }
    }

    /// Where fio's JSON has its figures.
    pub(crate) fn direction(self) -> &'static str {
        match self {
            Op::RandRead | Op::Read => "read",
            Op::RandWrite | Op::Write => "write",
            Op::Discard => "trim",
        }
    }
}

/// What a job may say, since the front end does it as well.
const KEYS: [&str; 9] = [
    "rw",
    "bs",
    "iodepth",
    "ioengine",
    "direct",
    "numjobs",
    "fdatasync",
    "iodepth_batch_submit",
    "iodepth_batch_complete_min",
];

/// One load. `depth` is that of each queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Load {
    pub(crate) op: Op,
    pub(crate) block: u64,
    pub(crate) depth: u32,
    pub(crate) queues: u32,
    pub(crate) flush_every: Option<u32>,
    /// So many bytes of the device are touched, from its start.
    pub(crate) size: u64,
    /// The job as fio takes it, key by key.
    #[serde(skip)]
    fio: Vec<(String, String)>,
}

impl Load {
    /// The job of this name, on so many bytes.
    pub(crate) fn read(job: &str, size: u64) -> Result<Load> {
        let path = shell::root().join(format!("fio-jobs/bench/{job}.fio"));
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Load::parse(&text, size).with_context(|| format!("{} is not usable", path.display()))
    }

    fn parse(text: &str, size: u64) -> Result<Load> {
        let fio: Vec<(String, String)> = text
            .lines()
            .filter(|line| !line.starts_with([';', '#', '[']))
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
            .collect();
        let value = |wanted: &str| {
            fio.iter()
                .find(|(key, _)| key == wanted)
                .map(|(_, value)| value.as_str())
        };
        let needed = |wanted: &str| value(wanted).with_context(|| format!("{wanted} is missing"));
        let flush_every = value("fdatasync");
        // With flushes, the front end awaits all writes before each: fio does so in batches, with an engine that flushes once.
        let (engine, batch) = if flush_every.is_some() {
            ("libaio", flush_every)
        } else {
            ("io_uring", None)
        };
        ensure!(
            value("direct") == Some("1") && value("ioengine") == Some(engine),
            "a peer does direct I/O, here through {engine}"
        );
        ensure!(
            value("iodepth_batch_submit") == batch && value("iodepth_batch_complete_min") == batch,
            "batches are as long as it is from flush to flush, and there are none without"
        );
        if let Some((key, _)) = fio.iter().find(|(key, _)| !KEYS.contains(&key.as_str())) {
            bail!("the front end knows nothing like {key}, so the two would differ");
        }
        let block = needed("bs")?;
        let kib = block
            .strip_suffix('k')
            .with_context(|| format!("bs={block} is not in KiB"))?;
        Ok(Load {
            op: Op::parse(needed("rw")?)?,
            block: kib.parse::<u64>()? << 10,
            depth: needed("iodepth")?.parse()?,
            queues: value("numjobs").map_or(Ok(1), str::parse)?,
            flush_every: flush_every.map(str::parse).transpose()?,
            size,
            fio,
        })
    }

    /// The load as arguments of `bench_client`.
    pub(crate) fn client_args(&self) -> Vec<String> {
        let mut args = Vec::new();
        let mut push = |name: &str, value: String| args.extend([format!("--{name}"), value]);
        push("op", self.op.name().to_owned());
        push("block", self.block.to_string());
        push("depth", self.depth.to_string());
        push("queues", self.queues.to_string());
        push("size", self.size.to_string());
        if let Some(every) = self.flush_every {
            push("flush-every", every.to_string());
        }
        args
    }

    /// The load as options of one job on fio's command line.
    pub(crate) fn fio_args(&self) -> Vec<String> {
        let mut args: Vec<String> = self
            .fio
            .iter()
            .map(|(key, value)| format!("--{key}={value}"))
            .collect();
        args.push(format!("--size={}", self.size));
        args
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_gives_the_front_end_the_same_load_as_fio() {
        let folder = shell::root().join("fio-jobs/bench");
        let mut jobs = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let load = Load::read(name.strip_suffix(".fio").unwrap(), 1 << 20).unwrap();
            let args = load.fio_args();
            let block = load.block >> 10;
            assert!(args.contains(&format!("--bs={block}k")), "{name}: {args:?}");
            assert!(args.contains(&format!("--iodepth={}", load.depth)));
            jobs += 1;
        }
        assert!(jobs > 0);
    }

    #[test]
    fn a_job_that_only_fio_could_do_is_refused() {
        let job = "[x]\nrw=randread\nbs=4k\niodepth=1\nioengine=io_uring\ndirect=1\n";
        assert_eq!(Load::parse(job, 1).unwrap().queues, 1);
        let error = Load::parse(&format!("{job}rate_iops=5\n"), 1).unwrap_err();
        assert!(error.to_string().contains("rate_iops"));
        assert!(Load::parse(&job.replace("direct=1", "direct=0"), 1).is_err());
        assert!(Load::parse(&job.replace("randread", "randrw"), 1).is_err());
    }
}
