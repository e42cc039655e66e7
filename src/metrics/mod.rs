//! What Prometheus scrapes: a registry with one collector that makes every family from a reading taken at the scrape.
//!
//! Nothing is kept between scrapes, so the series of an object go with the object. Must never wait: a reading is
//! plain data that somebody else has at hand. Families are listed in [`families`], described in `docs/metrics.md`.

mod collector;
pub mod families;
mod process;
pub mod reading;

use prometheus::{Registry, TextEncoder};

pub use reading::{OperationReading, Reading, VolumeReading};

/// The text format's content type.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The registry of one daemon; clones share it.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// A registry whose values come from `read`, which is called at every scrape and may not wait.
    ///
    /// # Panics
    /// Never: the registry is new, so its only collector can't clash.
    #[must_use]
    pub fn new(read: impl Fn() -> Reading + Send + Sync + 'static) -> Self {
        let registry = Registry::new();
        let collector = collector::Collected::new(Box::new(read));
        registry
            .register(Box::new(collector))
            .expect("the first collector of a registry can't clash");
        Self { registry }
    }

    /// All series, in the text format.
    ///
    /// # Errors
    /// A family that the encoder refuses: a bug.
    pub fn text(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

#[cfg(test)]
mod tests;
