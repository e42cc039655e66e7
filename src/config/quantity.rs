//! Single values, continued: spans of time, bandwidths, factors.

use std::str::FromStr;
use std::time::Duration;

use jiff::SignedDuration;

use super::diagnostic::shown;
use super::keys::Spelling;
use super::reference::hundredths;
use super::scalar::{Refusal, size};
use crate::units::Bytes;

/// What stands for no limit at all.
pub(crate) const UNLIMITED: &str = "unlimited";

/// Reads `7d`, `36h`, `1h 30m`, `1d 12h`, `500ms`. A day is 24 hours.
pub(crate) fn duration(text: &str) -> Result<Duration, Refusal> {
    let refusal = || {
        Refusal::new("E0111", format!("`{}` is not a duration", shown(text))).help(
            "write a number and a unit, as in \"7d\", \"36h\", \"1h 30m\", \"45s\" or \"500ms\"",
        )
    };
    let (days, rest) = match text.split_once('d') {
        Some((days, rest)) if !days.is_empty() && days.bytes().all(|b| b.is_ascii_digit()) => (
            days.parse::<u64>().map_err(|_| refusal())?,
            rest.trim_start(),
        ),
        _ => (0, text),
    };
    let rest = if rest.is_empty() && !text.is_empty() {
        Duration::ZERO
    } else {
        let rest = SignedDuration::from_str(rest).map_err(|_| refusal())?;
        Duration::try_from(rest).map_err(|_| refusal().help("a duration may not be negative"))?
    };
    let total = days
        .checked_mul(86400)
        .and_then(|seconds| rest.checked_add(Duration::from_secs(seconds)));
    Ok(total.unwrap_or(Duration::MAX))
}

/// Reads a duration in the range of `spelling`, or its word, as zero.
pub(crate) fn duration_within(text: &str, spelling: &Spelling) -> Result<Duration, Refusal> {
    if spelling.word == Some(text) {
        return Ok(Duration::ZERO);
    }
    let word = |refusal: Refusal| match spelling.word {
        Some(word) => refusal.help(format!("write a duration, as in \"7d\", or \"{word}\"")),
        None => refusal,
    };
    let span = duration(text).map_err(word)?;
    let (min, max) = (
        Duration::from_millis(spelling.min_ms),
        Duration::from_secs(spelling.max_seconds),
    );
    let shown = shown(text);
    if span < min {
        let message = format!("is {shown}, expected at least {}", spelt(min));
        return Err(word(Refusal::new("E0113", message)));
    }
    if span > max {
        let message = format!("is {shown}, expected at most {}", spelt(max));
        return Err(word(Refusal::new("E0113", message)));
    }
    Ok(span)
}

/// `7d`, `1h`, `10m`, `30s`, `500ms`: the largest unit that divides it.
fn spelt(span: Duration) -> String {
    let ms = span.as_millis();
    let units = [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1000, "s"),
    ];
    let fitting = units
        .iter()
        .find(|(unit, _)| ms >= *unit && ms.is_multiple_of(*unit));
    match fitting {
        Some((unit, name)) => format!("{}{name}", ms / unit),
        None => format!("{ms}ms"),
    }
}

/// Reads `100MiB/s` or `unlimited`; the latter as 0.
pub(crate) fn bandwidth(text: &str, min: u64) -> Result<u64, Refusal> {
    if text == UNLIMITED {
        return Ok(0);
    }
    let Some(amount) = text.strip_suffix("/s") else {
        return Err(match size(text) {
            Ok(_) => Refusal::new(
                "E0110",
                format!("`{}` is a size, not a bandwidth", shown(text)),
            )
            .help(format!("write \"{}/s\"", shown(text))),
            Err(_) => not_a_bandwidth(text),
        });
    };
    let amount = size(amount).map_err(|refusal| match refusal.code {
        "E0113" => refusal,
        _ => not_a_bandwidth(text),
    })?;
    if amount.get() < min {
        let message = format!("is {amount}/s, expected at least {}/s", Bytes(min));
        return Err(Refusal::new("E0113", message)
            .help("a rebuild can't be switched off: without it there is no second copy"));
    }
    Ok(amount.get())
}

/// The refusal of a bare number.
pub(crate) fn without_rate(number: &str) -> Refusal {
    Refusal::new("E0110", format!("`{}` has no unit", shown(number))).help(format!(
        "write a string, as in \"100MiB/s\" or \"{UNLIMITED}\""
    ))
}

