//! Tests of directory pools on the filesystem that holds the temporary files, which must do direct I/O.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::io::{BufferPool, ReactorHandle};
use crate::model::{PoolId, PoolName, ReplicaId, VolumeName};
use crate::replica::testing::{DATA_LEN, label};
use crate::replica::{Label, OpenError, Replica};
use crate::units::{Bytes, MIB};

const FILE_LEN: u64 = DATA_LEN + MIB;
const NO_PATIENCE: Duration = Duration::ZERO;

fn name() -> PoolName {
    "main".parse().unwrap()
}

async fn open_at(path: &Path, known: Option<PoolId>) -> Result<Pool, PoolError> {
    Pool::open_directory(name(), path.to_owned(), Bytes(0), known).await
}

async fn pool() -> (TempDir, Pool) {
    let parent = tempfile::tempdir().unwrap();
    let pool = open_at(&parent.path().join("p"), None).await.unwrap();
    (parent, pool)
}

async fn open_file(pool: &Pool, replica: ReplicaId) -> OpenedFile {
    match pool.open(replica, NO_PATIENCE).await.unwrap() {
        Opened::File(file) => file,
        Opened::Memory { .. } => panic!("a directory pool"),
    }
}

/// A label of a replica of this pool.
fn label_for(pool: &Pool, replica: ReplicaId, volume: &str) -> Label {
    let mut label = label();
    label.replica = replica;
    label.members[label.own_slot].replica = replica;
    label.pool = pool.id();
    label.name = volume.parse().unwrap();
    label
}

/// A formatted and closed replica of a volume that has been in use.
async fn replica(pool: &Pool, volume: &str) -> ReplicaId {
    replica_of(pool, volume, 7).await
}

async fn replica_of(pool: &Pool, volume: &str, generation: u64) -> ReplicaId {
    let replica = ReplicaId::generate();
    pool.create(replica, FILE_LEN, true).await.unwrap();
    let file = open_file(pool, replica).await;
    let mut label = label_for(pool, replica, volume);
    label.generation = generation;
    let reactor = ReactorHandle::start(0).unwrap();
    let formatted = reactor.run(move |local| async move {
        let disk = local.file(file.fd, file.size, file.alignment, false);
        Replica::format(disk, &BufferPool::default(), label)
            .await
            .map(drop)
    });
    formatted.await.unwrap().unwrap();
    reactor.stop();
    replica
}

fn quarantine_name(replica: ReplicaId, volume: &str) -> QuarantineName {
    let at = "2026-11-21T09:14:03Z".parse().unwrap();
    QuarantineName::new(volume.parse().unwrap(), label().volume, replica, at)
}

fn entries(path: &Path) -> Vec<String> {
    let names = fs::read_dir(path).unwrap();
    let mut names: Vec<_> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A0.
#[tokio::test]
async fn a_new_pool_is_made_and_known_ever_after() {
    let (parent, pool) = pool().await;
    let path = parent.path().join("p");
    let id = pool.id();
    let expected = ["garbage", "quarantine", "replicas", "volund-pool"];
    assert_eq!(entries(&path), expected);
    pool.close().await.unwrap();
    let again = open_at(&path, Some(id)).await.unwrap();
    assert_eq!(again.id(), id);
    again.close().await.unwrap();
    assert_eq!(open_at(&path, None).await.unwrap().id(), id);
}

/// A0: an unmounted disk.
#[tokio::test]
async fn a_known_pool_that_is_not_there_is_missing_and_not_made_again() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("p");
    let check = async |known: PoolId, text: &str| {
        let error = open_at(&path, Some(known)).await.unwrap_err();
        assert_eq!(error.reason(), "PoolMissing");
        assert!(error.to_string().contains(text), "{error}");
    };
    let known = PoolId::generate();
    check(known, "there is no directory").await;
    assert!(!path.exists());
    fs::create_dir(&path).unwrap();
    check(known, "without a pool marker").await;
    assert_eq!(entries(&path), [""; 0]);
    let other = open_at(&path, None).await.unwrap();
    other.close().await.unwrap();
    check(known, "another pool").await;
}

