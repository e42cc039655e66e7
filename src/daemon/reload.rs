//! From files on disk to the configuration in force: same files, nothing; bad files, the last good ones stay.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use super::watch::{DEBOUNCE, Rest};
use crate::config::{self, Loaded, Unparsed, source};
use crate::metrics::reading::ConfigReading;
use crate::model::NodeName;
use crate::model::journal::Revision;
use crate::model::spec::{DesiredState, ExportSpec};
use crate::model::time::{Times, rfc3339};
use crate::reconcile::{Config, Handle};
use crate::state::{AppliedConfig, Store};

/// Most reads of files that are still changing before they are taken as they are.
const READS: usize = 3;
/// How many times [`DEBOUNCE`] a doubtful text has to stay as it is before it is believed.
const DOUBTS: usize = 2;

/// After how many looks in a row that found files still changing, half a second each or more, this is said to be wrong.
const UNSETTLED_MAX: u32 = 10;

/// What a look at the files brings.
enum News {
    /// They are as they were at the last look.
    None,
    /// They are the ones in force, which they were not at the last look.
    Back,
    /// They are the ones in force, and another commit is checked out: a checkout writes files before `HEAD`, an edit may be
    /// committed after it was put in force, and a commit may change other files only.
    Moved(Option<String>),
    /// They say something else.
    Other(Box<Loaded>),
    /// They are doubtful, and change while one looks.
    Unsettled,
}

/// What is left to do after a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    Nothing,
    /// The files were not believed yet: they have to be looked at again.
    Look,
}

/// Files that are not put in force.
#[derive(Debug)]
pub(super) struct Refused {
    /// What is wrong with them.
    pub(super) report: String,
    /// Which they are.
    pub(super) revision: Revision,
}

