//! Notices that the configuration's files may have changed: inotify on their directories, and a poll.
//!
//! The poll alone is enough for correctness; inotify makes it fast.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc};

use super::files::{self, Identity};

/// Time without an event after which the files are read: an editor or a checkout does many things in a row.
pub(super) const DEBOUNCE: Duration = Duration::from_millis(250);
/// Time between reads that no event has caused.
const POLL: Duration = Duration::from_secs(10);
/// Events in a row that are waited out, lest a file that changes all the time is never read.
const DEBOUNCE_ROUNDS: usize = 8;

/// Watches one configuration.
pub(super) struct Watch {
    config: PathBuf,
    watcher: Option<RecommendedWatcher>,
    watched: BTreeMap<PathBuf, Identity>,
    events: mpsc::UnboundedReceiver<()>,
}

impl Watch {
    pub(super) fn new(config: &Path) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // An error (a queue that ran over) may hide a change.
            if event.map_or(true, |event| is_change(event.kind)) {
                // Nobody is left to be told at the end of the process.
                let _ = sender.send(());
            }
        });
        let watcher = watcher
            .inspect_err(|error| tracing::warn!(%error, "no inotify: files are polled only"))
            .ok();
        Self {
            config: config.to_owned(),
            watcher,
            watched: BTreeMap::new(),
            events,
        }
    }

    /// Tells `files` each time that they should be read, for ever.
    pub(super) async fn run(mut self, files: Arc<Notify>) {
        loop {
            self.refresh().await;
            self.changed().await;
            files.notify_one();
        }
    }

    /// Follows directories that came, went or were replaced.
    async fn refresh(&mut self) {
        let config = self.config.clone();
        // The files may be on a network; the control thread must not wait for them.
        let wanted = tokio::task::spawn_blocking(move || files::directories(&config)).await;
        let (Some(watcher), Ok(wanted)) = (&mut self.watcher, wanted) else {
            return;
        };
        if wanted == self.watched {
            return;
        }
        for (path, identity) in &self.watched {
            if wanted.get(path) != Some(identity) {
                // The kernel has dropped the watch of a directory that is gone.
                let _ = watcher.unwatch(path);
            }
        }
        let mut watched = BTreeMap::new();
        for (path, identity) in wanted {
            if self.watched.get(&path) == Some(&identity) {
                watched.insert(path, identity);
                continue;
            }
            match watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => drop(watched.insert(path, identity)),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "can't be watched, is polled only");
                }
            }
        }
        self.watched = watched;
    }

    /// Returns when the files may have changed and have come to rest, or when it is time to look anyway.
    async fn changed(&mut self) {
        tokio::select! {
            Some(()) = self.events.recv() => self.come_to_rest().await,
            () = tokio::time::sleep(POLL) => {}
        }
    }

    async fn come_to_rest(&mut self) {
        for _ in 0..DEBOUNCE_ROUNDS {
            let quiet = tokio::time::timeout(DEBOUNCE, self.events.recv()).await;
            if quiet.is_err() {
                break;
            }
        }
        while self.events.try_recv().is_ok() {}
    }
}

/// Reading the files is an event too (Access(Open)): reacting to it would never end.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) => true,
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        EventKind::Any | EventKind::Other => false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Whether `change` is noticed by inotify: well before the poll.
    async fn noticed(watch: &mut Watch, change: impl FnOnce()) -> bool {
        change();
        tokio::time::timeout(POLL / 2, watch.changed())
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn edits_in_place_by_rename_and_by_swapped_links_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("one")).unwrap();
        fs::write(root.join("one/a.toml"), "1").unwrap();
        fs::create_dir(root.join("two")).unwrap();
        symlink("one", root.join("..data")).unwrap();
        symlink("..data/a.toml", root.join("a.toml")).unwrap();
        let mut watch = Watch::new(root);
        watch.refresh().await;
        let in_place = || fs::write(root.join("one/a.toml"), "2").unwrap();
        assert!(
            noticed(&mut watch, in_place).await,
            "in place, behind a link"
        );
        let renamed = || {
            fs::write(root.join("tmp"), "3").unwrap();
            fs::rename(root.join("tmp"), root.join("b.toml")).unwrap();
        };
        assert!(noticed(&mut watch, renamed).await, "by rename");
        let swapped = || {
            symlink("two", root.join("..tmp")).unwrap();
            fs::rename(root.join("..tmp"), root.join("..data")).unwrap();
        };
        assert!(noticed(&mut watch, swapped).await, "by a swapped link");
    }

    #[tokio::test]
    async fn reading_the_files_is_no_change() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.toml");
        fs::write(&file, "1").unwrap();
        let mut watch = Watch::new(folder.path());
        watch.refresh().await;
        fs::read(&file).unwrap();
        let quiet = tokio::time::timeout(DEBOUNCE * 2, watch.changed()).await;
        assert!(quiet.is_err(), "a read was taken for a change");
    }

    #[tokio::test]
    async fn a_directory_that_was_replaced_is_watched_after_the_next_read() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("conf");
        fs::create_dir(&config).unwrap();
        let mut watch = Watch::new(&config);
        watch.refresh().await;
        fs::rename(&config, folder.path().join("old")).unwrap();
        fs::create_dir(&config).unwrap();
        watch.refresh().await;
        while watch.events.try_recv().is_ok() {}
        let write = || fs::write(config.join("a.toml"), "1").unwrap();
        assert!(noticed(&mut watch, write).await);
    }
}