#[tokio::test]
async fn paths_that_are_no_pool_directory_are_refused_each_in_its_way() {
    let parent = tempfile::tempdir().unwrap();
    let path = |name: &str| parent.path().join(name);
    fs::write(path("file"), "x").unwrap();
    std::os::unix::fs::symlink("/", path("link")).unwrap();
    fs::create_dir(path("used")).unwrap();
    fs::write(path("used").join("holiday.jpg"), "x").unwrap();
    fs::create_dir_all(path("lost").join("replicas")).unwrap();
    fs::create_dir(path("damaged")).unwrap();
    fs::write(path("damaged").join("volund-pool"), "version = 9\n").unwrap();
    let check = async |place: &Path, reason: &str, text: &str| {
        let error = open_at(place, None).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    };
    check(&path("file"), "PoolNotADirectory", "is a file").await;
    check(&path("file/below"), "PoolNotADirectory", "is a file").await;
    check(&path("no/parent"), "PoolParentMissing", "does not exist").await;
    check(&path("link"), "PoolIsSymlink", "symbolic link to \"/\"").await;
    check(&path("used"), "PoolNotEmpty", "holiday.jpg").await;
    check(&path("lost"), "PoolMarkerDamaged", "marker").await;
    check(&path("damaged"), "PoolMarkerDamaged", "newer volund").await;
    assert_eq!(entries(&path("used")), ["holiday.jpg"]);
    assert_eq!(entries(&path("lost")), ["replicas"]);
}

#[tokio::test]
async fn an_empty_directory_and_a_half_made_pool_become_pools() {
    let parent = tempfile::tempdir().unwrap();
    for leftover in ["lost+found", "volund-pool.new"] {
        let path = parent.path().join(leftover).join("p");
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join(leftover), "half").unwrap();
        open_at(&path, None).await.unwrap();
    }
}

#[tokio::test]
async fn a_pool_serves_one_daemon() {
    let (parent, pool) = pool().await;
    let path = parent.path().join("p");
    let error = open_at(&path, None).await.unwrap_err();
    assert_eq!(error.reason(), "PoolInUse");
    assert!(error.to_string().contains("this daemon itself"), "{error}");
    pool.close().await.unwrap();
    open_at(&path, None).await.unwrap();
}

/// L6: a file without a label is there after creation, of the right size, and says so.
#[tokio::test]
async fn thin_files_are_sparse_and_thick_ones_are_not() {
    let (_parent, pool) = pool().await;
    let (thin, thick) = (ReplicaId::generate(), ReplicaId::generate());
    pool.create(thin, FILE_LEN, true).await.unwrap();
    pool.create(thick, FILE_LEN, false).await.unwrap();
    let stat = pool.stat(thin).await.unwrap();
    assert_eq!((stat.size, stat.allocated), (FILE_LEN, 0));
    let stat = pool.stat(thick).await.unwrap();
    assert_eq!(stat.size, FILE_LEN);
    assert!(stat.allocated >= FILE_LEN, "{stat:?}");
    let again = pool.create(thin, FILE_LEN, true).await.unwrap_err();
    assert_eq!(again.reason(), "FileExists");
    let file = open_file(&pool, thin).await;
    assert_eq!((file.size, file.thick), (FILE_LEN, None));
    assert!(file.alignment.offset >= 512);
    let capacity = pool.survey().await.unwrap().capacity;
    assert_eq!(capacity.committed, Bytes(2 * FILE_LEN));
    assert!(capacity.allocated >= Bytes(FILE_LEN) && capacity.size > capacity.available);
}

#[tokio::test]
async fn creation_leaves_the_reserve_free_and_nothing_behind() {
    let (parent, pool) = pool().await;
    let too_much = pool.survey().await.unwrap().capacity.size.get();
    let check = async |len: u64, thin: bool| {
        let error = pool.create(ReplicaId::generate(), len, thin).await;
        assert_eq!(error.unwrap_err().reason(), "NoSpace");
    };
    check(too_much.next_multiple_of(MIB), false).await;
    pool.set_reserve(Bytes(too_much));
    check(FILE_LEN, true).await;
    assert_eq!(entries(&parent.path().join("p/replicas")), [""; 0]);
    pool.set_reserve(Bytes(0));
    let far_too_much = pool.create(ReplicaId::generate(), 1 << 63, true).await;
    assert!(far_too_much.is_err());
    assert_eq!(entries(&parent.path().join("p/replicas")), [""; 0]);
}

