//! Which lines are left out: warnings and errors that say again what was said a moment ago, of the same thing.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level};

/// How long a line speaks for those like it.
pub(super) const PERIOD: Duration = Duration::from_secs(60);
/// Causes that are remembered at once; what comes on top is told.
const CAUSES_MAX: usize = 1024;

/// Fields that name an object. Digits in them count; elsewhere they are ports, counts, addresses: the same cause.
const OBJECTS: [&str; 8] = [
    "volume", "pool", "replica", "device", "number", "path", "entry", "id",
];

/// Remembers what was told lately.
#[derive(Debug, Default)]
pub(super) struct Limit {
    told: BTreeMap<u64, Told>,
}

#[derive(Debug)]
struct Told {
    at: Instant,
    left_out: u64,
    /// Of the first line.
    text: String,
}

/// What is to be done about a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is told, and before it how many like earlier lines were left out.
    Tell(Vec<LeftOut>),
    /// It is counted.
    LeaveOut,
}

/// Lines that were left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) lines: u64,
    pub(super) like: String,
}

impl Limit {
    /// About an event at this time.
    pub(super) fn admit(&mut self, event: &Event<'_>, now: Instant) -> Verdict {
        if *event.metadata().level() > Level::WARN {
            return Verdict::Tell(self.ended(now));
        }
        let mut cause = Cause::default();
        event.metadata().callsite().hash(&mut cause.hash);
        event.record(&mut cause);
        self.admit_cause(cause.hash.finish(), cause.text, now)
    }

    fn admit_cause(&mut self, cause: u64, text: String, now: Instant) -> Verdict {
        let ended = self.ended(now);
        if let Some(told) = self.told.get_mut(&cause) {
            told.left_out += 1;
            // Others' ends can wait for the next line that is told.
            if ended.is_empty() {
                return Verdict::LeaveOut;
            }
            told.left_out -= 1;
            return Verdict::Tell(ended);
        }
        if self.told.len() < CAUSES_MAX {
            let told = Told {
                at: now,
                left_out: 0,
                text,
            };
            self.told.insert(cause, told);
        }
        Verdict::Tell(ended)
    }

    /// Forgets lines that were told long ago; what was left out since is to be told now.
    fn ended(&mut self, now: Instant) -> Vec<LeftOut> {
        let mut ended = Vec::new();
        self.told.retain(|_, told| {
            let is_recent = now.saturating_duration_since(told.at) < PERIOD;
            if !is_recent && told.left_out > 0 {
                ended.push(LeftOut {
                    lines: told.left_out,
                    like: std::mem::take(&mut told.text),
                });
            }
            is_recent
        });
        ended
    }
}

/// What a line is about.
#[derive(Default)]
struct Cause {
    hash: DefaultHasher,
    text: String,
}

impl Visit for Cause {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = format!("{value:?}");
        let is_object = OBJECTS.contains(&field.name());
        for byte in value.bytes().filter(|b| is_object || !b.is_ascii_digit()) {
            self.hash.write_u8(byte);
        }
        self.hash.write_u8(0xff);
        if field.name() == "message" {
            self.text.insert_str(0, &value);
        } else {
            // Writing to a String can't fail.
            let _ = fmt::Write::write_fmt(&mut self.text, format_args!(" {field}={value}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::{Context, SubscriberExt};
    use tracing_subscriber::{Layer, Registry};

    use super::*;

    fn start() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    /// Takes events as the log does, at a time that the test sets.
    #[derive(Clone)]
    struct Taker {
        now: Arc<Mutex<Instant>>,
        limit: Arc<Mutex<Limit>>,
        verdicts: Arc<Mutex<Vec<Verdict>>>,
    }

    impl<S: tracing::Subscriber> Layer<S> for Taker {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let now = *self.now.lock().unwrap();
            let verdict = self.limit.lock().unwrap().admit(event, now);
            self.verdicts.lock().unwrap().push(verdict);
        }
    }

    /// What becomes of the lines that `work` writes; it may let time pass.
    fn verdicts(work: impl FnOnce(&dyn Fn(Duration))) -> Vec<Verdict> {
        let taker = Taker {
            now: Arc::new(Mutex::new(start())),
            limit: Arc::default(),
            verdicts: Arc::default(),
        };
        let now = taker.now.clone();
        let taken = taker.verdicts.clone();
        tracing::subscriber::with_default(Registry::default().with(taker), || {
            work(&|time| *now.lock().unwrap() += time);
        });
        std::mem::take(&mut *taken.lock().unwrap())
    }

    fn trouble(volume: &str, error: &str) {
        tracing::warn!(volume, error, "trouble");
    }

    const NOTHING: Verdict = Verdict::Tell(Vec::new());

    #[test]
    fn one_line_a_cause_and_object_and_a_count_afterwards() {
        let seen = verdicts(|pass| {
            trouble("db1", "descriptor 17 is bad");
            trouble("db1", "descriptor 4711 is bad");
            trouble("db2", "descriptor 17 is bad");
            trouble("db1", "it is gone");
            trouble("db1", "descriptor 1 is bad");
            pass(PERIOD);
            tracing::info!("something else");
            trouble("db1", "descriptor 17 is bad");
        });
        let left_out = LeftOut {
            lines: 2,
            like: "trouble volume=\"db1\" error=\"descriptor 17 is bad\"".to_owned(),
        };
        let expected = [
            NOTHING,
            Verdict::LeaveOut,
            NOTHING,
            NOTHING,
            Verdict::LeaveOut,
            Verdict::Tell(vec![left_out]),
            NOTHING,
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn state_changes_are_all_told() {
        let seen = verdicts(|_| {
            for _ in 0..3 {
                tracing::info!(volume = "db", "state");
            }
        });
        assert_eq!(seen, [NOTHING, NOTHING, NOTHING]);
    }

    #[test]
    fn the_number_of_causes_is_bounded() {
        let mut limit = Limit::default();
        let now = start();
        for cause in 0..2 * CAUSES_MAX as u64 {
            assert_eq!(limit.admit_cause(cause, String::new(), now), NOTHING);
        }
        assert_eq!(limit.told.len(), CAUSES_MAX);
        assert_eq!(limit.admit_cause(0, String::new(), now), Verdict::LeaveOut);
    }
}
