//! Which files are believed, and when.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;

const WHOLE: &str = "version = 1\n[pool.m]\nmemory = \"64MiB\"\n\
                     [volume.a]\nsize = \"8MiB\"\npool = \"m\"\n\
                     [volume.b]\nsize = \"8MiB\"\npool = \"m\"\nexport = { vhost-user = {} }\n";

/// A daemon that has read [`WHOLE`] from `path`.
async fn booted(path: &Path, state: &Path) -> (Reload, Config) {
    std::fs::write(path, WHOLE).unwrap();
    let store = Store::open(&state.join("db")).unwrap();
    let place = (path.to_owned(), "n1".parse().unwrap());
    let times = Times {
        monotonic: || tokio::time::Instant::now().into_std(),
        wall: || std::time::UNIX_EPOCH,
    };
    let boot = Reload::boot(place, store, times);
    let (reload, config, _) = boot.await.unwrap();
    (reload, config)
}

/// The first half of a file can be a good one, in which volumes are missing.
#[tokio::test]
async fn half_a_file_that_makes_sense_is_not_taken_for_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volund.toml");
    let (reload, config) = booted(&path, folder.path()).await;
    assert_eq!(config.desired.volumes.len(), 2);
    let half = WHOLE.find("[volume.b]").unwrap();
    std::fs::write(&path, &WHOLE[..half]).unwrap();
    let finish = async {
        tokio::time::sleep(DEBOUNCE / 2).await;
        std::fs::write(&path, WHOLE.replace("8MiB", "16MiB")).unwrap();
    };
    let (read, ()) = tokio::join!(reload.read(Rest::Unsure), finish);
    let loaded = reload.parse(read.unwrap()).await.unwrap();
    let (desired, _) = loaded.result.unwrap();
    assert_eq!(desired.volumes.len(), 2);
}

/// Files that were renamed into place are believed soon, unless objects are gone or something is wrong: a table that
/// moves from one file to another is in neither of them for a moment.
#[tokio::test]
async fn only_whole_files_in_which_nothing_is_missing_are_believed_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volund.toml");
    let (reload, _) = booted(&path, folder.path()).await;
    let doubtful = async |text: &str| {
        std::fs::write(&path, text).unwrap();
        let read = reload.read(Rest::Whole).await.unwrap();
        reload.is_doubtful(&reload.parse(read).await.unwrap())
    };
    let more = format!("{WHOLE}[volume.c]\nsize = \"8MiB\"\npool = \"m\"\n");
    assert!(!doubtful(&more).await, "one more");
    assert!(!doubtful(&WHOLE.replace("8MiB", "16MiB")).await, "larger");
    let half = WHOLE.find("[volume.b]").unwrap();
    assert!(doubtful(&WHOLE[..half]).await, "one is gone");
    assert!(doubtful(&WHOLE.replace("8MiB", "8Mib")).await, "wrong");
    let unexported = WHOLE.replace("export = { vhost-user = {} }", "");
    assert!(doubtful(&unexported).await, "exports are gone");
}

/// The text without `volume.b`, in the `n`th wording.
fn without_b(n: usize) -> String {
    let half = WHOLE.find("[volume.b]").unwrap();
    format!("{}# {n}\n", &WHOLE[..half])
}

/// A daemon that has booted from [`WHOLE`] and from then on finds `text(n)` at the `n`th time that it reads.
async fn finds(
    folder: &Path,
    text: impl Fn(usize) -> String + Send + Sync + 'static,
) -> (Reload, Arc<AtomicUsize>) {
    let path = folder.join("volund.toml");
    let (mut reload, _) = booted(&path, folder).await;
    let reads = Arc::new(AtomicUsize::new(0));
    let count = reads.clone();
    reload.source = Arc::new(move || {
        let n = count.fetch_add(1, Ordering::Relaxed);
        std::fs::write(&path, text(n)).unwrap();
        config::read(&path)
    });
    (reload, reads)
}

fn volumes(news: Result<News>) -> usize {
    match news.unwrap() {
        News::Other(loaded) => loaded.result.unwrap().0.volumes.len(),
        _ => panic!("it is not to be put in force"),
    }
}

/// Wherever the table turns up among the reads, what lacks it is not accepted.
#[tokio::test]
async fn a_table_that_moves_between_files_is_not_dropped() {
    for found in 2..2 + DOUBTS {
        let folder = tempfile::tempdir().unwrap();
        let moved = move |n| match n < found {
            true => without_b(0),
            false => WHOLE.replace("8MiB", "16MiB"),
        };
        let (reload, _) = finds(folder.path(), moved).await;
        let news = reload.look(Rest::Whole).await.unwrap();
        assert!(matches!(news, News::Unsettled), "found at {found}");
        assert_eq!(volumes(reload.look(Rest::Unsure).await), 2);
    }
}

/// Each read finds something else: it is not accepted while a table is missing or something is wrong, however long it
/// is looked at.
#[tokio::test]
async fn a_doubtful_text_that_keeps_changing_is_never_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let (reload, _) = finds(folder.path(), without_b).await;
    for rest in [Rest::Whole, Rest::Unsure, Rest::Whole] {
        let news = reload.look(rest).await.unwrap();
        assert!(matches!(news, News::Unsettled), "{rest:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let (reload, _) = finds(folder.path(), |n| format!("nonsense = {n}")).await;
    let news = reload.look(Rest::Whole).await.unwrap();
    assert!(matches!(news, News::Unsettled), "wrong");
}

/// Said once, and taken back by files that rest, the ones in force among them.
#[tokio::test]
async fn files_that_never_rest_are_complained_of() {
    let folder = tempfile::tempdir().unwrap();
    let text = |n: usize| match n {
        0..2 => without_b(n),
        _ => WHOLE.to_owned(),
    };
    let (mut reload, _) = finds(folder.path(), text).await;
    assert!((1..UNSETTLED_MAX).all(|_| reload.on_unsettled().is_none()));
    assert!(reload.on_unsettled().unwrap().contains("kept changing"));
    assert!(!reload.reading.lock().unwrap().last_successful);
    assert!(reload.on_unsettled().is_none());
    let news = reload.look(Rest::Unsure).await.unwrap();
    assert!(matches!(news, News::Back), "the error goes with it");
}

#[tokio::test]
async fn a_table_that_stays_away_is_gone_after_half_a_second_of_doubt() {
    let folder = tempfile::tempdir().unwrap();
    let (reload, reads) = finds(folder.path(), |_| without_b(0)).await;
    assert_eq!(volumes(reload.look(Rest::Whole).await), 1);
    assert_eq!(reads.load(Ordering::Relaxed), 2 + DOUBTS);
    let doubts = u32::try_from(DOUBTS).unwrap();
    assert!(DEBOUNCE * doubts >= Duration::from_millis(500));
}