/// A1.
#[tokio::test]
async fn a_replica_is_opened_once_at_a_time() {
    let (_parent, pool) = pool().await;
    let replica = replica(&pool, "db").await;
    let first = open_file(&pool, replica).await;
    let error = pool.open(replica, NO_PATIENCE).await.unwrap_err();
    assert_eq!(error.reason(), "ReplicaInUse");
    assert!(error.to_string().contains("this daemon itself"), "{error}");
    // Someone who waits gets it when it becomes free.
    let waiting = pool.clone();
    let waiting = tokio::spawn(async move { waiting.open(replica, Duration::from_secs(60)).await });
    pool.list().await.unwrap();
    drop(first);
    waiting.await.unwrap().unwrap();
    let missing = pool.open(ReplicaId::generate(), NO_PATIENCE).await;
    assert_eq!(missing.unwrap_err().reason(), "ReplicaMissing");
}

#[tokio::test]
async fn the_listing_shows_labels_and_names_faults() {
    let (parent, pool) = pool().await;
    let good = replica(&pool, "db").await;
    let truncated = replica(&pool, "short").await;
    let blank = ReplicaId::generate();
    pool.create(blank, FILE_LEN, true).await.unwrap();
    let folder = parent.path().join("p/replicas");
    let file = |replica: ReplicaId| folder.join(replica.to_string());
    fs::File::options()
        .write(true)
        .open(file(truncated))
        .unwrap()
        .set_len(FILE_LEN - 4096)
        .unwrap();
    let copy = ReplicaId::generate();
    fs::copy(file(good), file(copy)).unwrap();
    fs::write(folder.join("notes.txt"), "x").unwrap();
    let link = ReplicaId::generate();
    std::os::unix::fs::symlink("/etc/passwd", file(link)).unwrap();
    let listing = pool.list().await.unwrap();
    assert_eq!(listing.strangers, [folder.join("notes.txt")]);
    let find = |replica: ReplicaId| {
        let mut all = listing.replicas.iter();
        all.find(|found| found.place == Place::Active(replica))
            .unwrap()
    };
    assert_eq!(find(good).fault, None);
    assert_eq!(find(good).label.as_ref().unwrap().name.as_str(), "db");
    assert!(find(good).stat.allocated >= MIB);
    assert_eq!(find(copy).fault, Some(ReplicaFault::Misnamed(good)));
    assert!(matches!(
        find(truncated).fault,
        Some(ReplicaFault::Label(OpenError::Truncated { .. }))
    ));
    assert!(find(truncated).label.is_some());
    assert!(matches!(
        find(blank).fault,
        Some(ReplicaFault::Label(OpenError::Blank { .. }))
    ));
    assert!(matches!(
        find(link).fault,
        Some(ReplicaFault::Unreadable(_))
    ));
}

/// A3: a replica that was copied from another pool.
#[tokio::test]
async fn a_replica_of_another_pool_is_a_fault() {
    let (here, pool_here) = pool().await;
    let (there, pool_there) = pool().await;
    let replica = replica(&pool_here, "db").await;
    let file = format!("p/replicas/{replica}");
    fs::copy(here.path().join(&file), there.path().join(&file)).unwrap();
    let listing = pool_there.list().await.unwrap();
    let expected = Some(ReplicaFault::WrongPool(pool_here.id()));
    assert_eq!(listing.replicas[0].fault, expected);
}

