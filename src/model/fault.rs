//! What `volund inject` may break on purpose: the words for it, as the command line and `/v1/inject` spell them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// One thing that is made to go wrong on a replica: `error=write:ENOSPC,one-in=10`, `delay=50ms`, `hang,count=1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What happens.
    pub effect: Effect,
    /// It happens to each operation with this chance, one in so many; 1 for always.
    pub one_in: u32,
    /// It happens so many times at most.
    pub count: Option<u32>,
}

/// What happens to an operation on a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails with this errno and changes nothing.
    Error(Operations, i32),
    /// It starts this much later.
    Delay(Duration),
    /// It starts once the fault is cleared.
    Hang,
    /// A write changes a part of its range, at the granularity of the disk's blocks, then fails with `EIO`.
    TornWrite,
    /// Everything fails with `ENODEV`.
    LostDevice,
}

/// Which operations a fault is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operations {
    /// Reads.
    Read,
    /// Whatever changes data: writes, zeroing, growing.
    Write,
    /// Flushes.
    Flush,
    /// All of them.
    All,
}

/// Why a text is no fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no fault: {why}")]
pub struct FaultError {
    text: String,
    why: String,
}

/// What may be said, for messages.
const WORDS: &str = "there are error=read|write|flush|all[:ERRNO], delay=DURATION, hang, torn-write, lost-device, each with \
                     [,one-in=N][,count=N], and clear";

/// Errnos that have a name here; any other is written as its number.
const ERRNOS: [(&str, i32); 12] = [
    ("EIO", libc::EIO),
    ("ENOSPC", libc::ENOSPC),
    ("EDQUOT", libc::EDQUOT),
    ("ENODEV", libc::ENODEV),
    ("ENXIO", libc::ENXIO),
    ("EREMOTEIO", libc::EREMOTEIO),
    ("EROFS", libc::EROFS),
    ("EINVAL", libc::EINVAL),
    ("EOPNOTSUPP", libc::EOPNOTSUPP),
    ("EAGAIN", libc::EAGAIN),
    ("EINTR", libc::EINTR),
    ("ENOMEM", libc::ENOMEM),
];
/// Largest errno (`MAX_ERRNO` in linux/err.h).
const ERRNO_MAX: i32 = 4095;

const OPERATIONS: [(&str, Operations); 4] = [
    ("read", Operations::Read),
    ("write", Operations::Write),
    ("flush", Operations::Flush),
    ("all", Operations::All),
];

/// Longest first, since one is the end of the other.
const UNITS: [(&str, u64); 3] = [("ms", 1_000), ("us", 1), ("s", 1_000_000)];

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let refuse = |why: &str| FaultError {
            text: text.to_owned(),
            why: why.to_owned(),
        };
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let mut fault = Self {
            effect: effect(first).map_err(|why| refuse(&why))?,
            one_in: 1,
            count: None,
        };
        for part in parts {
            let number = |digits: &str| digits.parse().ok().filter(|number| *number > 0);
            let needed = || refuse("one-in and count take a number from 1");
            if let Some(digits) = part.strip_prefix("one-in=") {
                fault.one_in = number(digits).ok_or_else(needed)?;
            } else if let Some(digits) = part.strip_prefix("count=") {
                fault.count = Some(number(digits).ok_or_else(needed)?);
            } else {
                return Err(refuse(&format!("\"{part}\" is not known; {WORDS}")));
            }
        }
        Ok(fault)
    }
}

fn effect(text: &str) -> Result<Effect, String> {
    match text.split_once('=') {
        None => match text {
            "hang" => Ok(Effect::Hang),
            "torn-write" => Ok(Effect::TornWrite),
            "lost-device" => Ok(Effect::LostDevice),
            _ => Err(WORDS.to_owned()),
        },
        Some(("delay", text)) => duration(text).map(Effect::Delay).ok_or_else(|| {
            "a delay is a whole number with a unit: 500us, 50ms, 2s, at most an hour".to_owned()
        }),
        Some(("error", text)) => {
            let (operations, errno) = text.split_once(':').unwrap_or((text, "EIO"));
            let known = OPERATIONS.iter().find(|(word, _)| *word == operations);
            let (_, operations) =
                known.ok_or("error takes read, write, flush or all, as in error=write:ENOSPC")?;
            let errno = errno_of(errno).ok_or("that errno is not known; a number works too")?;
            Ok(Effect::Error(*operations, errno))
        }
        Some(_) => Err(WORDS.to_owned()),
    }
}

fn duration(text: &str) -> Option<Duration> {
    let split = |(unit, micros): &(&str, u64)| Some((text.strip_suffix(unit)?, *micros));
    let (digits, micros) = UNITS.iter().find_map(split)?;
    let number: u64 = digits.parse().ok()?;
    let duration = Duration::from_micros(number.checked_mul(micros)?);
    (duration <= Duration::from_secs(3600)).then_some(duration)
}

fn errno_of(text: &str) -> Option<i32> {
    let named = ERRNOS.iter().find(|(name, _)| *name == text);
    let number = || {
        text.parse()
            .ok()
            .filter(|errno| (1..=ERRNO_MAX).contains(errno))
    };
    named.map(|(_, errno)| *errno).or_else(number)
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.effect)?;
        if self.one_in > 1 {
            write!(f, ",one-in={}", self.one_in)?;
        }
        match self.count {
            Some(count) => write!(f, ",count={count}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(operations, errno) => {
                let (word, _) = OPERATIONS
                    .iter()
                    .find(|(_, known)| known == operations)
                    .expect("every value of the enum is in the table");
                match ERRNOS.iter().find(|(_, known)| known == errno) {
                    Some((name, _)) => write!(f, "error={word}:{name}"),
                    None => write!(f, "error={word}:{errno}"),
                }
            }
            Self::Delay(duration) => {
                let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
                let (unit, size) = [("s", 1_000_000), ("ms", 1_000)]
                    .into_iter()
                    .find(|(_, size)| micros.is_multiple_of(*size))
                    .unwrap_or(("us", 1));
                write!(f, "delay={}{unit}", micros / size)
            }
            Self::Hang => f.write_str("hang"),
            Self::TornWrite => f.write_str("torn-write"),
            Self::LostDevice => f.write_str("lost-device"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        text.parse::<Fault>().unwrap_err().to_string()
    }

    #[test]
    fn faults_read_back_as_they_are_written() {
        for text in [
            "error=read:EIO",
            "error=write:ENOSPC,one-in=10",
            "error=flush:EIO,count=3",
            "error=all:ENODEV,one-in=2,count=1",
            "delay=50ms",
            "delay=2s,one-in=3",
            "delay=7us",
            "hang,count=1",
            "torn-write",
            "lost-device",
        ] {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
        assert_eq!(
            "error=write".parse::<Fault>().unwrap().effect,
            Effect::Error(Operations::Write, libc::EIO)
        );
        assert_eq!(
            "error=all:117".parse::<Fault>().unwrap().to_string(),
            "error=all:117"
        );
    }

    #[test]
    fn what_is_no_fault_is_told_what_there_is() {
        assert!(refused("explode").contains("torn-write, lost-device"));
        assert!(refused("error=append").contains("read, write, flush or all"));
        assert!(refused("error=read:EWHAT").contains("errno"));
        assert!(refused("error=read:5000").contains("errno"));
        assert!(refused("delay=50").contains("unit"));
        assert!(refused("delay=2h").contains("unit"));
        assert!(refused("hang,count=0").contains("from 1"));
        assert!(refused("hang,often").contains("\"often\" is not known"));
    }
}
