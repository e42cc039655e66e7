//! The arguments, as clap derives the parser, the help, the completions and the man page from them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use uuid::Uuid;

use super::check::CheckArgs;
use super::events::EventsArgs;
use super::explain::ExplainArgs;
use super::operations::OperationsArgs;
use super::wait::WaitArgs;
use crate::model::{NodeName, Polling, PoolName, VolumeName};

/// Per-node daemon for replicated block volumes: TOML in, ublk and vhost-user-blk out.
#[derive(Clone, Debug, Parser)]
#[command(name = "volund", version, max_term_width = 100)]
pub struct Cli {
    /// What applies to every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What applies to every command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Configuration: a TOML file, or a directory whose *.toml files are read in name order.
    #[arg(long, global = true, value_name = "PATH", env = "VOLUND_CONFIG")]
    pub config: Option<PathBuf>,
    /// Name of this node in the configuration [default: the host name].
    #[arg(long, global = true, value_name = "NAME", env = "VOLUND_NODE")]
    pub node: Option<NodeName>,
    /// Folder for sockets.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "VOLUND_RUNTIME_DIR",
        default_value = "/run/volund"
    )]
    pub runtime_dir: PathBuf,
    /// The daemon's admin socket [default: admin.sock in the runtime dir].
    #[arg(long, global = true, value_name = "PATH", env = "VOLUND_SOCKET")]
    pub socket: Option<PathBuf>,
    /// How to print results.
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        value_enum,
        default_value = "human"
    )]
    pub output: Format,
    /// When to use colour.
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        value_enum,
        default_value = "auto"
    )]
    pub color: Color,
}

/// Where the configuration is unless said otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/volund";

impl Global {
    /// The configuration's path, default filled in.
    #[must_use]
    pub fn config_or_default(&self) -> PathBuf {
        self.config
            .clone()
            .unwrap_or_else(|| PathBuf::from(DEFAULT_CONFIG))
    }

    /// The admin socket's path, default filled in.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        self.socket
            .clone()
            .unwrap_or_else(|| self.runtime_dir.join("admin.sock"))
    }
}

/// How to print results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Text for people.
    Human,
    /// JSON for programs.
    Json,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run the daemon in the foreground.
    Run(RunArgs),
    /// Show what the daemon would change to reach the configuration.
    Plan(PlanArgs),
    /// Show volumes, their replicas and what is wrong with them.
    Status(StatusArgs),
    /// Explain a volume's state: its labels and members, what happened to it, and what to do next.
    Why {
        /// The volume.
        volume: VolumeName,
    },
    /// Show what happened to volumes, pools and the configuration.
    Events(EventsArgs),
    /// Show what the daemon did or was asked to do, whether it worked, and why not.
    Operations(OperationsArgs),
    /// Wait until volumes are as they should be.
    Wait(WaitArgs),
    /// Compare all replicas of a volume, and repair what a majority decides. Goes on when interrupted.
    Scrub {
        /// The volume.
        volume: VolumeName,
        /// Believe the replica in this pool wherever nothing else says which one is right.
        #[arg(long, value_name = "POOL")]
        repair_from: Option<PoolName>,
    },
    /// Print the QEMU arguments, or the libvirt XML, that attach a volume to a virtual machine.
    QemuArgs(QemuArgs),
    /// Look for what would keep the daemon from working on this machine.
    Doctor,
    /// Look after the data of removed volumes.
    #[command(subcommand)]
    Quarantine(QuarantineCommand),
    /// Look after data on disk that nobody declares.
    #[command(subcommand)]
    Orphans(OrphansCommand),
    /// Break a replica on purpose, for tests and drills; needs `fault_injection` in `[danger_zone]`.
    Inject {
        /// The volume.
        volume: VolumeName,
        /// The pool whose replica is to break.
        pool: PoolName,
        /// What is to go wrong from now on, in place of what did: `error=read|write|flush|all[:ERRNO]`, `delay=50ms`,
        /// `hang`, `torn-write`, `lost-device`, each with `[,one-in=N][,count=N]`; or `clear`.
        #[arg(required = true, value_name = "FAULT")]
        faults: Vec<String>,
    },
    /// Hold the state folder, labels, quarantine, links, sockets and devices against each other. Without a daemon, looks
    /// itself, and keeps one from starting meanwhile.
    Fsck(FsckArgs),
    /// Look at a replica's file.
    #[command(subcommand)]
    Replica(ReplicaCommand),
    /// Let a plan go ahead that removes more volumes than `safety.max_removals`.
    Approve {
        /// The plan's id, as `volund plan` and `volund status` print it.
        plan_id: String,
    },
    /// Check a configuration and print everything that is wrong with it.
    Check(CheckArgs),
    /// Print the JSON Schema of the configuration.
    Schema,
    /// Explain a code that errors and conditions show.
    Explain(ExplainArgs),
    /// Print the completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the man page.
    Man {
        /// Write one page a command into this folder instead, as man(1) looks for them.
        #[arg(long, value_name = "DIR")]
        into: Option<PathBuf>,
    },
}

