//! The contenders as processes: volund and qemu-storage-daemon serve vhost-user-blk sockets, fio works on the files itself.
//!
//! All of them do direct I/O on the same extents: a replica's file has a header of 1 MiB, and the data from there on is
//! what qemu-storage-daemon exports and fio touches. All are started once for a case; one at a time is loaded.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::load::Load;
use super::store::DATA_OFFSET;
use crate::daemon::{self, Daemon, Site};
use crate::shell::{self, TempDir};

/// One that takes part in a case.
#[derive(Debug)]
pub(crate) struct Contender {
    pub(crate) name: String,
    pub(crate) reach: Reach,
    /// The files that hold the data, for each fresh device of `reach`; none in memory.
    pub(crate) files: Vec<Vec<PathBuf>>,
    process: Option<Process>,
}

/// How it is driven. With several devices, each round gets the next one.
#[derive(Debug)]
pub(crate) enum Reach {
    /// By the front end, over a socket; this process does the work.
    Vhost { sockets: Vec<PathBuf>, pid: u32 },
    /// By fio, on the files.
    Files,
}

/// What ends with the contender.
#[derive(Debug)]
#[allow(
    dead_code,
    reason = "held to be dropped: the process first, then its folders"
)]
enum Process {
    Volund(Daemon, Site),
    Server(Server),
}

/// The volumes of a daemon: all alike.
#[derive(Clone, Debug)]
pub(crate) struct Volumes {
    /// The pools, as lines of their tables. Each volume has a replica in each.
    pub(crate) pools: Vec<String>,
    pub(crate) count: u32,
    pub(crate) size: u64,
    pub(crate) queues: u32,
    /// Further lines of each volume's table.
    pub(crate) more: String,
}

impl Volumes {
    /// In folders of this path.
    pub(crate) fn pool_at(path: &Path) -> String {
        format!("path = \"{}\"\nreserve = \"0MiB\"", path.display())
    }

    pub(crate) fn config(&self) -> String {
        let mut text = "version = 1\n".to_owned();
        let mut names = Vec::new();
        for (number, lines) in self.pools.iter().enumerate() {
            text.push_str(&format!("[pool.p{number}]\n{lines}\n"));
            names.push(format!("\"p{number}\""));
        }
        for number in 0..self.count {
            text.push_str(&format!(
                "[volume.v{number}]\nsize = \"{}MiB\"\nreplicas = [{}]\n{}\n\
                 export = {{ vhost-user = {{ queues = {} }} }}\n",
                self.size >> 20,
                names.join(", "),
                self.more,
                self.queues,
            ));
        }
        text
    }
}

/// A running volund whose volumes are all ready.
pub(crate) fn start_volund(
    binary: &Path,
    volumes: &Volumes,
    state: Option<&Path>,
    args: &[String],
) -> Result<(Daemon, Site)> {
    let mut site = Site::new(binary)?;
    if let Some(state) = state {
        site.keep_state_in(state.to_path_buf());
    }
    site.configure(&volumes.config())?;
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let daemon = site.spawn(&args)?;
    daemon.wait_status("serving every volume", |status| {
        let found = status["volumes"].as_array().map_or(&[][..], Vec::as_slice);
        found.len() == volumes.count as usize
            && found.iter().all(|volume| daemon::is_true(volume, "Ready"))
    })?;
    Ok((daemon, site))
}

impl Contender {
    pub(crate) fn volund(
        binary: &Path,
        volumes: &Volumes,
        state: Option<&Path>,
        args: &[String],
    ) -> Result<Contender> {
        let (daemon, site) = start_volund(binary, volumes, state, args)?;
        let sockets = (0..volumes.count).map(|number| site.socket(&format!("v{number}")));
        Ok(Contender {
            name: "volund".to_owned(),
            reach: Reach::Vhost {
                sockets: sockets.collect(),
                pid: daemon.pid(),
            },
            files: Vec::new(),
            process: Some(Process::Volund(daemon, site)),
        })
    }

    /// qemu-storage-daemon with one iothread, which serves all of these nodes.
    pub(crate) fn qemu(
        name: &str,
        binary: &Path,
        nodes: &[Node],
        load: &Load,
    ) -> Result<Contender> {
        Ok(Contender::server(name, Server::qemu(binary, nodes, load)?))
    }

    /// volund's frontend on a disk that stores nothing (the example `vhost_null`).
    pub(crate) fn volund_null(binary: &Path, load: &Load, args: &[String]) -> Result<Contender> {
        Ok(Contender::server(
            "volund",
            Server::null(binary, load, args)?,
        ))
    }

    fn server(name: &str, server: Server) -> Contender {
        Contender {
            name: name.to_owned(),
            reach: Reach::Vhost {
                sockets: server.sockets.clone(),
                pid: server.child.id(),
            },
            files: Vec::new(),
            process: Some(Process::Server(server)),
        }
    }

    /// fio on these files: one set a round, or the same one each time.
    pub(crate) fn fio(files: Vec<Vec<PathBuf>>) -> Contender {
        Contender {
            name: "fio".to_owned(),
            reach: Reach::Files,
            files,
            process: None,
        }
    }

