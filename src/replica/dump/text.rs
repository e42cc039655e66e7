//! A dump for people.

use std::fmt::Write;

use super::{BitmapDump, Dump, LabelDump};
use crate::units::Bytes;

impl Dump {
    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail; so below.
        let _ = writeln!(
            text,
            "file       {} ({} taken up)",
            Bytes(self.size_bytes),
            Bytes(self.allocated_bytes)
        );
        for slot in &self.slots {
            let seq = slot
                .seq
                .map_or_else(|| "-".to_owned(), |seq| seq.to_string());
            let problem = slot.problem.as_deref().unwrap_or("ok");
            let _ = writeln!(text, "slot {}     seq {seq}, {problem}", slot.name);
        }
        if let Some(problem) = &self.problem {
            let _ = writeln!(text, "problem    {problem}");
        }
        if let Some(label) = &self.label {
            label.write(&mut text);
        }
        for bitmap in &self.bitmaps {
            bitmap.write(&mut text);
        }
        text
    }
}

impl LabelDump {
    fn write(&self, text: &mut String) {
        let kind = if self.thick { "thick" } else { "thin" };
        let flags = if self.flags.is_empty() {
            "none".to_owned()
        } else {
            self.flags.join(", ")
        };
        let rows = [
            ("volume", format!("{} ({})", self.volume, self.volume_uuid)),
            ("replica", self.replica_uuid.clone()),
            ("pool", self.pool_uuid.clone()),
            (
                "data",
                format!(
                    "{} at {}, {kind}, blocks of {} bytes, regions of {}",
                    Bytes(self.data_bytes),
                    Bytes(self.data_offset),
                    self.block_bytes,
                    Bytes(self.region_bytes)
                ),
            ),
            (
                "generation",
                format!("{} ({})", self.generation, self.generation_uuid),
            ),
            (
                "epoch",
                format!("{}, owner {}", self.epoch, self.owner_uuid),
            ),
            ("writer", self.writer_uuid.clone()),
            ("flags", flags),
            (
                "missed",
                format!(
                    "complete since generation {}, rebuild from {}",
                    self.missed_base_generation, self.rebuild_from_generation
                ),
            ),
        ];
        for (name, value) in rows {
            let _ = writeln!(text, "{name:10} {value}");
        }
        for member in &self.members {
            let this = if member.is_this { ", this one" } else { "" };
            let memory = if member.volatile { ", in memory" } else { "" };
            let since = match member.since_generation {
                0 => String::new(),
                since => format!(" since generation {since}"),
            };
            let _ = writeln!(
                text,
                "member {:<3} {} {}{since}{memory}{this}",
                member.slot, member.replica_uuid, member.state
            );
        }
    }
}

impl BitmapDump {
    fn write(&self, text: &mut String) {
        let more = if self.more { ", ..." } else { "" };
        let ranges = match self.ranges.as_slice() {
            [] => String::new(),
            ranges => format!(": {}{more}", ranges.join(", ")),
        };
        let _ = writeln!(
            text,
            "{:10} {} of {} regions marked{ranges}",
            self.kind, self.marked, self.regions
        );
        for page in &self.bad_pages {
            let _ = writeln!(
                text,
                "           {page}: all of its regions count as marked"
            );
        }
    }
}
