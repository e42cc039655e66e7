//! The safe part of a repair: files go that hold nothing, and only while they still hold nothing.

use std::path::Path;

use super::outside::{is_dead_link, is_dead_socket};
use super::report::{Repair, Report};

/// Does what is safe, and notes it in the report. What is no longer as it was found is left alone. Blocks.
pub fn repair(report: &mut Report) {
    for finding in &mut report.findings {
        let Repair::Removal(path) = &finding.repair else {
            continue;
        };
        let holds_nothing = match finding.reason.as_str() {
            "SocketDead" => is_dead_socket(path),
            "LinkDead" => is_dead_link(path),
            "WitnessEmpty" => is_blank(path),
            _ => false,
        };
        finding.repaired = holds_nothing && std::fs::remove_file(path).is_ok();
    }
}

/// Whether every byte of a file is zero.
fn is_blank(path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|bytes| bytes.iter().all(|byte| *byte == 0))
}
