//! Notices that the configuration's files may have changed: inotify on their directories, and a poll.
//!
//! The poll alone is enough for correctness; inotify makes it fast.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::files::{self, Identity};

/// Time without an event after which the files are read when one may be half written: an editor or a checkout does many
/// things in a row.
pub(super) const DEBOUNCE: Duration = Duration::from_millis(250);
/// As long as every file came whole, by a rename.
const DEBOUNCE_WHOLE: Duration = Duration::from_millis(50);
/// Between two reads of files that came whole.
const REREAD_WHOLE: Duration = Duration::from_millis(25);
/// Time between reads that no event has caused.
const POLL: Duration = Duration::from_secs(10);
/// How long events in a row are waited out, lest a file that changes all the time is never read.
const DEBOUNCE_MAX: Duration = Duration::from_secs(2);

/// How sure it is that the files are at rest and whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// What changed was put in place by renames, and none has come for a moment.
    Whole,
    /// Nobody knows what happened, or a file was written in place and may be half of one.
    Unsure,
}

impl Rest {
    /// How long files have to stay the same, from one read to the next, to be taken for whole.
    pub(super) fn pause(self) -> Duration {
        match self {
            Self::Whole => REREAD_WHOLE,
            Self::Unsure => DEBOUNCE,
        }
    }
}

/// What a [`Watch`] tells.
#[derive(Debug)]
pub(super) struct Told {
    rest: Rest,
    at: Instant,
}

impl Told {
    fn now(rest: Rest) -> Self {
        Self {
            rest,
            at: Instant::now(),
        }
    }

    /// How sure it still is. If it had to wait, for a reload say, a file may have been opened in place since.
    pub(super) fn rest(&self) -> Rest {
        if self.at.elapsed() > REREAD_WHOLE {
            return Rest::Unsure;
        }
        self.rest
    }
}

/// What an event says about a file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    /// It is being written, or its writer has closed it; there may be another.
    Written(PathBuf),
    /// It went, or something whole took its name.
    Replaced(PathBuf),
    /// Something else, or the kernel has lost count.
    Unclear,
}

/// Watches one configuration.
pub(super) struct Watch {
    config: PathBuf,
    watcher: Option<RecommendedWatcher>,
    watched: BTreeMap<PathBuf, Identity>,
    events: mpsc::UnboundedReceiver<Seen>,
}

impl Watch {
    pub(super) fn new(config: &Path) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // An error (a queue that ran over) may hide a change.
            let seen = event.map_or_else(|_| vec![Seen::Unclear], seen);
            for seen in seen {
                // Nobody is left to be told at the end of the process.
                let _ = sender.send(seen);
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

    /// Tells `files` each time that they should be read, until nobody listens.
    pub(super) async fn run(mut self, files: mpsc::Sender<Told>) {
        loop {
            self.refresh().await;
            let told = Told::now(self.changed().await);
            if files.send(told).await.is_err() {
                return;
            }
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
    async fn changed(&mut self) -> Rest {
        tokio::select! {
            Some(seen) = self.events.recv() => self.come_to_rest(seen).await,
            () = tokio::time::sleep(POLL) => Rest::Unsure,
        }
    }

    /// A program that writes a file beside and renames it is seen to write, and then that name goes: nothing half written
    /// is left. Then a short silence is enough.
    async fn come_to_rest(&mut self, first: Seen) -> Rest {
        let deadline = Instant::now() + DEBOUNCE_MAX;
        let mut unfinished = BTreeSet::new();
        let mut unclear = false;
        let mut next = Some(first);
        while let Some(seen) = next.take() {
            match seen {
                Seen::Written(path) => drop(unfinished.insert(path)),
                Seen::Replaced(path) => drop(unfinished.remove(&path)),
                Seen::Unclear => unclear = true,
            }
            let is_whole = unfinished.is_empty() && !unclear;
            let quiet = if is_whole { DEBOUNCE_WHOLE } else { DEBOUNCE };
            if Instant::now() >= deadline {
                return Rest::Unsure;
            }
            match tokio::time::timeout(quiet, self.events.recv()).await {
                Ok(seen) => next = seen,
                Err(_) if is_whole => return Rest::Whole,
                Err(_) => return Rest::Unsure,
            }
        }
        Rest::Unsure
    }
}

/// What to make of an event; nothing of one that can't change a file. Reading the files is an event too (Access(Open)):
/// reacting to it would never end.
fn seen(event: notify::Event) -> Vec<Seen> {
    let what: fn(PathBuf) -> Seen = match event.kind {
        EventKind::Create(_)
        | EventKind::Modify(ModifyKind::Data(_))
        | EventKind::Access(AccessKind::Close(AccessMode::Write)) => Seen::Written,
        EventKind::Modify(ModifyKind::Name(RenameMode::From | RenameMode::To))
        | EventKind::Remove(_) => Seen::Replaced,
        // Both halves of it come by themselves.
        EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => return Vec::new(),
        EventKind::Modify(_) => |_| Seen::Unclear,
        EventKind::Other if event.need_rescan() => return vec![Seen::Unclear],
        EventKind::Access(_) | EventKind::Any | EventKind::Other => return Vec::new(),
    };
    event.paths.into_iter().map(what).collect()
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

    /// How a change ends, by what it did: only what a rename put in place is known to be whole.
    #[tokio::test]
    async fn files_that_were_renamed_into_place_are_whole_and_others_may_not_be() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::write(root.join("a.toml"), "1").unwrap();
        let mut watch = Watch::new(root);
        watch.refresh().await;
        fs::write(root.join(".a.toml.new"), "2").unwrap();
        fs::rename(root.join(".a.toml.new"), root.join("a.toml")).unwrap();
        assert_eq!(watch.changed().await, Rest::Whole, "by rename");
        fs::write(root.join("a.toml"), "3").unwrap();
        assert_eq!(watch.changed().await, Rest::Unsure, "in place");
        fs::write(root.join("b.toml"), "1").unwrap();
        fs::write(root.join("tmp"), "4").unwrap();
        fs::rename(root.join("tmp"), root.join("a.toml")).unwrap();
        assert_eq!(watch.changed().await, Rest::Unsure, "one of them in place");
        fs::remove_file(root.join("b.toml")).unwrap();
        assert_eq!(watch.changed().await, Rest::Whole, "a file that went");
    }

    #[test]
    fn files_were_whole_when_it_was_told_and_need_not_be_later() {
        let told = Told::now(Rest::Whole);
        let late = Told {
            at: told.at - 2 * REREAD_WHOLE,
            ..told
        };
        assert_eq!(late.rest(), Rest::Unsure);
        let fresh = Told {
            // As if it came to be told right now, however slow this test is.
            at: Instant::now() + DEBOUNCE,
            ..late
        };
        assert_eq!(fresh.rest(), Rest::Whole);
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
