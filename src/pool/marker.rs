//! The marker file `volund-pool`: which pool this is. Text, so that people who find it know what it is.
//!
//! ```text
//! # This directory is a volund pool. Do not change or remove this file.
//! version = 1
//! pool = "0197f0a4-5d3c-7c1e-9b1e-3f2d8a4c6e10"
//! ```

use crate::model::PoolId;

/// Name of the marker in the pool's directory.
pub(super) const FILE: &str = "volund-pool";
/// Name of a marker that is being written; renamed once it is durable.
pub(super) const NEW_FILE: &str = "volund-pool.new";
/// More than any marker is long, bytes.
pub(super) const LEN_MAX: usize = 4096;

const VERSION: &str = "1";
const COMMENT: &str = "# This directory is a volund pool. Do not change or remove this file.";

/// The marker's text.
pub(super) fn text(id: PoolId) -> String {
    format!("{COMMENT}\nversion = {VERSION}\npool = \"{id}\"\n")
}

/// Reads a marker.
///
/// # Errors
/// What is wrong with it, as the end of a sentence that starts with its path.
pub(super) fn parse(bytes: &[u8]) -> Result<PoolId, String> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| "is not text: restore it from a backup".to_owned())?;
    let mut version = None;
    let mut id = None;
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once('=').map(|(k, v)| (k.trim(), v.trim())) {
            Some(("version", value)) => version = Some(value),
            Some(("pool", value)) => id = Some(value.trim_matches('"')),
            // A later release of the same format version may say more.
            _ => {}
        }
    }
    match version {
        Some(VERSION) => {}
        Some(other) => {
            return Err(format!(
                "has format version {other}, this release reads {VERSION}: use a newer volund"
            ));
        }
        None => return Err("has no \"version\" line: restore it from a backup".to_owned()),
    }
    let id = id.ok_or("has no \"pool\" line: restore it from a backup")?;
    id.parse()
        .map_err(|_| format!("names the pool {id:?}, expected a uuid: restore it from a backup"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_survives_being_written_and_read() {
        let id = PoolId::generate();
        assert_eq!(parse(text(id).as_bytes()), Ok(id));
        let later = format!("{}colour = \"red\"\n", text(id));
        assert_eq!(parse(later.as_bytes()), Ok(id));
    }

    #[test]
    fn damaged_and_foreign_markers_are_refused() {
        let check = |bytes: &[u8], expected: &str| {
            let error = parse(bytes).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check(b"", "no \"version\"");
        check(&[0xff, 0xfe], "not text");
        check(b"version = 2\npool = \"x\"", "version 2");
        check(b"version = 1\n", "no \"pool\"");
        check(b"version = 1\npool = \"main\"\n", "expected a uuid");
    }
}
