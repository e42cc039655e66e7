//! One measurement of one contender: what its driver said, in the same figures for all.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::contenders::{Contender, Reach};
use super::load::Load;
use super::programs::Programs;
use super::store::DATA_OFFSET;
use crate::shell;

/// The figures. What a driver cannot know is absent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Sample {
    pub(crate) requests: f64,
    pub(crate) bytes: f64,
    pub(crate) seconds: f64,
    pub(crate) iops: f64,
    pub(crate) errors: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
    pub(crate) kicks: Option<f64>,
    pub(crate) calls: Option<f64>,
    pub(crate) flushes: Option<f64>,
    pub(crate) backend_cpu_seconds: Option<f64>,
    pub(crate) voluntary_switches: Option<f64>,
}

/// How long, after how much of a start, and which blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) seconds: f64,
    pub(crate) warm: f64,
    pub(crate) seed: u64,
}

impl Sample {
    /// That something was done, all of it well.
    pub(super) fn check(&self, who: &str) -> Result<()> {
        ensure!(
            self.errors == 0.0 && self.requests > 0.0,
            "{who}: {} requests, {} errors",
            self.requests,
            self.errors
        );
        Ok(())
    }

    /// Requests for a second of the backend's CPU.
    pub(crate) fn iops_per_cpu(&self) -> f64 {
        self.backend_cpu_seconds
            .map_or(f64::NAN, |cpu| self.requests / cpu)
    }

    /// Cores that the backend keeps busy.
    pub(crate) fn cores(&self) -> f64 {
        self.backend_cpu_seconds
            .map_or(f64::NAN, |cpu| cpu / self.seconds)
    }

    /// This figure for each request.
    pub(crate) fn per_request(&self, figure: Option<f64>) -> f64 {
        figure.map_or(f64::NAN, |figure| figure / self.requests)
    }
}

/// Loads the contender's device of this round.
pub(crate) fn measure(
    programs: &Programs,
    contender: &Contender,
    load: &Load,
    round: usize,
    span: Span,
) -> Result<Sample> {
    let sample = match &contender.reach {
        Reach::Vhost { sockets, pid } => {
            let socket = &sockets[round % sockets.len()];
            let mut client = client(programs, socket, *pid, load, span);
            let said = shell::capture(&mut client)?;
            serde_json::from_str(said.trim())
                .with_context(|| format!("bench_client said {said}"))?
        }
        Reach::Files => {
            let files = &contender.files[round % contender.files.len()];
            fio(programs, files, load, span)?
        }
    };
    sample.check(&contender.name)?;
    Ok(sample)
}

/// The front end on this socket.
pub(crate) fn client(
    programs: &Programs,
    socket: &Path,
    pid: u32,
    load: &Load,
    span: Span,
) -> std::process::Command {
    let mut command = shell::command(&programs.client);
    command.arg("--socket").arg(socket).args(load.client_args());
    for (name, value) in [
        ("--seconds", span.seconds.to_string()),
        ("--warm", span.warm.to_string()),
        ("--seed", span.seed.to_string()),
        ("--pid", pid.to_string()),
    ] {
        command.args([name, &value]);
    }
    command
}

/// fio on all files at the same time, each with the whole depth. A mirror's request is done when the slower file has it, so
/// what counts are the slower file's requests and latencies, and all of the CPU.
fn fio(programs: &Programs, files: &[PathBuf], load: &Load, span: Span) -> Result<Sample> {
    let mut command = shell::command(&programs.fio);
    command.args(["--output-format=json", "--percentile_list=50:99:99.9"]);
    for (number, file) in files.iter().enumerate() {
        command
            .arg(format!("--name=f{number}"))
            .args(load.fio_args())
            .args(["--new_group", "--group_reporting", "--time_based"])
            .args(["--lat_percentiles=1", "--clat_percentiles=0"])
            .arg(format!("--filename={}", file.display()))
            .arg(format!("--offset={DATA_OFFSET}"))
            .arg(format!("--runtime={:.0}ms", span.seconds * 1000.0))
            .arg(format!("--ramp_time={:.0}ms", span.warm * 1000.0))
            .arg(format!("--randseed={}", span.seed + 1));
    }
    let said = shell::capture(&mut command)?;
    let json = said.find('{').map_or("", |start| &said[start..]);
    let said: Value = serde_json::from_str(json).context("fio's JSON cannot be read")?;
    let groups = said["jobs"].as_array().context("fio reports no job")?;
    ensure!(
        groups.len() == files.len(),
        "fio reports {} groups",
        groups.len()
    );
    let samples: Vec<Sample> = groups.iter().map(|group| fio_group(group, load)).collect();
    Ok(slowest(&samples))
}