fn not_a_bandwidth(text: &str) -> Refusal {
    Refusal::new("E0110", format!("`{}` is not a bandwidth", shown(text))).help(format!(
        "write a whole number, one of KiB, MiB, GiB, TiB and \"/s\", as in \"100MiB/s\", or \"{UNLIMITED}\""
    ))
}

/// Reads `2`, `1.5` or `1.25` as hundredths.
pub(crate) fn factor(text: &str, min_percent: u32, max_percent: u32) -> Result<u64, Refusal> {
    let range = || {
        format!(
            "is {}, expected {} to {}",
            shown(text),
            hundredths(min_percent),
            hundredths(max_percent)
        )
    };
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_number(whole) || !is_number(part) || part.len() > 2 {
        return Err(Refusal::new("E0103", range()).help("it may have two decimals, as in 1.25"));
    }
    let part = format!("{part:0<2}").parse::<u64>().unwrap_or(0);
    let number = whole
        .parse::<u64>()
        .ok()
        .and_then(|whole| whole.checked_mul(100)?.checked_add(part))
        .filter(|number| (u64::from(min_percent)..=u64::from(max_percent)).contains(number));
    number.ok_or_else(|| Refusal::new("E0103", range()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{KIB, MIB};

    #[test]
    fn durations_have_days() {
        let good = |text: &str, seconds: u64| {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        };
        good("7d", 7 * 86400);
        good("1d 12h", 36 * 3600);
        good("1d12h", 36 * 3600);
        good("30s", 30);
        good("1h 5m", 3900);
        good("PT2H", 7200);
        let bad = |text: &str, code: &str| {
            assert_eq!(duration(text).expect_err(text).code, code, "{text}");
        };
        bad("", "E0111");
        bad("7", "E0111");
        bad("-1h", "E0111");
        bad("d", "E0111");
        bad("1d x", "E0111");
        bad("99999999999999999999d", "E0111");
    }

    #[test]
    fn durations_have_bounds_and_a_word_for_none() {
        let spelling = Spelling {
            word: Some("never"),
            min_ms: 500,
            max_seconds: 3600,
        };
        let check = |text: &str, expected: Result<u64, &str>| {
            let found = duration_within(text, &spelling);
            let found = found.map_err(|refusal| refusal.message);
            let expected = expected.map(Duration::from_millis).map_err(str::to_owned);
            assert_eq!(found, expected, "{text}");
        };
        check("never", Ok(0));
        check("500ms", Ok(500));
        check("1s 500ms", Ok(1500));
        check("1h", Ok(3_600_000));
        check("0s", Err("is 0s, expected at least 500ms"));
        check("0d", Err("is 0d, expected at least 500ms"));
        check("499ms", Err("is 499ms, expected at least 500ms"));
        check("61m", Err("is 61m, expected at most 1h"));
        check("9999999999d", Err("is 9999999999d, expected at most 1h"));
        check("ever", Err("`ever` is not a duration"));
    }

    #[test]
    fn bandwidths_are_sizes_per_second() {
        let good =
            |text: &str, bytes: u64| assert_eq!(bandwidth(text, 64 * KIB), Ok(bytes), "{text}");
        good("100MiB/s", 100 * MIB);
        good("64KiB/s", 64 * KIB);
        good("unlimited", 0);
        let bad = |text: &str, code: &str, expected: &str| {
            let refusal = bandwidth(text, 64 * KIB).expect_err(text);
            let all = format!("{} {}", refusal.message, refusal.help.unwrap_or_default());
            assert_eq!(refusal.code, code, "{text}: {all}");
            assert!(all.contains(expected), "{text}: {all}");
        };
        bad("100MiB", "E0110", "\"100MiB/s\"");
        bad("100MB/s", "E0110", "\"100MiB/s\"");
        bad("0MiB/s", "E0113", "at least 64KiB/s");
        bad("2000TiB/s", "E0113", "1024TiB");
        bad("fast", "E0110", "not a bandwidth");
        bad("", "E0110", "not a bandwidth");
        bad("/s", "E0110", "not a bandwidth");
    }

    #[test]
    fn factors_have_two_decimals() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(factor(text, 100, 1000).ok(), expected, "{text}");
        };
        check("2", Some(200));
        check("2.0", Some(200));
        check("1.25", Some(125));
        check("10", Some(1000));
        check("1.255", None);
        check("0.99", None);
        check("10.01", None);
        check("-2.0", None);
        check("1e1", None);
        check("inf", None);
        check("99999999999999999999", None);
    }
}
