//! Series by family, for the encoder of the client library.
//!
//! A node with 1,000 volumes has 100,000 series: they are made once, in the order in which they are written, without a
//! registry, which would sort and compare them at each scrape.

use std::collections::BTreeMap;

use prometheus::TextEncoder;
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use super::families::Family;
use super::reading::HistogramReading;

/// A label's name and value.
pub(super) type Label<'a> = (&'a str, &'a str);

/// Series by family; a family without series does not appear.
#[derive(Default)]
pub(super) struct Series {
    families: BTreeMap<&'static str, (Family, Vec<Metric>)>,
}

impl Series {
    fn push(&mut self, family: Family, labels: &[Label<'_>], mut metric: Metric) {
        let pairs = labels.iter().map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        metric.set_label(pairs.collect());
        let entry = self.families.entry(family.name);
        entry.or_insert_with(|| (family, Vec::new())).1.push(metric);
    }

    pub(super) fn value(&mut self, family: Family, labels: &[Label<'_>], value: f64) {
        let mut metric = Metric::default();
        if family.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.push(family, labels, metric);
    }

    #[allow(
        clippy::cast_precision_loss,
        reason = "every number is a float in Prometheus"
    )]
    pub(super) fn number(&mut self, family: Family, labels: &[Label<'_>], value: u64) {
        self.value(family, labels, value as f64);
    }

    pub(super) fn flag(&mut self, family: Family, labels: &[Label<'_>], value: bool) {
        self.value(family, labels, f64::from(u8::from(value)));
    }

    /// One series per state: 1 for the current one.
    pub(super) fn states<'a>(
        &mut self,
        family: Family,
        labels: &[Label<'_>],
        states: impl IntoIterator<Item = (&'a str, bool)>,
    ) {
        let mut labels = labels.to_vec();
        for (state, is_current) in states {
            labels.push(("state", state));
            self.flag(family, &labels, is_current);
            labels.pop();
        }
    }

    pub(super) fn histogram(
        &mut self,
        family: Family,
        labels: &[Label<'_>],
        reading: &HistogramReading,
    ) {
        let mut total = 0;
        let mut buckets = Vec::with_capacity(reading.bounds.len());
        for (bound, count) in reading.bounds.iter().zip(&reading.buckets) {
            total += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(total);
            buckets.push(bucket);
        }
        let beyond = reading.buckets.iter().skip(reading.bounds.len());
        total += beyond.sum::<u64>();
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(total);
        histogram.set_sample_sum(reading.sum);
        let mut metric = Metric::default();
        metric.set_histogram(histogram);
        self.push(family, labels, metric);
    }

    /// All of it, in the text format.
    ///
    /// # Errors
    /// A family that the encoder refuses: a bug.
    pub(super) fn into_text(self) -> prometheus::Result<String> {
        let mut text = String::new();
        for (family, metrics) in self.families.into_values() {
            let mut proto = MetricFamily::default();
            proto.set_name(family.name.to_owned());
            proto.set_help(family.help.to_owned());
            proto.set_field_type(family.kind);
            proto.set_metric(metrics);
            TextEncoder::new().encode_utf8(&[proto], &mut text)?;
        }
        Ok(text)
    }
}
