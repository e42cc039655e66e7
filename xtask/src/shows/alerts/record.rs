//! Writes what `/metrics` showed during a scenario as a unit test of the alert's rule. A rule waits for minutes to days, a
//! scenario for seconds: each recorded second stands for a longer time in the test, and times of day are stretched with it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::scenarios::Scenario;
use crate::daemon;

/// Between two scrapes.
const STEP: Duration = Duration::from_secs(1);
/// Before something happens, and after everything is over: scrapes.
const QUIET: u64 = 4;
const AFTER: u64 = 14;

/// A family whose values are times.
const TIMES: &str = "_timestamp_seconds";

/// Scrapes once a second until stopped.
pub(super) struct Recorder {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    scrapes: Mutex<Vec<Scrape>>,
    /// Numbers of the scrapes at which something broke, and was about to be mended.
    marks: Mutex<Vec<usize>>,
}

/// One scrape: none when nobody answered.
struct Scrape {
    time: f64,
    text: Option<String>,
}

/// All that was seen.
pub(super) struct Recording {
    scrapes: Vec<Scrape>,
    broken: usize,
    mended: usize,
}

impl Recorder {
    pub(super) fn start(http: &str) -> Recorder {
        let shared = Arc::new(Shared::default());
        let (for_thread, http) = (Arc::clone(&shared), http.to_owned());
        let thread = std::thread::spawn(move || {
            while !for_thread.stop.load(Ordering::Relaxed) {
                let time = SystemTime::now().duration_since(UNIX_EPOCH);
                let scrape = Scrape {
                    time: time.unwrap_or_default().as_secs_f64(),
                    text: daemon::get(&http, "/metrics").ok(),
                };
                for_thread.scrapes().push(scrape);
                std::thread::sleep(STEP);
            }
        });
        Recorder { shared, thread }
    }

    /// Waits for some scrapes without an event, the last before something breaks.
    pub(super) fn quiet(&self) {
        self.wait(QUIET);
        self.mark();
    }

    /// Waits for so many seconds more of the same, the last before it is mended.
    pub(super) fn hold(&self, seconds: u64) {
        self.wait(seconds);
        self.mark();
    }

    /// Waits for the end of the last window.
    pub(super) fn end(&self) {
        self.wait(AFTER);
    }

    fn wait(&self, scrapes: u64) {
        let seconds = u32::try_from(scrapes).unwrap_or(u32::MAX);
        std::thread::sleep(STEP * seconds + STEP / 2);
    }

    fn mark(&self) {
        let now = self.shared.scrapes().len();
        let mut marks = self.shared.marks.lock();
        marks
            .as_mut()
            .unwrap_or_else(PoisonError::get_mut)
            .push(now);
    }

    pub(super) fn stop(self) -> Result<Recording> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.join();
        ensure!(ended.is_ok(), "the recorder panicked");
        let marks = self.shared.marks.lock();
        let marks = marks.unwrap_or_else(PoisonError::into_inner);
        let [broken, mended] = marks[..] else {
            anyhow::bail!("{} marks, expected 2", marks.len());
        };
        Ok(Recording {
            scrapes: std::mem::take(&mut self.shared.scrapes()),
            broken,
            mended,
        })
    }
}

