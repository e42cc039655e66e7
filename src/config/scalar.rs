//! Single values: sizes, paths, addresses; `quantity` has more. Each is strict about its spelling and says how to mend it.

use std::net::Ipv6Addr;
use std::path::{Component, Path, PathBuf};

use super::diagnostic::shown;
use super::keys::SIZE_MAX;
use crate::units::{Bytes, GIB, KIB, MIB, TIB};

/// Longest path of a unix socket: `sockaddr_un.sun_path` without its NUL (unix(7)).
pub(crate) const SOCKET_PATH_MAX: usize = 107;

/// Why a value is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: &'static str,
    /// Completes the sentence "`volume.db.size` ...".
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

impl Refusal {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            help: None,
        }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

const UNITS: [(&str, u64); 4] = [("KiB", KIB), ("MiB", MIB), ("GiB", GIB), ("TiB", TIB)];

/// Reads `20GiB`: digits, then one of the four binary units, nothing else.
pub(crate) fn size(text: &str) -> Result<Bytes, Refusal> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(bad_unit(text, number, unit));
    };
    if number.is_empty() {
        return Err(not_a_size(text));
    }
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(*factor))
        .map(Bytes)
        .filter(|bytes| *bytes <= SIZE_MAX)
        .ok_or_else(|| {
            Refusal::new(
                "E0113",
                format!("is more than {SIZE_MAX}, the most that is possible"),
            )
        })
}

fn bad_unit(text: &str, number: &str, unit: &str) -> Refusal {
    let ambiguous = match unit.to_ascii_lowercase().as_str() {
        "k" | "kb" => Some((KIB, "KiB", 1000)),
        "m" | "mb" => Some((MIB, "MiB", 1_000_000)),
        "g" | "gb" => Some((GIB, "GiB", 1_000_000_000)),
        "t" | "tb" => Some((TIB, "TiB", 1_000_000_000_000_u64)),
        _ => None,
    };
    if let (Some((factor, name, decimal)), Ok(count)) = (ambiguous, number.parse::<u64>()) {
        return both_readings(text, count, factor, name, decimal);
    }
    if let (Some((name, _)), false) = (
        UNITS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit.trim())),
        number.is_empty(),
    ) {
        return not_a_size(text).help(format!("write \"{number}{name}\""));
    }
    if unit.is_empty() && !number.is_empty() {
        return without_unit(number);
    }
    fraction(text).unwrap_or_else(|| not_a_size(text))
}

/// The refusal of a bare number.
pub(crate) fn without_unit(number: &str) -> Refusal {
    let refusal = Refusal::new("E0110", format!("`{}` has no unit", shown(number)));
    if size(&format!("{number}GiB")).is_ok() {
        refusal.help(format!(
            "write \"{number}GiB\", or another of KiB, MiB, GiB, TiB"
        ))
    } else {
        refusal.help("write a string with one of KiB, MiB, GiB, TiB, as in \"20GiB\"")
    }
}

fn both_readings(text: &str, count: u64, factor: u64, name: &str, decimal: u64) -> Refusal {
    let refusal = Refusal::new("E0110", format!("`{}` is ambiguous", shown(text)));
    let (Some(binary), Some(power_of_ten)) =
        (count.checked_mul(factor), count.checked_mul(decimal))
    else {
        return refusal.help("write a number with KiB, MiB, GiB or TiB");
    };
    // The decimal reading in the largest unit that is small enough not to distort it.
    let (unit, bytes) = if decimal >= 1_000_000_000 {
        ("MiB", MIB)
    } else {
        ("KiB", KIB)
    };
    let help = format!(
        "write \"{count}{name}\" ({binary} bytes) or \"{}{unit}\" (about {power_of_ten} bytes)",
        power_of_ten / bytes
    );
    refusal.help(help)
}

/// `1.5GiB` is clear enough, but one spelling for each size is clearer still.
fn fraction(text: &str) -> Option<Refusal> {
    let (name, factor) = UNITS.iter().find(|(name, _)| text.ends_with(name))?;
    let (whole, part) = text.strip_suffix(name)?.split_once('.')?;
    let digits = part.len();
    if !(1..=3).contains(&digits) || !part.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let scale = 10_u64.pow(u32::try_from(digits).ok()?);
    let thousandths = whole
        .parse::<u64>()
        .ok()?
        .checked_mul(scale)?
        .checked_add(part.parse().ok()?)?;
    let bytes = thousandths.checked_mul(*factor)? / scale;
    let (name, factor) = UNITS
        .iter()
        .rev()
        .find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor))
        .unwrap_or(&UNITS[0]);
    Some(
        Refusal::new("E0110", format!("`{}` is not a whole number", shown(text)))
            .help(format!("write \"{}{name}\"", bytes / factor)),
    )
}

fn not_a_size(text: &str) -> Refusal {
    Refusal::new("E0110", format!("`{}` is not a size", shown(text)))
        .help("write a whole number and one of KiB, MiB, GiB, TiB, as in \"20GiB\"")
}