#[tokio::test]
async fn removed_data_goes_to_quarantine_and_comes_back() {
    let (parent, pool) = pool().await;
    let replica = replica(&pool, "db").await;
    let bytes = fs::read(parent.path().join(format!("p/replicas/{replica}"))).unwrap();
    let name = quarantine_name(replica, "db");
    pool.quarantine(name.clone()).await.unwrap();
    pool.quarantine(name.clone())
        .await
        .expect("twice is as good as once");
    let listing = pool.list().await.unwrap();
    assert_eq!(listing.replicas.len(), 1);
    assert_eq!(listing.replicas[0].place, Place::Quarantined(name.clone()));
    assert_eq!(listing.replicas[0].fault, None);
    pool.restore(name.clone()).await.unwrap();
    pool.restore(name.clone()).await.unwrap();
    let back = fs::read(parent.path().join(format!("p/replicas/{replica}"))).unwrap();
    assert!(back == bytes);
    let missing = quarantine_name(ReplicaId::generate(), "db");
    let error = pool.restore(missing).await.unwrap_err();
    assert_eq!(error.reason(), "ReplicaMissing");
}

#[tokio::test]
async fn nothing_is_moved_over_something_else() {
    let (parent, pool) = pool().await;
    let replica = replica(&pool, "db").await;
    let name = quarantine_name(replica, "db");
    let target = parent.path().join("p/quarantine").join(name.to_string());
    fs::write(&target, "precious").unwrap();
    let error = pool.quarantine(name).await.unwrap_err();
    assert_eq!(error.reason(), "FileExists");
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    assert!(pool.stat(replica).await.is_ok());
}

#[tokio::test]
async fn only_the_purged_replica_is_deleted() {
    let (parent, pool) = pool().await;
    let (gone, kept) = (replica(&pool, "db").await, replica(&pool, "db").await);
    let (gone, kept) = (quarantine_name(gone, "db"), quarantine_name(kept, "db"));
    pool.quarantine(gone.clone()).await.unwrap();
    pool.quarantine(kept.clone()).await.unwrap();
    pool.purge(gone.clone()).await.unwrap();
    pool.purge(gone).await.unwrap();
    let left = entries(&parent.path().join("p/quarantine"));
    assert_eq!(left, [kept.to_string()]);
}

#[tokio::test]
async fn an_open_replica_is_not_moved_renamed_or_discarded() {
    let (_parent, pool) = pool().await;
    let replica = replica(&pool, "db").await;
    let held = open_file(&pool, replica).await;
    // The operations wait for the lock; here the pool's own functions do so with less patience.
    let busy = |result: Result<(), Fault>| {
        assert_eq!(result.unwrap_err().reason(), "ReplicaInUse");
    };
    let name: VolumeName = "new".parse().unwrap();
    let place = Place::Active(replica);
    pool.on_worker(move |directory| async move {
        let file = replica.to_string();
        let from = (directory.replicas(), file.as_str());
        let to = (directory.quarantine(), "x");
        busy(files::relocate(from, to, NO_PATIENCE).await);
        let renamed = rename::rename(directory.clone(), place, name, NO_PATIENCE);
        busy(renamed.await);
        let discarded = files::discard(directory.clone(), replica, NO_PATIENCE);
        busy(discarded.await.map(drop));
    })
    .await;
    drop(held);
    assert!(pool.stat(replica).await.is_ok());
}

/// L1: renaming goes the way of every label update.
#[tokio::test]
async fn renaming_rewrites_the_older_label_slot() {
    let (parent, pool) = pool().await;
    let replica = replica(&pool, "db").await;
    let file = parent.path().join(format!("p/replicas/{replica}"));
    let slot_a = fs::read(&file).unwrap()[4096..8192].to_vec();
    for (round, name) in ["web", "web", "mail"].into_iter().enumerate() {
        let place = Place::Active(replica);
        pool.rename(place, name.parse().unwrap()).await.unwrap();
        if round < 2 {
            assert!(fs::read(&file).unwrap()[4096..8192] == slot_a);
        }
    }
    let listing = pool.list().await.unwrap();
    let label = listing.replicas[0].label.as_ref().unwrap();
    assert_eq!((label.name.as_str(), label.slot_seq), ("mail", 3));
    let file = open_file(&pool, replica).await;
    drop(file);
    let quarantined = quarantine_name(replica, "mail");
    pool.quarantine(quarantined.clone()).await.unwrap();
    let place = Place::Quarantined(quarantined);
    pool.rename(place, "db".parse().unwrap()).await.unwrap();
    let listing = pool.list().await.unwrap();
    let label = listing.replicas[0].label.as_ref().unwrap();
    assert_eq!((label.name.as_str(), label.slot_seq), ("db", 4));
}

