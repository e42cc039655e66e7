//! What Prometheus scrapes: every series made from a reading that is taken at the scrape.
//!
//! Nothing is kept between scrapes, so the series of an object go with the object. Must never wait: a reading is
//! plain data that somebody else has at hand. Families are listed in [`families`], described in `docs/metrics.md`.

mod collector;
pub mod families;
pub mod latency;
mod process;
pub mod reading;
mod series;

use std::fmt;
use std::sync::Arc;

pub use reading::{OperationReading, Reading, VolumeReading};

/// The text format's content type.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Gives a reading without waiting.
type Read = dyn Fn() -> Reading + Send + Sync;

/// The metrics of one daemon; clones share them.
#[derive(Clone)]
pub struct Metrics {
    read: Arc<Read>,
}

impl Metrics {
    /// Metrics whose values come from `read`, which is called at every scrape and may not wait.
    #[must_use]
    pub fn new(read: impl Fn() -> Reading + Send + Sync + 'static) -> Self {
        Self {
            read: Arc::new(read),
        }
    }

    /// All series, in the text format.
    ///
    /// # Errors
    /// A family that the encoder refuses: a bug.
    pub fn text(&self) -> prometheus::Result<String> {
        collector::collect(&(self.read)()).into_text()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
