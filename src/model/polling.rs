//! How long I/O threads look for more work before they sleep (`volund run --poll`).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The longest that a reactor can be told to look around.
pub const POLL_MAX: Duration = Duration::from_millis(100);

/// How long a reactor looks around before it sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Polling {
    /// Not at all.
    #[default]
    Off,
    /// As long as it pays, going by the waits of late.
    Auto,
    /// Always so long.
    For(Duration),
}

impl FromStr for Polling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => return Ok(Self::Off),
            "auto" => return Ok(Self::Auto),
            _ => {}
        }
        let duration = text.parse().ok().map(Duration::from_micros);
        let fits = |duration: &Duration| !duration.is_zero() && *duration <= POLL_MAX;
        duration.filter(fits).map(Self::For).ok_or_else(|| {
            let max = POLL_MAX.as_micros();
            format!("expected `off`, `auto`, or 1 to {max} microseconds")
        })
    }
}

impl fmt::Display for Polling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Auto => f.write_str("auto"),
            Self::For(duration) => write!(f, "{}", duration.as_micros()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_written_is_read() {
        for polling in [
            Polling::Off,
            Polling::Auto,
            Polling::For(Duration::from_micros(50)),
        ] {
            assert_eq!(polling.to_string().parse(), Ok(polling));
        }
        for wrong in ["", "on", "0", "-1", "100001", "5us"] {
            assert!(wrong.parse::<Polling>().is_err(), "{wrong}");
        }
    }
}
