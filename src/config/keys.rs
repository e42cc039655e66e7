//! Every key that the files may have, in one table. The parser ([`super::shape`]), the JSON Schema
//! ([`super::schema`]) and the reference in `docs/config.md` ([`super::reference`]) are all driven by it.

mod nexus;

use crate::units::{Bytes, GIB, KIB, TIB};

/// The schema version that this release knows.
pub(crate) const VERSION: u64 = 1;
/// Most replicas of a volume (spec section 9: the label has 16 member slots).
pub(crate) const REPLICAS_MAX: usize = 16;
/// Largest volume, memory pool and reserve. Far below what a file offset can express, so sums can't overflow.
pub(crate) const SIZE_MAX: Bytes = Bytes(1024 * TIB);
/// Volumes are made of whole blocks of this size.
pub(crate) const SIZE_UNIT: u64 = 4 * KIB;
/// What a pool keeps free unless told otherwise.
pub(crate) const RESERVE: Bytes = Bytes(GIB);
/// How long removed data stays in quarantine unless told otherwise: seven days.
pub(crate) const QUARANTINE_SECONDS: u64 = 7 * 24 * 3600;
/// Virtqueues of a vhost-user export unless told otherwise.
pub(crate) const VHOST_QUEUES: u16 = 16;
/// Virtqueue size of a vhost-user export unless told otherwise.
pub(crate) const VHOST_DEPTH: u16 = 256;
/// Requests in flight of a ublk export unless told otherwise.
pub(crate) const UBLK_DEPTH: u16 = 128;
/// Removals that one change may do unless told otherwise.
pub(crate) const REMOVALS_MAX: u32 = 1;

/// What sort of object a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    Node,
    Pool,
    Volume,
}

impl Object {
    /// The word for messages, and the name of its table.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Pool => "pool",
            Self::Volume => "volume",
        }
    }
}

/// How a span of time may be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spelling {
    /// A word that stands for none at all, read as zero.
    pub(crate) word: Option<&'static str>,
    /// The shortest.
    pub(crate) min_ms: u64,
    /// The longest.
    pub(crate) max_seconds: u64,
}