/// Arguments of `volund run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Folder for what must survive a restart: witnesses, the last good configuration, the node's database.
    #[arg(
        long,
        value_name = "DIR",
        env = "VOLUND_STATE_DIR",
        default_value = "/var/lib/volund"
    )]
    pub state_dir: PathBuf,
    /// Where to serve /metrics and what else may be read, for monitoring and browsers. Without --http-token-file, a
    /// loopback address: nobody is asked who they are.
    #[arg(
        long,
        value_name = "ADDR",
        env = "VOLUND_HTTP",
        default_value = "127.0.0.1:9847"
    )]
    pub http: SocketAddr,
    /// File with a token that requests to --http have to bring: `Authorization: Bearer TOKEN`. Read again on SIGHUP.
    #[arg(long, value_name = "FILE", env = "VOLUND_HTTP_TOKEN_FILE")]
    pub http_token_file: Option<PathBuf>,
    /// Number of I/O threads, 1 to 64 [default: the cores, up to 4].
    #[arg(long, value_name = "N", env = "VOLUND_IO_THREADS", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub io_threads: Option<u16>,
    /// How long an I/O thread looks for more work before it sleeps: `off`, `auto`, or microseconds. Looking takes a core,
    /// and saves the time to be woken. `auto` looks only while that pays: under a steady load on a fast disk.
    #[arg(
        long,
        value_name = "off|auto|MICROSECONDS",
        env = "VOLUND_POLL",
        default_value_t = Polling::Off
    )]
    pub poll: Polling,
    /// How to write the log.
    #[arg(
        long,
        value_name = "FORMAT",
        env = "VOLUND_LOG_FORMAT",
        value_enum,
        default_value = "auto"
    )]
    pub log_format: LogFormat,
}

/// How to write the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// To the journal under systemd, else as text.
    Auto,
    /// Text lines on standard error.
    Text,
    /// One JSON object per line on standard error.
    Json,
}

/// Arguments of `volund plan`.
#[derive(Clone, Debug, Args)]
pub struct PlanArgs {
    /// Plan against the running daemon, or against what `volund status --output json` printed: then no daemon is needed,
    /// as in a CI job.
    #[arg(long, value_name = "LIVE|STATE.json", default_value = "LIVE")]
    pub against: PathBuf,
    /// Exit with 2 when there are changes, with 3 when one of them removes an export or data.
    #[arg(long)]
    pub detailed_exitcode: bool,
}

/// Arguments of `volund status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Only these volumes.
    pub volumes: Vec<VolumeName>,
    /// Go on until interrupted: redraw on a terminal, else print what changed.
    #[arg(short, long)]
    pub watch: bool,
    /// Exit with 4 when something is not ready.
    #[arg(long)]
    pub exit_code: bool,
}

/// Arguments of `volund qemu-args`.
#[derive(Clone, Debug, Args)]
pub struct QemuArgs {
    /// The volume; it must have a vhost-user export.
    pub volume: VolumeName,
    /// Print libvirt's XML for the domain instead.
    #[arg(long)]
    pub libvirt: bool,
    /// QEMU's version, as in 9.2: `reconnect-ms` replaced `reconnect` there.
    #[arg(long, value_name = "X.Y", default_value = "7.2")]
    pub qemu_version: QemuVersion,
    /// Memory of the guest, as QEMU spells it.
    #[arg(long, value_name = "SIZE", default_value = "4G")]
    pub memory: String,
}

/// A version of QEMU: major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QemuVersion(pub u32, pub u32);

impl FromStr for QemuVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('.').map(str::parse::<u32>);
        match (parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Ok(Self(major, minor)),
            _ => Err("a version looks like 9.2".to_owned()),
        }
    }
}

/// What to do with the data of removed volumes.
#[derive(Clone, Debug, Subcommand)]
pub enum QuarantineCommand {
    /// List it.
    List,
    /// Bring it back; a volume of that name must not exist.
    Restore {
        /// The entry's id, as `list` prints it.
        id: String,
        /// Bring it back under another name.
        #[arg(long = "as", value_name = "NAME")]
        new_name: Option<VolumeName>,
    },
    /// Delete it for ever.
    Purge {
        /// The entry's id, as `list` prints it.
        id: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

/// What to do with data on disk that nobody declares.
#[derive(Clone, Debug, Subcommand)]
pub enum OrphansCommand {
    /// List it, with what may be done about each.
    List,
    /// Delete it for ever.
    Purge {
        /// The orphan's id, as `list` prints it.
        id: Uuid,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

/// Arguments of `volund fsck`.
#[derive(Clone, Debug, Args)]
pub struct FsckArgs {
    /// Do the safe part of the repair: remove dead sockets, dead links, and witnesses to which nothing was ever committed.
    #[arg(long)]
    pub repair: bool,
    /// The daemon's folder for what must survive a restart.
    #[arg(
        long,
        value_name = "DIR",
        env = "VOLUND_STATE_DIR",
        default_value = "/var/lib/volund"
    )]
    pub state_dir: PathBuf,
}

/// What to do with a replica's file.
#[derive(Clone, Debug, Subcommand)]
pub enum ReplicaCommand {
    /// Print its label and a summary of its bitmaps. Only reads; the volume may be running.
    Dump {
        /// The file, or the device.
        file: PathBuf,
    },
}
