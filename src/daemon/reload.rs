//! From files on disk to the configuration in force: same files, nothing; bad files, the last good ones stay.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use super::watch::DEBOUNCE;
use crate::config::{self, Loaded, source};
use crate::metrics::reading::ConfigReading;
use crate::model::NodeName;
use crate::model::spec::DesiredState;
use crate::model::time::{Times, rfc3339};
use crate::reconcile::{Config, Handle};
use crate::state::{AppliedConfig, Store};

/// Most reads of files that are still changing before they are taken as they are.
const READS: usize = 3;

/// Keeps the configuration in force in step with the files.
pub(super) struct Reload {
    path: PathBuf,
    node: NodeName,
    store: Store,
    times: Times,
    /// Hash of what was last read, good or bad.
    seen: String,
    applied: AppliedConfig,
    reading: Arc<Mutex<ConfigReading>>,
}

impl Reload {
    /// Reads the files for the first time. Answers what is to be put in force, and what is wrong with the files if that
    /// is the last good configuration instead.
    ///
    /// # Errors
    /// When the files are wrong and no good configuration is known.
    pub(super) async fn boot(
        (path, node): (PathBuf, NodeName),
        store: Store,
        times: Times,
    ) -> Result<(Self, Config, Option<String>)> {
        let mut reload = Self {
            path,
            node,
            store,
            times,
            seen: String::new(),
            applied: AppliedConfig::default(),
            reading: Arc::default(),
        };
        reload.applied = reload.store.applied().unwrap_or_default();
        let loaded = reload.read().await?;
        reload.seen.clone_from(&loaded.hash);
        match &loaded.result {
            Ok((desired, _)) => {
                warn(&loaded);
                let config = reload.accept(&loaded, desired.clone()).await;
                Ok((reload, config, None))
            }
            Err(_) => {
                let report = loaded.report(false);
                let config = reload.last_good(&report)?;
                reload.note(|reading| {
                    reading.last_successful = false;
                    reading.reloads_failed += 1;
                });
                Ok((reload, config, Some(report)))
            }
        }
    }

    /// For the metrics.
    pub(super) fn reading(&self) -> Arc<Mutex<ConfigReading>> {
        self.reading.clone()
    }

    /// Reads the files again and does what has to be done about them.
    pub(super) async fn reload(&mut self, handle: &Handle) -> Result<()> {
        let loaded = self.read().await?;
        if loaded.hash == self.seen {
            return Ok(());
        }
        self.seen.clone_from(&loaded.hash);
        match &loaded.result {
            Err(_) => self.reject(&loaded, handle),
            Ok(_) if loaded.hash == self.applied.hash => {
                tracing::info!("the files on disk are the ones in force again");
                self.note(|reading| reading.last_successful = true);
                handle.set_config_error(None);
            }
            Ok((desired, _)) => {
                warn(&loaded);
                let config = self.accept(&loaded, desired.clone()).await;
                let message = format!("generation {} is in force", config.generation);
                self.tell(handle, "ConfigApplied", &message);
                handle.apply(config);
            }
        }
        Ok(())
    }

    /// Reads the files until they are the same twice. Half a file may be wrong, or be right and lack volumes; only what
    /// is known already needs no second look.
    async fn read(&self) -> Result<Loaded> {
        let mut last: Option<Loaded> = None;
        for _ in 0..READS {
            let (path, node) = (self.path.clone(), self.node.clone());
            // Files may be on a network; the control thread must not wait for them.
            let loaded = tokio::task::spawn_blocking(move || config::load(&path, &node));
            let loaded = loaded.await.context("the configuration's reader failed")?;
            let settled = last.is_some_and(|last| last.hash == loaded.hash);
            if settled || [&self.seen, &self.applied.hash].contains(&&loaded.hash) {
                return Ok(loaded);
            }
            last = Some(loaded);
            tokio::time::sleep(DEBOUNCE).await;
        }
        last.context("READS is not zero")
    }