impl Shared {
    fn scrapes(&self) -> std::sync::MutexGuard<'_, Vec<Scrape>> {
        self.scrapes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recording {
    /// Writes `ALERT.yml` into the folder.
    pub(super) fn write(&self, scenario: &Scenario, folder: &Path) -> Result<()> {
        let text = self.text(scenario)?;
        fs::write(folder.join(format!("{}.yml", scenario.alert)), text)?;
        Ok(())
    }

    fn text(&self, scenario: &Scenario) -> Result<String> {
        let second = seconds(scenario.second)?;
        let series = self.series(scenario, second);
        ensure!(
            !series.is_empty(),
            "nothing was recorded of {:?}",
            scenario.series
        );
        let Scenario {
            alert,
            about,
            second: step,
            ..
        } = scenario;
        let mut text = format!(
            "# Recorded from a daemon by `cargo xtask record-alerts`: {about}.\n\
             # A second of the recording stands for {step}.\n\
             rule_files: [../volund-alerts.yml]\nevaluation_interval: {step}\ntests:\n  \
             - interval: {step}\n    input_series:\n"
        );
        // Writing to a String can't fail; so below.
        for (name, values) in series {
            let _ = writeln!(
                text,
                "      - series: '{name}'\n        values: '{}'",
                pack(&values)
            );
        }
        text.push_str("    promql_expr_test:\n");
        let fires =
            format!("count by (alertname) (ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}})");
        let end = self.scrapes.len() - 1;
        let moments = [
            (self.broken - 1, false),
            (self.mended - 1, true),
            (end, false),
        ];
        for (at, firing) in moments {
            let samples = if firing {
                format!("[{{labels: '{{alertname=\"{alert}\"}}', value: 1}}]")
            } else {
                "[]".to_owned()
            };
            let _ = writeln!(
                text,
                "      - {{expr: '{fires}', eval_time: {}s, exp_samples: {samples}}}",
                at as u64 * second
            );
        }
        Ok(text)
    }

    /// The scenario's series by name: a value for each scrape, none where there was none.
    fn series(&self, scenario: &Scenario, second: u64) -> BTreeMap<String, Vec<Option<f64>>> {
        let mut series: BTreeMap<String, Vec<Option<f64>>> = BTreeMap::new();
        let start = self.scrapes.first().map_or(0.0, |scrape| scrape.time);
        for (at, scrape) in self.scrapes.iter().enumerate() {
            let mut found: Vec<(String, f64)> = Vec::new();
            if scenario.series.contains(&"up") {
                let up = if scrape.text.is_some() { 1.0 } else { 0.0 };
                found.push((labelled("up"), up));
            }
            for line in scrape.text.iter().flat_map(|text| text.lines()) {
                let wanted = scenario.series.iter().any(|start| line.starts_with(start));
                let Some((name, value)) = line.rsplit_once(' ').filter(|_| wanted) else {
                    continue;
                };
                let Ok(mut value) = value.parse::<f64>() else {
                    continue;
                };
                if name.contains(TIMES) {
                    // In whole seconds; what was before the recording is at its start.
                    value = ((value - start) * second as f64).round().max(0.0);
                }
                found.push((labelled(name), value));
            }
            for (name, value) in found {
                let values = series.entry(name).or_default();
                values.resize(at, None);
                values.push(Some(value));
            }
        }
        for values in series.values_mut() {
            values.resize(self.scrapes.len(), None);
        }
        series
    }
}

/// A series with the labels that a scrape adds.
fn labelled(series: &str) -> String {
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let separator = if labels == "}" { "" } else { "," };
    format!("{name}{{instance=\"n1\",job=\"volund\"{separator}{labels}")
}

/// Values in promtool's notation: `1x3` is four times 1, `_x3` three times nothing.
fn pack(values: &[Option<f64>]) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut rest = values;
    while let Some(first) = rest.first() {
        let run = rest.iter().take_while(|value| *value == first).count();
        words.push(match (first, run) {
            (None, run) => format!("_x{run}"),
            (Some(value), 1) => value.to_string(),
            (Some(value), run) => format!("{value}x{}", run - 1),
        });
        rest = &rest[run..];
    }
    words.join(" ")
}

fn seconds(time: &str) -> Result<u64> {
    let (number, unit) = time.split_at(time.len().saturating_sub(1));
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => anyhow::bail!("{time:?} is not a time"),
    };
    Ok(number.parse::<u64>().with_context(|| format!("{time:?}"))? * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_packed_as_promtool_reads_them() {
        let values = [Some(1.0), Some(1.0), None, None, Some(2.5), Some(0.0)];
        assert_eq!(pack(&values), "1x1 _x2 2.5 0");
    }

    #[test]
    fn a_series_gets_the_labels_of_a_scrape() {
        assert_eq!(labelled("up"), "up{instance=\"n1\",job=\"volund\"}");
        assert_eq!(
            labelled("volund_pool_state{pool=\"a\"}"),
            "volund_pool_state{instance=\"n1\",job=\"volund\",pool=\"a\"}"
        );
    }
}
