//! A real daemon in a folder of its own: its files, its process, its admin socket, and a client of its disks.

#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first surprise, in its helpers too"
)]

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::process::{Pid, Signal, kill_process};
use virtio_driver::{
    VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkReqBuf,
    VirtioBlkTransport, VirtioFeatureFlags,
};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use volund::io::clock::monotonic;
use volund::model::status::{Condition, NodeStatus, VolumeStatus};

use super::vhost_rig::{PATIENCE, pause};

/// A block of the tests' data.
pub(crate) const BLOCK: usize = 4096;

/// A daemon's folder, and its process while it runs.
pub(crate) struct Node {
    folder: tempfile::TempDir,
    child: Option<Child>,
    /// More arguments for the daemon.
    pub(crate) extra: Vec<OsString>,
    /// Stands in for systemd's socket.
    pub(crate) notify: Option<PathBuf>,
}

impl Node {
    /// A folder without a configuration.
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            child: None,
            extra: Vec::new(),
            notify: None,
        }
    }

    /// Something in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces the configuration in one go. `POOL` stands for the pools' folder.
    pub(crate) fn configure(&self, text: &str) {
        let text = text.replace("POOL", self.path("pools").to_str().unwrap());
        fs::create_dir_all(self.path("pools")).unwrap();
        fs::write(self.path("new"), text).unwrap();
        fs::rename(self.path("new"), self.path("volund.toml")).unwrap();
    }

    /// The daemon's command line.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_volund"));
        command
            .arg("run")
            .args(["--node", "n1", "--http", "127.0.0.1:0", "--io-threads", "1"])
            .arg("--config")
            .arg(self.path("volund.toml"))
            .arg("--state-dir")
            .arg(self.path("state"))
            .arg("--runtime-dir")
            .arg(self.path("run"))
            .args(&self.extra)
            .stdin(Stdio::null())
            .env_remove("NOTIFY_SOCKET");
        if let Some(socket) = &self.notify {
            command.env("NOTIFY_SOCKET", socket);
        }
        command
    }

    /// Starts it and waits until its first pass has ended.
    pub(crate) fn start(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let before = self.log().matches("daemon::run: ready").count();
        self.child = Some(self.command().stderr(log).spawn().unwrap());
        self.until("ready", |node| {
            node.log().matches("daemon::run: ready").count() > before
        });
    }

    /// SIGTERM, and waits for the end.
    pub(crate) fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        kill_process(pid(&child), Signal::TERM).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "{status}\n{}", self.log());
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn hang_up(&self) {
        kill_process(pid(self.child.as_ref().unwrap()), Signal::HUP).unwrap();
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Another command of the program, about this daemon.
    pub(crate) fn volund(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_volund"))
            .args(arguments)
            .arg("--runtime-dir")
            .arg(self.path("run"))
            .output()
            .unwrap()
    }

    /// Standard output of a command that must succeed.
    pub(crate) fn said(&self, arguments: &[&str]) -> String {
        let output = self.volund(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the admin socket answers to a GET; none while nobody answers.
    pub(crate) fn get(&self, path: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.path("run/admin.sock")).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        Some(body.to_owned())
    }

    pub(crate) fn status(&self) -> Option<NodeStatus> {
        serde_json::from_str(&self.get("/v1/status")?).ok()
    }

    pub(crate) fn volume(&self, name: &str) -> Option<VolumeStatus> {
        let volumes = self.status()?.volumes;
        volumes.into_iter().find(|v| v.name.as_str() == name)
    }

    /// A volume's id, as text.
    pub(crate) fn uuid(&self, name: &str) -> String {
        self.volume(name).unwrap().uuid.unwrap().to_string()
    }

    /// One value of `/metrics`.
    pub(crate) fn metric(&self, series: &str) -> Option<f64> {
        let text = self.get("/metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line?.trim().parse().ok()
    }

    /// Waits until `condition` holds; shows the log if it never does.
    pub(crate) fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let started = monotonic();
        while !condition(self) {
            let patient = started.elapsed() < PATIENCE;
            assert!(
                patient,
                "still not: {what}\n{:#?}\n{}",
                self.status(),
                self.log()
            );
            pause(10);
        }
    }

    pub(crate) fn until_attached(&self, name: &str) {
        self.until(&format!("{name} attached"), |node| {
            node.volume(name).is_some_and(|v| v.state == "Attached")
        });
    }

    /// Waits until a volume has a condition, and answers it.
    pub(crate) fn until_condition(&self, volume: &str, kind: &str, reason: &str) -> Condition {
        let find = |node: &Self| {
            let conditions = node.volume(volume)?.conditions;
            let mut conditions = conditions.into_iter();
            conditions.find(|c| c.kind == kind && c.reason == reason)
        };
        self.until(&format!("{volume} {kind}/{reason}"), |node| {
            find(node).is_some()
        });
        find(self).unwrap()
    }

    /// Connects to a volume's socket.
    pub(crate) fn disk(&self, name: &str) -> Disk {
        Disk::connect(&self.path(&format!("run/{name}.sock")))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// A vhost-user client that does one request at a time.
pub(crate) struct Disk {
    transport: Box<VirtioBlkTransport>,
    queue: VirtioBlkQueue<'static, ()>,
    memory: MmapRegion,
}

impl Disk {
    fn connect(path: &Path) -> Self {
        let features = VirtioBlkFeatureFlags::FLUSH.bits() | VirtioFeatureFlags::VERSION_1.bits();
        let path = path.to_str().unwrap();
        let made = VhostUser::<VirtioBlkConfig, VirtioBlkReqBuf>::new(path, features).unwrap();
        let mut transport: Box<VirtioBlkTransport> = Box::new(made);
        let mut queues = VirtioBlkQueue::setup_queues(&mut *transport, 1, 16).unwrap();
        let mut queue = queues.remove(0);
        queue.set_used_notif_enabled(true);
        let fd = memfd_create("data", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, BLOCK as u64).unwrap();
        let file = File::from(fd);
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let memory = MmapRegion::from_file(offset, BLOCK).unwrap();
        let base = memory.as_ptr().addr();
        transport
            .map_mem_region(base, BLOCK, file.as_raw_fd(), 0)
            .unwrap();
        Self {
            transport,
            queue,
            memory,
        }
    }

    /// What block `block` holds when `seed` was written to it.
    fn contents(block: u64, seed: u64) -> Vec<u8> {
        [block.to_le_bytes(), seed.to_le_bytes()]
            .concat()
            .repeat(BLOCK / 16)
    }

    /// Writes `seed` to some blocks all over the disk, durably.
    pub(crate) fn write(&mut self, blocks: u64, seed: u64) {
        for block in 0..blocks {
            let bytes = Self::contents(block, seed);
            self.memory
                .as_volatile_slice()
                .write_slice(&bytes, 0)
                .unwrap();
            self.transfer(block * 7, true);
        }
        self.queue.flush(()).unwrap();
        self.complete();
    }

    /// Whether those blocks hold `seed`.
    pub(crate) fn holds(&mut self, blocks: u64, seed: u64) -> bool {
        (0..blocks).all(|block| {
            self.transfer(block * 7, false);
            let mut found = vec![0; BLOCK];
            self.memory
                .as_volatile_slice()
                .read_slice(&mut found, 0)
                .unwrap();
            found == Self::contents(block, seed)
        })
    }

    #[allow(unsafe_code, reason = "the driver takes raw pointers to shared memory")]
    fn transfer(&mut self, block: u64, is_write: bool) {
        let offset = block * BLOCK as u64;
        let base = self.memory.as_ptr();
        let queued = if is_write {
            // SAFETY: the mapping has BLOCK bytes and nobody else uses it before the answer, waited for below.
            unsafe { self.queue.write_raw(offset, base, BLOCK, ()) }
        } else {
            // SAFETY: as above.
            unsafe { self.queue.read_raw(offset, base, BLOCK, ()) }
        };
        queued.unwrap();
        self.complete();
    }

    fn complete(&mut self) {
        self.transport.get_submission_notifier(0).notify().unwrap();
        let timeout = Timespec {
            tv_sec: i64::try_from(PATIENCE.as_secs()).unwrap(),
            tv_nsec: 0,
        };
        loop {
            if let Some(done) = self.queue.completions().next() {
                assert_eq!(done.ret, 0, "the disk answers with an error");
                return;
            }
            let call = self.transport.get_completion_fd(0);
            let ready = poll(&mut [PollFd::new(&*call, PollFlags::IN)], Some(&timeout)).unwrap();
            assert!(ready > 0, "the disk does not answer");
            call.read().unwrap();
        }
    }
}