    /// Makes good files the ones in force, for a restart too.
    async fn accept(&mut self, loaded: &Loaded, desired: DesiredState) -> Config {
        let now = self.times.unix_seconds();
        if loaded.hash != self.applied.hash {
            self.applied = AppliedConfig {
                generation: self.applied.generation + 1,
                hash: loaded.hash.clone(),
                at_unix_seconds: now,
                text: source::encode(&loaded.files),
            };
            if let Err(error) = self.store.set_applied(self.applied.clone()).await {
                // The files are good and are wanted now; only a restart with bad ones would suffer.
                tracing::error!(%error, "the configuration could not be saved as the last good one");
            }
        }
        self.note(|reading| {
            reading.last_successful = true;
            reading.last_success_unix_seconds = now;
            reading.reloads_ok += 1;
        });
        self.config(desired)
    }

    fn config(&self, desired: DesiredState) -> Config {
        Config {
            desired,
            generation: self.applied.generation,
            hash: self.applied.hash.clone(),
            applied_at: rfc3339(self.applied.at_unix_seconds),
        }
    }

    /// What was in force before the restart.
    fn last_good(&self, report: &str) -> Result<Config> {
        if self.applied.text.is_empty() {
            bail!("the configuration is wrong, and no good one is known from before\n{report}");
        }
        let files =
            source::decode(&self.applied.text).context("the saved configuration can't be read")?;
        match config::parse(&files, &self.node) {
            Ok((desired, _)) => {
                tracing::error!(
                    generation = self.applied.generation,
                    "the configuration is wrong, the last good one stays in force\n{report}"
                );
                Ok(self.config(desired))
            }
            Err(findings) => {
                let saved = config::render::human(&files, &findings, false);
                bail!(
                    "the configuration is wrong, and so is the last good one for this release\n{report}\n{saved}"
                );
            }
        }
    }

    fn reject(&self, loaded: &Loaded, handle: &Handle) {
        let report = loaded.report(false);
        tracing::error!("the files were refused, the configuration in force stays\n{report}");
        self.note(|reading| {
            reading.last_successful = false;
            reading.reloads_failed += 1;
        });
        self.tell(handle, "ConfigRejected", &report);
        handle.set_config_error(Some(report));
    }

    fn tell(&self, handle: &Handle, reason: &str, message: &str) {
        let time = self.times.now_text();
        handle
            .events()
            .push(time, "config".to_owned(), reason, message);
    }

    fn note(&self, change: impl FnOnce(&mut ConfigReading)) {
        change(&mut self.reading.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Warnings are no reason to refuse a file, but someone should read them.
fn warn(loaded: &Loaded) {
    if !loaded.findings().is_empty() {
        tracing::warn!("the configuration has warnings\n{}", loaded.report(false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "version = 1\n[pool.m]\nmemory = \"64MiB\"\n\
                         [volume.a]\nsize = \"8MiB\"\npool = \"m\"\n\
                         [volume.b]\nsize = \"8MiB\"\npool = \"m\"\n";

    /// The first half of a file can be a good one, in which volumes are missing.
    #[tokio::test]
    async fn half_a_file_that_makes_sense_is_not_taken_for_the_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("volund.toml");
        std::fs::write(&path, WHOLE).unwrap();
        let store = Store::open(&folder.path().join("db")).unwrap();
        let place = (path.clone(), "n1".parse().unwrap());
        let times = Times {
            monotonic: || tokio::time::Instant::now().into_std(),
            wall: || std::time::UNIX_EPOCH,
        };
        let boot = Reload::boot(place, store, times);
        let (reload, config, _) = boot.await.unwrap();
        assert_eq!(config.desired.volumes.len(), 2);
        let half = WHOLE.find("[volume.b]").unwrap();
        std::fs::write(&path, &WHOLE[..half]).unwrap();
        let finish = async {
            tokio::time::sleep(DEBOUNCE / 2).await;
            std::fs::write(&path, WHOLE.replace("8MiB", "16MiB")).unwrap();
        };
        let (read, ()) = tokio::join!(reload.read(), finish);
        let (desired, _) = read.unwrap().result.unwrap();
        assert_eq!(desired.volumes.len(), 2);
    }
}