    pub(crate) fn named(self, name: &str) -> Contender {
        Contender {
            name: name.to_owned(),
            ..self
        }
    }

    /// A series of the daemon's metrics, if it is volund.
    pub(crate) fn metric(&self, series: &str) -> Result<f64> {
        match &self.process {
            Some(Process::Volund(daemon, _)) => daemon
                .metric(series)?
                .with_context(|| format!("no metric {series}")),
            _ => bail!("{} has no metrics", self.name),
        }
    }

    /// With the files that hold its data, so that rounds can start from the same state of them.
    pub(crate) fn on(self, files: Vec<Vec<PathBuf>>) -> Contender {
        Contender { files, ..self }
    }
}

/// What one export of qemu-storage-daemon has below it.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    /// The data area of a file.
    File(PathBuf),
    /// Nothing: reads give zeroes.
    Zeroes,
    /// Nothing: reads give what was in the buffer.
    Null,
}

impl Node {
    /// The block device's arguments; its node is called `nNUMBER`.
    fn args(&self, number: usize, load: &Load, aio: &str) -> Vec<String> {
        let size = load.size;
        match self {
            Node::Zeroes => vec![
                "--blockdev".to_owned(),
                format!("driver=null-co,node-name=n{number},size={size},read-zeroes=on"),
            ],
            Node::Null => vec![
                "--blockdev".to_owned(),
                format!("driver=null-co,node-name=n{number},size={size},read-zeroes=off"),
            ],
            Node::File(path) => vec![
                "--blockdev".to_owned(),
                format!(
                    "driver=file,node-name=f{number},filename={},locking=off,discard=unmap,\
                     cache.direct=on,aio={aio}",
                    path.display()
                ),
                "--blockdev".to_owned(),
                format!(
                    "driver=raw,node-name=n{number},file=f{number},offset={DATA_OFFSET},size={size},\
                     discard=unmap,cache.direct=on"
                ),
            ],
        }
    }
}

/// A process that serves sockets in a folder of its own.
#[derive(Debug)]
struct Server {
    child: Child,
    sockets: Vec<PathBuf>,
    _runtime: TempDir,
}

/// What qemu-storage-daemon does its I/O with, unless `VOLUND_BENCH_QEMU_AIO` says `native`. Which one is faster has not
/// been measured here.
const AIO: &str = "io_uring";

impl Server {
    fn qemu(binary: &Path, nodes: &[Node], load: &Load) -> Result<Server> {
        let runtime = TempDir::new("qemu")?;
        let aio = std::env::var("VOLUND_BENCH_QEMU_AIO").unwrap_or_else(|_| AIO.to_owned());
        let mut command = shell::command(binary);
        command.args(["--object", "iothread,id=io0"]);
        let mut sockets = Vec::new();
        for (number, node) in nodes.iter().enumerate() {
            let socket = runtime.path().join(format!("{number}.sock"));
            command.args(node.args(number, load, &aio));
            command.arg("--export").arg(format!(
                "type=vhost-user-blk,id=e{number},node-name=n{number},addr.type=unix,addr.path={},\
                 writable=on,iothread=io0,num-queues={}",
                socket.display(),
                load.queues
            ));
            sockets.push(socket);
        }
        Server::start(&mut command, sockets, runtime)
    }

    fn null(binary: &Path, load: &Load, args: &[String]) -> Result<Server> {
        let runtime = TempDir::new("null")?;
        let socket = runtime.path().join("0.sock");
        let mut command = shell::command(binary);
        command.arg("--socket").arg(&socket);
        command.args(["--size", &load.size.to_string()]);
        command.args(["--queues", &load.queues.to_string()]);
        command.args(args);
        Server::start(&mut command, vec![socket], runtime)
    }

    /// Starts it and waits for its sockets.
    fn start(command: &mut Command, sockets: Vec<PathBuf>, runtime: TempDir) -> Result<Server> {
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", shell::line(command)))?;
        let mut server = Server {
            child,
            sockets,
            _runtime: runtime,
        };
        let started = Instant::now();
        while !server.sockets.iter().all(|socket| socket.exists()) {
            if let Some(status) = server.child.try_wait()? {
                bail!("{} ended with {status}", shell::line(command));
            }
            if started.elapsed() > Duration::from_secs(10) {
                bail!("{} makes no socket", shell::line(command));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _it_may_have_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_has_all_pools_and_each_volume_its_own_export() {
        let volumes = Volumes {
            pools: vec!["memory = \"64MiB\"".to_owned(); 2],
            count: 2,
            size: 32 << 20,
            queues: 4,
            more: "intent_max = 1024".to_owned(),
        };
        let text = volumes.config();
        assert!(text.contains("[pool.p1]\nmemory = \"64MiB\"\n"));
        assert!(text.contains(
            "[volume.v1]\nsize = \"32MiB\"\nreplicas = [\"p0\", \"p1\"]\nintent_max = 1024\n\
             export = { vhost-user = { queues = 4 } }\n"
        ));
    }
}