#[tokio::test]
async fn leftovers_without_data_are_deleted_and_others_kept() {
    let (parent, pool) = pool().await;
    let (blank, thick) = (ReplicaId::generate(), ReplicaId::generate());
    pool.create(blank, FILE_LEN, true).await.unwrap();
    pool.create(thick, FILE_LEN, false).await.unwrap();
    let labelled = replica_of(&pool, "db", 1).await;
    let written = replica_of(&pool, "db", 1).await;
    let written_file = parent.path().join(format!("p/replicas/{written}"));
    let file = fs::File::options().write(true).open(written_file).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"data", FILE_LEN - 4).unwrap();
    drop(file);
    let served = replica(&pool, "db").await;
    let torn = replica(&pool, "db").await;
    let torn_file = parent.path().join(format!("p/replicas/{torn}"));
    let mut bytes = fs::read(&torn_file).unwrap();
    bytes[5000] ^= 1;
    fs::write(&torn_file, bytes).unwrap();
    let discard = async |replica| pool.discard_creation(replica).await.unwrap();
    assert_eq!(discard(blank).await, Discarded::Deleted);
    assert_eq!(discard(blank).await, Discarded::Absent);
    assert_eq!(discard(thick).await, Discarded::Deleted);
    assert_eq!(discard(labelled).await, Discarded::Deleted);
    for replica in [written, torn] {
        match discard(replica).await {
            Discarded::Moved(path) => assert!(path.exists(), "{}", path.display()),
            other => panic!("{other:?}"),
        }
    }
    let refused = pool.discard_creation(served).await.unwrap_err();
    assert_eq!(refused.reason(), "ReplicaInService", "{refused}");
    let left = entries(&parent.path().join("p/replicas"));
    assert_eq!(left, [served.to_string()]);
    assert_eq!(entries(&parent.path().join("p/garbage")).len(), 2);
}

#[tokio::test]
async fn a_thick_replica_says_so_when_opened() {
    let (_parent, pool) = pool().await;
    let replica = ReplicaId::generate();
    pool.create(replica, FILE_LEN, false).await.unwrap();
    let file = open_file(&pool, replica).await;
    let mut label = label_for(&pool, replica, "db");
    label.set_thick(true);
    let reactor = ReactorHandle::start(0).unwrap();
    let formatted = reactor.run(move |local| async move {
        let disk = local.file(file.fd, file.size, file.alignment, true);
        Replica::format(disk, &BufferPool::default(), label)
            .await
            .map(drop)
    });
    formatted.await.unwrap().unwrap();
    reactor.stop();
    assert_eq!(open_file(&pool, replica).await.thick, Some(true));
}

#[tokio::test]
async fn a_memory_pool_hands_out_what_it_has() {
    let pool = Pool::memory(name(), Bytes(10 * MIB), Bytes(MIB));
    let (first, second) = (ReplicaId::generate(), ReplicaId::generate());
    pool.create(first, 6 * MIB, true).await.unwrap();
    pool.create(first, 6 * MIB, true).await.unwrap();
    let error = pool.create(second, 4 * MIB, true).await.unwrap_err();
    assert_eq!(error.reason(), "NoSpace");
    pool.create(second, 3 * MIB, true).await.unwrap();
    assert_eq!(pool.survey().await.unwrap().capacity.available, Bytes(0));
    assert_eq!(
        pool.discard_creation(first).await.unwrap(),
        Discarded::Deleted
    );
    assert_eq!(
        pool.survey().await.unwrap().capacity.available,
        Bytes(6 * MIB)
    );
    let size = match pool.open(second, NO_PATIENCE).await.unwrap() {
        Opened::Memory { size } => size,
        Opened::File(_) => panic!("a memory pool"),
    };
    assert_eq!(size, 3 * MIB);
}

#[tokio::test]
async fn a_closed_pool_says_so() {
    let (_parent, pool) = pool().await;
    pool.close().await.unwrap();
    assert_eq!(pool.list().await.unwrap_err().reason(), "PoolClosed");
    pool.close().await.unwrap();
}
