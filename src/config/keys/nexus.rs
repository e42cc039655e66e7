//! Keys about the copies of a volume: how long things may take, how they are rebuilt and compared.

use super::{Key, Kind, LIVE, Object, Spelling, key};
use crate::units::KIB;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Where a volume says nothing, its defaults' table may.
pub(super) const IO_TIMEOUT: Key = key("io_timeout", span(100, 10 * MINUTE))
    .default("`\"10s\"`")
    .change(LIVE)
    .meaning(
        "A replica that does not answer for so long is left behind, as long as there is another one. A volume with one \
         replica waits.",
    )
    .sample("\"5s\"");
pub(super) const DEGRADED_WAIT: Key = key("degraded_wait", span(0, HOUR))
    .default("`\"10s\"`")
    .change(LIVE)
    .meaning(
        "How long a start waits for a replica that should be there, before the volume serves without it.",
    )
    .sample("\"1m\"");
pub(super) const COMMIT_TIMEOUT: Key = key("commit_timeout", span(1000, HOUR))
    .default("`\"30s\"`")
    .change(LIVE)
    .meaning("A request that waits until it is on record which replicas count fails after so long.")
    .sample("\"1m\"");
pub(super) const READ_HEDGE: Key = key("read_hedge", span(1, 10 * MINUTE))
    .default("`\"500ms\"`")
    .change(LIVE)
    .meaning("A read that is not answered for so long is sent to another replica as well.")
    .sample("\"250ms\"");
pub(super) const INTENT_MAX: Key = key(
    "intent_max",
    Kind::Integer {
        min: 16,
        max: 1_048_576,
    },
)
.default("`16384`")
.change(LIVE)
.meaning(
    "The most regions (1MiB or more each) that may be marked as written and not yet proven to be on every replica. They \
     are what is compared after a crash.",
)
.sample("4096");
pub(super) const REBUILD_BANDWIDTH: Key = key("rebuild_bandwidth", Kind::Bandwidth { min: 64 * KIB })
    .default("`\"unlimited\"`")
    .change(LIVE)
    .meaning("The most that a rebuild copies per second: `\"100MiB/s\"`, or `\"unlimited\"`. Clients go first either way.")
    .sample("\"100MiB/s\"");

const EVERY: Key = key(
    "every",
    Kind::Duration(Spelling {
        word: Some("never"),
        ..span_of(MINUTE * 1000, 10 * 366 * DAY)
    }),
)
.default("`\"never\"`")
.change(LIVE)
.meaning(
    "Time from the end of one comparison of all replicas to the start of the next; `\"never\"` for only by `volund \
     scrub`.",
)
.sample("\"7d\"");

/// A volume's `scrub`.
pub(super) static SCRUB: &[Key] = &[
    EVERY,
    key("repair_from", Kind::Name(Object::Pool))
        .default("none: report only")
        .change(LIVE)
        .meaning(
            "The pool whose replica is believed where two replicas differ. With three or more, the majority is, whatever \
             this says.",
        )
        .sample("\"a\""),
];

/// The `scrub` of `defaults.volume`: a pool can't be named for all volumes.
pub(super) static SCRUB_DEFAULTS: &[Key] = &[EVERY];

/// A volume's `force_start`.
pub(super) static FORCE_START: &[Key] = &[
    key("from", Kind::Uuid)
        .default("required")
        .change(LIVE)
        .meaning("UUID of the replica whose data is to be the volume's, as `volund why` prints it.")
        .sample("\"0197f0a4-5d3c-7c1e-9b1e-3f2d8a4c6e11\""),
    key(
        "at_gen",
        Kind::Integer {
            min: 1,
            max: i64::MAX.unsigned_abs(),
        },
    )
    .default("required")
    .change(LIVE)
    .meaning(
        "The generation that the replica's label has, as `volund why` prints it. With any other nothing happens.",
    )
    .sample("12"),
];

/// What a node, and `defaults.node`, say about rebuilds.
pub(super) const REBUILD_MAX: Key = key("rebuild_max", Kind::Integer { min: 1, max: 64 })
    .default("`2`")
    .change(LIVE)
    .meaning("Rebuilds that run at the same time on the node; the others wait.")
    .sample("4");

/// `[retry]`
pub(super) static RETRY: &[Key] = &[
    key("max_attempts", Kind::Integer { min: 1, max: 1000 })
        .default("`8`")
        .change(LIVE)
        .meaning(
            "Failures in a row after which something is reported as being in error. It is still tried, every `max_wait`.",
        )
        .sample("5"),
    key("initial_wait", span(100, HOUR))
        .default("`\"1s\"`")
        .change(LIVE)
        .meaning("Wait after the first failure.")
        .sample("\"2s\""),
    key(
        "multiplier",
        Kind::Factor {
            min_percent: 100,
            max_percent: 1000,
        },
    )
    .default("`2.0`")
    .change(LIVE)
    .meaning("How much longer each wait is than the one before.")
    .sample("1.5"),
    key("max_wait", span(100, DAY))
        .default("`\"60s\"`")
        .change(LIVE)
        .meaning("The longest wait.")
        .sample("\"5m\""),
];

/// `[danger_zone]`
pub(super) static DANGER_ZONE: &[Key] = &[key("fault_injection", Kind::Bool)
    .default("`false`")
    .change("at the daemon's next start")
    .meaning("Whether `volund inject` may break replicas on purpose, for tests and drills.")
    .sample("true")];

const fn span(min_ms: u64, max_seconds: u64) -> Kind {
    Kind::Duration(span_of(min_ms, max_seconds))
}

const fn span_of(min_ms: u64, max_seconds: u64) -> Spelling {
    Spelling {
        word: None,
        min_ms,
        max_seconds,
    }
}
