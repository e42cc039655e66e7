//! Time as the control path sees it: the two clocks, handed in from the top, and RFC 3339 texts.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The clocks. Plain functions, so that tests can stop them; nothing below `cli/` reads a clock by itself.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Never goes back.
    pub monotonic: fn() -> Instant,
    /// For people and for the end of a quarantine.
    pub wall: fn() -> SystemTime,
}

impl Times {
    /// Seconds since 1970-01-01 UTC.
    #[must_use]
    pub fn unix_seconds(&self) -> u64 {
        self.since_epoch().as_secs()
    }

    /// The moment so long from now, as RFC 3339 in UTC with seconds.
    #[must_use]
    pub fn text_in(&self, wait: Duration) -> String {
        rfc3339(self.since_epoch().saturating_add(wait).as_secs())
    }

    /// Time since 1970-01-01 UTC.
    #[must_use]
    pub fn since_epoch(&self) -> Duration {
        (self.wall)().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    /// Now, as RFC 3339 in UTC with seconds.
    #[must_use]
    pub fn now_text(&self) -> String {
        rfc3339(self.unix_seconds())
    }
}

/// `2026-11-21T09:14:03Z`. Years past 9999 are shown as the last second that has such a text.
#[must_use]
pub fn rfc3339(unix_seconds: u64) -> String {
    let seconds = i64::try_from(unix_seconds).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds)
        .unwrap_or(jiff::Timestamp::MAX)
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

/// How long ago an RFC 3339 time was: `5s`, `2m`, `3h`, `4d`. None when it can't be read.
#[must_use]
pub fn ago(time: &str, now: SystemTime) -> Option<String> {
    let then: jiff::Timestamp = time.parse().ok()?;
    let now = jiff::Timestamp::try_from(now).ok()?;
    let seconds = now.duration_since(then).as_secs().max(0);
    Some(match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    })
}

/// `43s`, `12m 5s`, `3h 20m`, `2d 4h`.
#[must_use]
pub fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Spans of time in JSON: whole milliseconds.
pub(crate) mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        span: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }

    /// The same for a span that may be missing.
    pub(crate) mod optional {
        use std::time::Duration;

        use serde::{Deserialize, Deserializer, Serialize, Serializer};

        pub(crate) fn serialize<S: Serializer>(
            span: &Option<Duration>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            let milliseconds = span.map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
            milliseconds.serialize(serializer)
        }

        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Option<Duration>, D::Error> {
            let milliseconds = Option::<u64>::deserialize(deserializer)?;
            Ok(milliseconds.map(Duration::from_millis))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units_and_times_ago_have_one() {
        let spans = [5, 65, 3_660, 90_000].map(span);
        assert_eq!(spans, ["5s", "1m 5s", "1h 1m", "1d 1h"]);
        let now = UNIX_EPOCH + Duration::from_secs(100_000);
        assert_eq!(ago(&rfc3339(99_999), now).as_deref(), Some("1s"));
        assert_eq!(ago(&rfc3339(0), now).as_deref(), Some("1d"));
        // Clocks differ.
        assert_eq!(ago(&rfc3339(100_005), now).as_deref(), Some("0s"));
        assert_eq!(ago("yesterday", now), None);
    }

    #[test]
    fn times_are_utc_with_seconds() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_795_252_443), "2026-11-21T09:14:03Z");
        assert_eq!(rfc3339(u64::MAX), "9999-12-30T22:00:00Z");
    }
}