/// One group of fio's report.
fn fio_group(group: &Value, load: &Load) -> Sample {
    let side = &group[load.op.direction()];
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let latency = |key: &str| number(&side["lat_ns"]["percentile"][key]) / 1e3;
    let busy = (number(&group["usr_cpu"]) + number(&group["sys_cpu"])) / 100.0;
    Sample {
        requests: number(&side["total_ios"]),
        bytes: number(&side["io_bytes"]),
        seconds: number(&side["runtime"]) / 1e3,
        iops: number(&side["iops"]),
        errors: number(&group["total_err"]) + number(&group["error"]),
        p50_us: latency("50.000000"),
        p99_us: latency("99.000000"),
        p999_us: latency("99.900000"),
        max_us: number(&side["lat_ns"]["max"]) / 1e3,
        flushes: group["sync"]["total_ios"].as_f64(),
        backend_cpu_seconds: Some(busy * number(&group["job_runtime"]) / 1e3),
        ..Sample::default()
    }
}

/// What all files together have completed.
fn slowest(samples: &[Sample]) -> Sample {
    let fold = |figure: fn(&Sample) -> f64, pick: fn(f64, f64) -> f64| {
        samples.iter().map(figure).reduce(pick).unwrap_or(0.0)
    };
    Sample {
        requests: fold(|one| one.requests, f64::min),
        bytes: fold(|one| one.bytes, f64::min),
        seconds: fold(|one| one.seconds, f64::max),
        iops: fold(|one| one.iops, f64::min),
        errors: samples.iter().map(|one| one.errors).sum(),
        p50_us: fold(|one| one.p50_us, f64::max),
        p99_us: fold(|one| one.p99_us, f64::max),
        p999_us: fold(|one| one.p999_us, f64::max),
        max_us: fold(|one| one.max_us, f64::max),
        flushes: samples.iter().map(|one| one.flushes).sum(),
        backend_cpu_seconds: samples.iter().map(|one| one.backend_cpu_seconds).sum(),
        ..Sample::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirrored_request_of_fio_is_done_when_the_slower_file_has_it() {
        let sample = |iops, p99_us, cpu| Sample {
            requests: iops,
            iops,
            p99_us,
            seconds: 1.0,
            backend_cpu_seconds: Some(cpu),
            ..Sample::default()
        };
        let both = slowest(&[sample(100.0, 50.0, 0.2), sample(80.0, 70.0, 0.3)]);
        assert_eq!((both.iops, both.p99_us), (80.0, 70.0));
        assert_eq!(both.backend_cpu_seconds, Some(0.5));
        assert!((both.iops_per_cpu() - 160.0).abs() < 1e-9);
    }

    #[test]
    fn a_sample_with_errors_or_without_requests_is_none() {
        let check = |requests, errors| {
            let sample = Sample {
                requests,
                errors,
                ..Sample::default()
            };
            sample.check("x").is_ok()
        };
        assert!(check(1.0, 0.0));
        assert!(!check(1.0, 1.0) && !check(0.0, 0.0) && !check(1.0, f64::NAN));
    }

    #[test]
    fn the_front_ends_line_is_read_with_figures_absent_that_it_does_not_know() {
        let line = r#"{"requests":10,"bytes":40960,"seconds":0.5,"iops":20,"errors":0,"p50_us":1.5,"p99_us":2,
            "p999_us":3,"max_us":4,"kicks":5,"calls":10,"flushes":0,"backend_cpu_seconds":null,"voluntary_switches":null}"#;
        let sample: Sample = serde_json::from_str(line).unwrap();
        assert_eq!(sample.per_request(sample.kicks), 0.5);
        assert!(sample.cores().is_nan() && sample.iops_per_cpu().is_nan());
    }
}