/// Keeps the configuration in force in step with the files.
pub(super) struct Reload {
    /// Reads the files.
    source: Arc<dyn Fn() -> Unparsed + Send + Sync>,
    node: NodeName,
    store: Store,
    times: Times,
    /// Hash of what was last read, good or bad.
    seen: String,
    applied: AppliedConfig,
    /// The objects of the configuration in force.
    objects: BTreeSet<String>,
    /// Looks in a row that found the files doubtful and changing.
    unsettled: u32,
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
    ) -> Result<(Self, Config, Option<Refused>)> {
        let mut reload = Self {
            source: Arc::new(move || config::read(&path)),
            node,
            store,
            times,
            seen: String::new(),
            applied: AppliedConfig::default(),
            objects: BTreeSet::new(),
            unsettled: 0,
            reading: Arc::default(),
        };
        reload.applied = reload.store.applied().unwrap_or_default();
        let loaded = reload.parse(reload.read(Rest::Unsure).await?).await?;
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
                let revision = revision(&loaded);
                Ok((reload, config, Some(Refused { report, revision })))
            }
        }
    }

    /// For the metrics.
    pub(super) fn reading(&self) -> Arc<Mutex<ConfigReading>> {
        self.reading.clone()
    }

    /// Reads the files again and does what has to be done about them.
    pub(super) async fn reload(&mut self, handle: &Handle, rest: Rest) -> Result<Left> {
        let news = self.look(rest).await?;
        if !matches!(news, News::Unsettled) {
            self.unsettled = 0;
        }
        match news {
            News::None => {}
            News::Unsettled => {
                tracing::info!("the files are changing, the configuration in force stays for now");
                if let Some(complaint) = self.on_unsettled() {
                    tracing::error!("{complaint}");
                    handle.set_config_error(Some(complaint), None);
                }
                return Ok(Left::Look);
            }
            News::Back => {
                self.seen.clone_from(&self.applied.hash);
                tracing::info!("the files on disk are the ones in force again");
                self.note(|reading| reading.last_successful = true);
                handle.set_config_error(None, None);
            }
            News::Moved(commit) => {
                tracing::info!(commit, "another commit is checked out, with the same files");
                self.applied.commit.clone_from(&commit);
                self.keep().await;
                handle.set_commit(commit);
            }
            News::Other(loaded) => {
                self.seen.clone_from(&loaded.hash);
                match &loaded.result {
                    Err(_) => self.reject(&loaded, handle),
                    Ok((desired, _)) => {
                        warn(&loaded);
                        let config = self.accept(&loaded, desired.clone()).await;
                        let message = format!("generation {} is in force", config.generation);
                        self.tell(handle, "ConfigApplied", &message);
                        handle.apply(config);
                    }
                }
            }
        }
        Ok(Left::Nothing)
    }

    /// Reads the files, and once more if they are doubtful: each file may be whole, and another still be on its way, with
    /// the tables that this one had, say. What is doubtful and does not stay is not believed.
    async fn look(&self, rest: Rest) -> Result<News> {
        let news = self.news(rest).await?;
        if let News::Other(loaded) = &news
            && self.is_doubtful(loaded)
            && !self.stays(&loaded.hash).await?
        {
            return Ok(News::Unsettled);
        }
        Ok(news)
    }

    /// Reads the files; parses them only when they are not known.
    async fn news(&self, rest: Rest) -> Result<News> {
        let read = self.read(rest).await?;
        let is_in_force = read.hash == self.applied.hash;
        if read.hash == self.seen {
            return Ok(match is_in_force && read.commit != self.applied.commit {
                true => News::Moved(read.commit),
                false => News::None,
            });
        }
        if is_in_force {
            return Ok(News::Back);
        }
        Ok(News::Other(Box::new(self.parse(read).await?)))
    }

    /// Whether files that were read look as if there might be more to come: they are wrong, or objects are gone.
    fn is_doubtful(&self, loaded: &Loaded) -> bool {
        match &loaded.result {
            Err(_) => true,
            Ok((desired, _)) => !self.objects.is_subset(&objects(desired)),
        }
    }

    /// Whether the files remain those of this hash for as long as a doubtful text has to.
    async fn stays(&self, hash: &str) -> Result<bool> {
        for _ in 0..DOUBTS {
            tokio::time::sleep(DEBOUNCE).await;
            if self.read_once().await?.hash != hash {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads the files until they are the same twice, or often enough: whoever calls doubts what is wrong or lacks
    /// something. Only what is known already needs no second look.
    async fn read(&self, rest: Rest) -> Result<Unparsed> {
        let mut last: Option<Unparsed> = None;
        for _ in 0..READS {
            let read = self.read_once().await?;
            let settled = last.is_some_and(|last| last.hash == read.hash);
            if settled || [&self.seen, &self.applied.hash].contains(&&read.hash) {
                return Ok(read);
            }
            last = Some(read);
            tokio::time::sleep(rest.pause()).await;
        }
        last.context("READS is not zero")
    }

    async fn read_once(&self) -> Result<Unparsed> {
        let source = self.source.clone();
        // Files may be on a network; the control thread must not wait for them.
        let read = tokio::task::spawn_blocking(move || source());
        read.await.context("the configuration's reader failed")
    }

    async fn parse(&self, read: Unparsed) -> Result<Loaded> {
        let node = self.node.clone();
        // Thousands of tables take a while; the control thread has others to serve.
        let parsed = tokio::task::spawn_blocking(move || read.parse(Some(&node)));
        parsed.await.context("the configuration's parser failed")
    }

    /// Makes good files the ones in force, for a restart too.
    async fn accept(&mut self, loaded: &Loaded, desired: DesiredState) -> Config {
        let now = self.times.unix_seconds();
        if loaded.hash != self.applied.hash {
            self.applied = AppliedConfig {
                generation: self.applied.generation + 1,
                hash: loaded.hash.clone(),
                commit: loaded.commit.clone(),
                at_unix_seconds: now,
                text: source::encode(&loaded.files),
            };
            self.keep().await;
        }
        self.note(|reading| {
            reading.last_successful = true;
            reading.last_success_unix_seconds = now;
            reading.reloads_ok += 1;
        });
        self.config(desired)
    }

    /// Saves what is in force for a restart.
    async fn keep(&self) {
        if let Err(error) = self.store.set_applied(self.applied.clone()).await {
            // The files are good and are wanted now; only a restart with bad ones would suffer.
            tracing::error!(%error, "the configuration could not be saved as the last good one");
        }
    }

    fn config(&mut self, desired: DesiredState) -> Config {
        self.objects = objects(&desired);
        Config {
            desired,
            generation: self.applied.generation,
            hash: self.applied.hash.clone(),
            commit: self.applied.commit.clone(),
            applied_at: rfc3339(self.applied.at_unix_seconds),
        }
    }

    /// What was in force before the restart.
    fn last_good(&mut self, report: &str) -> Result<Config> {
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
        handle.set_config_error(Some(report), Some(revision(loaded)));
    }

    /// Counts a look that found the files changing; the complaint when there were too many in a row.
    fn on_unsettled(&mut self) -> Option<String> {
        self.unsettled = self.unsettled.saturating_add(1);
        if self.unsettled != UNSETTLED_MAX {
            return None;
        }
        self.note(|reading| reading.last_successful = false);
        // Whatever they are when they rest is to be judged anew, also if it was known before.
        self.seen.clear();
        Some(format!(
            "the files have kept changing over {UNSETTLED_MAX} looks, each time with mistakes or without objects that are in \
             force; the configuration in force stays until they rest (who writes them all the time?)"
        ))
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

/// Which state of the files was read.
fn revision(loaded: &Loaded) -> Revision {
    Revision {
        generation: None,
        hash: loaded.hash.clone(),
        commit: loaded.commit.clone(),
    }
}

/// What the files declare: `pool.main`, `volume.db`, `volume.db's vhost-user export`.
fn objects(desired: &DesiredState) -> BTreeSet<String> {
    let pools = desired.pools.keys().map(|name| format!("pool.{name}"));
    let mut objects: BTreeSet<String> = pools.collect();
    for (name, volume) in &desired.volumes {
        objects.insert(format!("volume.{name}"));
        let export = match volume.export {
            ExportSpec::None => continue,
            ExportSpec::VhostUser { .. } => "vhost-user",
            ExportSpec::Ublk { .. } => "ublk",
        };
        objects.insert(format!("volume.{name}'s {export} export"));
    }
    objects
}

/// Warnings are no reason to refuse a file, but someone should read them.
fn warn(loaded: &Loaded) {
    if !loaded.findings().is_empty() {
        tracing::warn!("the configuration has warnings\n{}", loaded.report(false));
    }
}

#[cfg(test)]
mod tests;