/// What a key's value may be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// The schema version.
    Version,
    /// A UUID as text.
    Uuid,
    /// `host:port`.
    Address,
    /// Absolute path of a directory.
    Directory,
    /// Absolute path of a unix socket.
    Socket,
    /// An amount of bytes with a binary unit, a multiple of `unit` from `min` to [`SIZE_MAX`].
    Size { min: u64, unit: u64 },
    /// A span of time as text.
    Duration(Spelling),
    /// An amount of bytes per second, at least `min`, or the word `unlimited`.
    Bandwidth { min: u64 },
    /// A number with at most two decimals, in hundredths.
    Factor { min_percent: u32, max_percent: u32 },
    /// `true` or `false`.
    Bool,
    /// An integer in this range.
    Integer { min: u64, max: u64 },
    /// A power of two in this range.
    PowerOfTwo { min: u64, max: u64 },
    /// One of these integers.
    IntegerOf(&'static [u64]),
    /// One of these words.
    WordOf(&'static [&'static str]),
    /// The name of an object.
    Name(Object),
    /// The names of 1 to [`REPLICAS_MAX`] objects.
    Names(Object),
    /// A table with these keys.
    Table(&'static [Key]),
    /// A table of tables: one for each object, under its name.
    Tables(Object, &'static [Key]),
    /// One of these words, or a table with these keys.
    WordOrTable(&'static [&'static str], &'static [Key]),
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// As it is written.
    pub(crate) name: &'static str,
    /// What its value may be.
    pub(crate) kind: Kind,
    /// What holds when it is absent, as the reference shows it.
    pub(crate) default: &'static str,
    /// What changing it does to something that exists already.
    pub(crate) change: &'static str,
    /// What it means.
    pub(crate) meaning: &'static str,
    /// A value for tests and for the schema's `examples`, as TOML. Empty for tables.
    pub(crate) sample: &'static str,
}

const LIVE: &str = "live";
const UNUSED: &str = "when unused";
const IMMUTABLE: &str = "immutable";

const fn key(name: &'static str, kind: Kind) -> Key {
    Key {
        name,
        kind,
        default: "",
        change: "",
        meaning: "",
        sample: "",
    }
}

impl Key {
    const fn default(self, default: &'static str) -> Self {
        Self { default, ..self }
    }

    const fn change(self, change: &'static str) -> Self {
        Self { change, ..self }
    }

    const fn meaning(self, meaning: &'static str) -> Self {
        Self { meaning, ..self }
    }

    const fn sample(self, sample: &'static str) -> Self {
        Self { sample, ..self }
    }
}

/// What a file may have at its top.
pub(crate) static ROOT: &[Key] = &[
    key("version", Kind::Version)
        .default("required")
        .change(LIVE)
        .meaning("Version of this schema. One file of a directory is enough to say it.")
        .sample("1"),
    key("cluster", Kind::Table(CLUSTER)).meaning("What all nodes together are."),
    key("node", Kind::Tables(Object::Node, NODE)).meaning(
        "The machines that share these files. A single machine needs none; once one is declared, all must be.",
    ),
    key("pool", Kind::Tables(Object::Pool, POOL)).meaning(
        "Capacity that replicas are carved from. Exactly one of `path` and `memory`.",
    ),
    key("volume", Kind::Tables(Object::Volume, VOLUME)).meaning(
        "What clients read and write. Exactly one of `pool` and `replicas`.",
    ),
    key("defaults", Kind::Table(DEFAULTS)).meaning("What holds where an object says nothing."),
    key("safety", Kind::Table(SAFETY)).meaning("Limits on what one change of the files may do."),
    key("retry", Kind::Table(nexus::RETRY)).meaning("When something that failed is tried again."),
    key("danger_zone", Kind::Table(nexus::DANGER_ZONE))
        .meaning("What no machine with data worth keeping should switch on."),
];

static CLUSTER: &[Key] = &[key("id", Kind::Uuid)
    .default("required with more than one node")
    .change(IMMUTABLE)
    .meaning("UUID that keeps the replicas of two clusters apart.")
    .sample("\"0197f0a4-5d3c-7c1e-9b1e-3f2d8a4c6e10\"")];

static NODE: &[Key] = &[
    key("address", Kind::Address)
        .default("required with more than one node")
        .change(LIVE)
        .meaning("Where its peers reach it.")
        .sample("\"10.0.0.11:4420\""),
    nexus::REBUILD_MAX,
];

static POOL: &[Key] = &[
    key("path", Kind::Directory)
        .default("this or `memory`")
        .change(IMMUTABLE)
        .meaning("A directory on a filesystem, absolute; created when its parent exists.")
        .sample("\"/var/lib/volund/main\""),
    key(
        "memory",
        Kind::Size {
            min: SIZE_UNIT,
            unit: SIZE_UNIT,
        },
    )
    .default("this or `path`")
    .change(IMMUTABLE)
    .meaning("So much RAM. Everything in it is lost when the daemon stops.")
    .sample("\"1GiB\""),
    key("node", Kind::Name(Object::Node))
        .default("the only node")
        .change(IMMUTABLE)
        .meaning("The node that has it. Required with more than one node.")
        .sample("\"n1\""),
    key("reserve", Kind::Size { min: 0, unit: 1 })
        .default("`\"1GiB\"`; `\"0GiB\"` for memory")
        .change(LIVE)
        .meaning("Free space that is never handed out to new replicas.")
        .sample("\"2GiB\""),
];

const THIN: Key = key("thin", Kind::Bool)
    .default("`true`")
    .change(IMMUTABLE)
    .meaning("Whether replicas take up space only as they are written. `false` preallocates them.")
    .sample("false");
const BLOCK_SIZE: Key = key("block_size", Kind::IntegerOf(&[512, 4096]))
    .default("`4096`")
    .change(IMMUTABLE)
    .meaning(
        "Logical block size that clients see. 512 works only when all of its pools can do direct I/O in units of 512 bytes.",
    )
    .sample("512");
const ON_REMOVE: Key = key("on_remove", Kind::WordOf(&["retain", "delete"]))
    .default("`\"retain\"`")
    .change(LIVE)
    .meaning(
        "What becomes of the data once the table has gone and the quarantine is over. The value last applied counts.",
    )
    .sample("\"delete\"");
const QUARANTINE_FOR: Key = key(
    "quarantine_for",
    Kind::Duration(Spelling {
        word: None,
        min_ms: 1000,
        max_seconds: 100 * 366 * 86400,
    }),
)
.default("`\"7d\"`")
.change(LIVE)
.meaning("How long removed data stays in quarantine before `on_remove = \"delete\"` purges it.")
.sample("\"36h\"");

const ON_CREATE_FAIL: Key = key("on_create_fail", Kind::WordOf(&["delete", "leave"]))
    .default("`\"delete\"`")
    .change(LIVE)
    .meaning(
        "What becomes of the files of a creation that failed half way: deleted before the next attempt, or left for \
         inspection, and then nothing is attempted until this says `delete`.",
    )
    .sample("\"leave\"");

static VOLUME: &[Key] = &[
    key("size", Kind::Size { min: SIZE_UNIT, unit: SIZE_UNIT })
        .default("required")
        .change("growing is live; shrinking is refused")
        .meaning("Size, a multiple of 4KiB.")
        .sample("\"20GiB\""),
    key("pool", Kind::Name(Object::Pool))
        .default("this or `replicas`")
        .change("live: the new replica is built, then the old one removed")
        .meaning("The pool of its only replica: short for `replicas` with one entry.")
        .sample("\"main\""),
    key("replicas", Kind::Names(Object::Pool))
        .default("this or `pool`")
        .change("live: new ones are built, then dropped ones removed")
        .meaning("The pools that hold its replicas, one each: 1 to 16, no pool twice.")
        .sample("[\"a\", \"b\"]"),
    key("node", Kind::Name(Object::Node))
        .default("the node of its pools")
        .change(UNUSED)
        .meaning("The node that mirrors and exports it. Required when its pools are on several nodes.")
        .sample("\"n1\""),
    key("export", Kind::WordOrTable(&["none"], EXPORT))
        .default("`\"none\"`")
        .change(UNUSED)
        .meaning("How clients reach it: exactly one of the tables below, or the word `none`."),
    THIN,
    BLOCK_SIZE,
    key("read_only", Kind::Bool)
        .default("`false`")
        .change(UNUSED)
        .meaning("Whether clients may only read.")
        .sample("true"),
    key("pin_guest_memory", Kind::Bool)
        .default("`false`")
        .change(UNUSED)
        .meaning(
            "Whether all memory of the guest of a vhost-user export is pinned in RAM while it is connected, which makes \
             requests of a volume with one replica cheaper: `docs/performance.md`. Only for guests whose memory stays \
             theirs: **with a balloon, free page reporting or virtio-mem, reads and writes would use pages that the guest \
             has given back, and data would be wrong**.",
        )
        .sample("true"),
    ON_REMOVE,
    QUARANTINE_FOR,
    ON_CREATE_FAIL,
    key("uuid", Kind::Uuid)
        .default("from the replicas' labels")
        .change(IMMUTABLE)
        .meaning(
            "The data that this volume is, whatever name it carries: adopts replicas that nobody declares. Nothing is ever \
             created under it.",
        )
        .sample("\"0197f0a4-5d3c-7c1e-9b1e-3f2d8a4c6e10\""),
    key("renamed_from", Kind::Name(Object::Volume))
        .default("none")
        .change(LIVE)
        .meaning(
            "The name whose data this volume takes over. May be dropped once the rename is applied.",
        )
        .sample("\"old-name\""),
    nexus::IO_TIMEOUT,
    nexus::DEGRADED_WAIT,
    nexus::COMMIT_TIMEOUT,
    nexus::READ_HEDGE,
    nexus::INTENT_MAX,
    nexus::REBUILD_BANDWIDTH,
    key("scrub", Kind::Table(nexus::SCRUB))
        .meaning("When its replicas are compared, and which one is believed."),
    key("force_start", Kind::Table(nexus::FORCE_START)).meaning(
        "Start it from this replica although nothing proves that it is the newest. Every other replica is rebuilt in \
         full. To be dropped again once it serves.",
    ),
];

static EXPORT: &[Key] = &[
    key("vhost-user", Kind::Table(VHOST_USER))
        .meaning("A vhost-user-blk socket for virtual machines."),
    key("ublk", Kind::Table(UBLK)).meaning("A block device on this host, `/dev/volund/<volume>`."),
];

static VHOST_USER: &[Key] = &[
    key("socket", Kind::Socket)
        .default("`<runtime dir>/<volume>.sock`")
        .change(UNUSED)
        .meaning("Absolute path of the socket, at most 107 bytes.")
        .sample("\"/run/volund/vm1.sock\""),
    key("queues", Kind::Integer { min: 1, max: 64 })
        .default("`16`")
        .change(UNUSED)
        .meaning("Virtqueues offered. QEMU needs at least as many as it is told to use.")
        .sample("4"),
    key("depth", Kind::PowerOfTwo { min: 2, max: 1024 })
        .default("`256`")
        .change(UNUSED)
        .meaning("The most requests of a virtqueue that are served at a time, a power of two.")
        .sample("128"),
];

static UBLK: &[Key] = &[
    key(
        "id",
        Kind::Integer {
            min: 0,
            max: 1_048_575,
        },
    )
    .default("chosen by the kernel")
    .change(UNUSED)
    .meaning("The number in `/dev/ublkbN`.")
    .sample("7"),
    key("depth", Kind::Integer { min: 1, max: 4096 })
        .default("`128`")
        .change(UNUSED)
        .meaning("Requests in flight.")
        .sample("64"),
];

static DEFAULTS: &[Key] = &[
    key("volume", Kind::Table(DEFAULTS_VOLUME)).meaning("What holds where a volume says nothing."),
    key("node", Kind::Table(DEFAULTS_NODE)).meaning(
        "What holds where a node says nothing, and for a single machine, which needs no [node.*].",
    ),
];

static DEFAULTS_NODE: &[Key] = &[nexus::REBUILD_MAX];

static DEFAULTS_VOLUME: &[Key] = &[
    THIN,
    BLOCK_SIZE,
    ON_REMOVE,
    QUARANTINE_FOR,
    ON_CREATE_FAIL,
    nexus::IO_TIMEOUT,
    nexus::DEGRADED_WAIT,
    nexus::COMMIT_TIMEOUT,
    nexus::READ_HEDGE,
    nexus::INTENT_MAX,
    nexus::REBUILD_BANDWIDTH,
    key("scrub", Kind::Table(nexus::SCRUB_DEFAULTS)).meaning("When replicas are compared."),
];

static SAFETY: &[Key] = &[key(
    "max_removals",
    Kind::Integer {
        min: 0,
        max: 1_000_000,
    },
)
.default("`1`")
.change(LIVE)
.meaning("More removed volumes than this in one change are all held back.")
.sample("3")];

/// Calls `visit` with the dotted name of every key, parents first: `volume.NAME.export.ublk.id`.
pub(crate) fn walk(visit: &mut dyn FnMut(&str, &'static Key)) {
    fn descend(prefix: &str, keys: &'static [Key], visit: &mut dyn FnMut(&str, &'static Key)) {
        for key in keys {
            let name = format!("{prefix}{}", key.name);
            visit(&name, key);
            match key.kind {
                Kind::Table(inner) | Kind::WordOrTable(_, inner) => {
                    descend(&format!("{name}."), inner, visit);
                }
                Kind::Tables(_, inner) => descend(&format!("{name}.NAME."), inner, visit),
                _ => {}
            }
        }
    }
    descend("", ROOT, visit);
}