/// Reads an absolute path without `..`, and spells it in the one way that can be compared: no `//`, `/./` or final `/`.
pub(crate) fn absolute_path(text: &str) -> Result<PathBuf, Refusal> {
    let bad = |why: &str| Refusal::new("E0114", format!("`{}` {why}", shown(text)));
    if text.contains('\0') {
        return Err(bad("contains NUL"));
    }
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(bad("is not an absolute path").help(
            "start it with `/`: the daemon has no directory that relative paths could start from",
        ));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(bad("contains `..`").help("write the path without detours"));
    }
    let path: PathBuf = path.components().collect();
    if path.parent().is_none() {
        return Err(bad("is the root directory"));
    }
    if path.as_os_str().len() > 4095 || path.components().any(|part| part.as_os_str().len() > 255) {
        return Err(bad("is longer than Linux allows")
            .help("a path has at most 4095 bytes, each of its parts at most 255"));
    }
    Ok(path)
}

/// Reads the path of a unix socket.
pub(crate) fn socket_path(text: &str) -> Result<PathBuf, Refusal> {
    let path = absolute_path(text)?;
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        return Err(Refusal::new(
            "E0114",
            format!("has {length} bytes, a socket's path has at most {SOCKET_PATH_MAX}"),
        )
        .help("choose a shorter directory or name; unix(7) sets this limit"));
    }
    Ok(path)
}

/// Reads `host:port`, where the host is a name, an IPv4 address, or an IPv6 address in brackets.
pub(crate) fn address(text: &str) -> Result<String, Refusal> {
    let refusal = || {
        Refusal::new("E0114", format!("`{}` is not an address", shown(text)))
            .help("write host:port, as in \"10.0.0.11:4420\" or \"[fd00::11]:4420\"")
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(refusal)?;
    let port_is_fine =
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0);
    let host_is_fine = match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(host) => host.parse::<Ipv6Addr>().is_ok(),
        None => {
            (1..=253).contains(&host.len())
                && !host.starts_with(['-', '.'])
                && host
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        }
    };
    if port_is_fine && host_is_fine {
        Ok(text.to_owned())
    } else {
        Err(refusal())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_binary_unit() {
        let good = |text: &str, bytes: u64| assert_eq!(size(text), Ok(Bytes(bytes)), "{text}");
        good("0GiB", 0);
        good("4KiB", 4096);
        good("20GiB", 20 * GIB);
        good("1024TiB", 1024 * TIB);
        let bad = |text: &str, code: &str, expected: &str| {
            let refusal = size(text).expect_err(text);
            let all = format!("{} {}", refusal.message, refusal.help.unwrap_or_default());
            assert_eq!(refusal.code, code, "{text}: {all}");
            assert!(all.contains(expected), "{text}: {all}");
        };
        bad(
            "100G",
            "E0110",
            "\"100GiB\" (107374182400 bytes) or \"95367MiB\" (about 100000000000 bytes)",
        );
        bad("10gb", "E0110", "ambiguous");
        bad(
            "1M",
            "E0110",
            "\"1MiB\" (1048576 bytes) or \"976KiB\" (about 1000000 bytes)",
        );
        bad("10", "E0110", "no unit");
        bad("", "E0110", "not a size");
        bad("GiB", "E0110", "not a size");
        bad("-1GiB", "E0110", "not a size");
        bad("1.5GiB", "E0110", "\"1536MiB\"");
        bad("20 GiB", "E0110", "\"20GiB\"");
        bad("20gib", "E0110", "\"20GiB\"");
        bad("1e3GiB", "E0110", "not a size");
        bad("1025TiB", "E0113", "1024TiB");
        bad("18446744073709551616KiB", "E0113", "1024TiB");
        bad("99999999999999999999G", "E0110", "not a size");
        bad("9999999999999999999G", "E0110", "ambiguous");
    }

    #[test]
    fn paths_are_absolute_and_spelt_in_one_way() {
        let good = |text: &str, path: &str| {
            assert_eq!(absolute_path(text), Ok(PathBuf::from(path)), "{text}");
        };
        good("/a//b/./c/", "/a/b/c");
        let bad = |text: &str, expected: &str| {
            let refusal = absolute_path(text).expect_err(text);
            assert!(refusal.message.contains(expected), "{refusal:?}");
        };
        bad("", "absolute");
        bad("main", "absolute");
        bad("/a/../b", "`..`");
        bad("/", "root");
        bad("//.", "root");
        bad("/a\0b", "NUL");
        bad(&format!("/{}", "x".repeat(256)), "longer");
        assert!(socket_path(&format!("/{}", "x".repeat(106))).is_ok());
        assert_eq!(
            socket_path(&format!("/{}", "x".repeat(107))).map_err(|refusal| refusal.code),
            Err("E0114")
        );
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for good in ["10.0.0.1:4420", "n1.example:1", "[fd00::1]:65535"] {
            assert!(address(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "n1",
            ":1",
            "n1:",
            "n1:0",
            "n1:65536",
            "n1:+1",
            "fd00::1:4420",
            "[x]:1",
            "a b:1",
        ] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
