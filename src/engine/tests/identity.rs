//! Which files are a volume: names that are used twice, removals and renames that were cut short, calls that race.

use super::*;
use crate::pool::{Place, QuarantineName};

pub(super) async fn open(engine: &Engine, node: &Node, pools: &[&str]) {
    for name in pools {
        let opened = engine.open_pool(&pool(name), &node.pool(name)).await;
        opened.unwrap();
    }
}

async fn open_memory(engine: &Engine, node: &Node) {
    let memory = PoolSpec {
        backing: PoolBacking::Memory(Bytes(64 * MIB)),
        ..node.pool("unused")
    };
    engine.open_pool(&pool("ram"), &memory).await.unwrap();
}

/// A pool that is away is not worked around by an empty one in memory.
#[test]
fn memory_does_not_take_the_place_of_a_directory() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        open(&engine, &node, &["a"]).await;
        engine.shutdown().await;
        drop(engine);
        let engine = node.start().await;
        let memory = PoolSpec {
            backing: PoolBacking::Memory(Bytes(64 * MIB)),
            ..node.pool("a")
        };
        let refused = engine.open_pool(&pool("a"), &memory).await.unwrap_err();
        assert_eq!(refused.reason(), "Immutable");
        assert_eq!(
            engine.open_one(&pool("a")).unwrap_err().reason(),
            "PoolOffline"
        );
        open(&engine, &node, &["a"]).await;
    });
}

async fn ensure(engine: &Engine, name: &str, pools: &[&str]) -> Result<(), EngineError> {
    engine.ensure_volume(&volume(name), &spec(pools)).await
}

async fn replica_in(engine: &Engine, name: &str) -> crate::model::ReplicaId {
    let listing = engine.open_one(&pool(name)).unwrap().list().await.unwrap();
    assert_eq!(listing.replicas.len(), 1, "{listing:?}");
    listing.replicas[0].place.replica()
}

/// A volume `db` on the pools `a` and `b` that holds `byte`, and a fresh engine that has opened both.
async fn stopped_mirror(node: &Node, byte: u8) -> Engine {
    let engine = node.start().await;
    open(&engine, node, &["a", "b"]).await;
    ensure(&engine, "db", &["a", "b"]).await.unwrap();
    write(&engine, "db", byte).await;
    engine.shutdown().await;
    drop(engine);
    let engine = node.start().await;
    open(&engine, node, &["a", "b"]).await;
    engine
}

/// G8: a rename that was cut short leaves one volume with two names; nobody may serve it under both.
#[test]
fn a_volume_with_two_names_is_never_served_twice() {
    run(async {
        let node = Node::new();
        let engine = stopped_mirror(&node, 7).await;
        let half = Place::Active(replica_in(&engine, "a").await);
        let handle = engine.open_one(&pool("a")).unwrap();
        handle.rename(half, volume("sql")).await.unwrap();
        let (both, db, sql) = (spec(&["a", "b"]), volume("db"), volume("sql"));
        let (first, second) = tokio::join!(
            engine.ensure_volume(&db, &both),
            engine.ensure_volume(&sql, &both)
        );
        assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
        let (served, other) = if first.is_ok() {
            ("db", second)
        } else {
            ("sql", first)
        };
        assert_eq!(other.unwrap_err().reason(), "DataElsewhere");
        let id = engine.live(&volume(served)).unwrap().id;
        assert_eq!(engine.claim_idle(id).await.unwrap_err().reason(), "InUse");
        let labelled = |served: &str| {
            let files = engine.all_files();
            let names = files.iter().filter_map(|(_, f)| f.label.as_ref());
            names.filter(|l| l.name == volume(served)).count()
        };
        assert_eq!(labelled(served), 2);
        assert_eq!(states(&engine, served).await, [ReplicaState::InSync; 2]);
        assert_eq!(read(&engine, served).await, 7);
        engine.shutdown().await;
    });
}

#[test]
fn a_removal_that_was_cut_short_is_undone_when_the_table_is_back() {
    run(async {
        let node = Node::new();
        let engine = stopped_mirror(&node, 8).await;
        let id = engine.idle_id(&volume("db")).unwrap();
        let half = replica_in(&engine, "a").await;
        let name = QuarantineName::new(volume("db"), id, half, jiff::Timestamp::UNIX_EPOCH);
        let handle = engine.open_one(&pool("a")).unwrap();
        handle.quarantine(name.clone()).await.unwrap();
        open(&engine, &node, &["a"]).await;
        // What the table is about to get back is not purged meanwhile.
        let error = engine.purge(&name.id()).await.unwrap_err();
        assert_eq!(error.reason(), "InUse");
        ensure(&engine, "db", &["a", "b"]).await.unwrap();
        assert_eq!(states(&engine, "db").await, [ReplicaState::InSync; 2]);
        assert_eq!(read(&engine, "db").await, 8);
        assert!(engine.observe().await.quarantine.is_empty());
        engine.shutdown().await;
    });
}

#[test]
fn a_memory_volume_does_not_take_the_name_of_one_with_data() {
    run(async {
        let node = Node::new();
        let engine = stopped_mirror(&node, 9).await;
        engine.shutdown().await;
        drop(engine);
        let engine = node.start().await;
        open_memory(&engine, &node).await;
        let error = ensure(&engine, "db", &["ram"]).await.unwrap_err();
        assert_eq!(error.reason(), "DataMissing", "{error}");
        engine.shutdown().await;
    });
}

/// A0: data under the name counts wherever it is, even when the state folder, and with it the witness, is gone.
#[test]
fn a_volume_is_not_created_beside_its_data_in_another_pool() {
    run(async {
        let node = Node::new();
        stopped_mirror(&node, 9).await.shutdown().await;
        std::fs::remove_dir_all(node.path("state")).unwrap();
        let engine = node.start().await;
        open(&engine, &node, &["a", "b", "c"]).await;
        let error = ensure(&engine, "db", &["c"]).await.unwrap_err();
        assert_eq!(error.reason(), "DataElsewhere", "{error}");
        engine.shutdown().await;
    });
}

#[test]
fn a_name_is_free_again_once_its_data_has_another() {
    run(async {
        let node = Node::new();
        let engine = stopped_mirror(&node, 9).await;
        let (db, old) = (volume("db"), volume("old"));
        let entry = engine.quarantine_volume(&db).await.unwrap();
        engine.restore_volume(&entry, &old).await.unwrap();
        engine.ensure_volume(&db, &spec(&["a"])).await.unwrap();
        assert_eq!(read(&engine, "db").await, 0);
        ensure(&engine, "old", &["a", "b"]).await.unwrap();
        assert_eq!(read(&engine, "old").await, 9);
        engine.shutdown().await;
    });
}

#[test]
fn what_is_removed_is_the_volume_that_ran_whoever_else_has_its_name() {
    run(async {
        let (node, elsewhere) = (Node::new(), Node::new());
        let stranger = elsewhere.start().await;
        open(&stranger, &elsewhere, &["b"]).await;
        ensure(&stranger, "db", &["b"]).await.unwrap();
        stranger.shutdown().await;
        std::fs::rename(elsewhere.path("b"), node.path("b")).unwrap();
        let engine = node.start().await;
        open(&engine, &node, &["a"]).await;
        ensure(&engine, "db", &["a"]).await.unwrap();
        let id = engine.live(&volume("db")).unwrap().id;
        open(&engine, &node, &["b"]).await;
        engine.quarantine_volume(&volume("db")).await.unwrap();
        let observed = engine.observe().await;
        assert_eq!(observed.quarantine.len(), 1);
        assert_eq!(observed.quarantine[0].uuid, id);
        assert!(!observed.volumes[&volume("db")].ids.contains(&id));
        engine.shutdown().await;
    });
}

#[test]
fn a_volume_whose_removal_failed_after_its_stop_is_started_again() {
    run(async {
        let node = Node::new();
        let engine = stopped_mirror(&node, 6).await;
        let (db, both) = (volume("db"), spec(&["a", "b"]));
        engine.ensure_volume(&db, &both).await.unwrap();
        engine.live(&db).unwrap().stop().await.unwrap();
        engine.ensure_volume(&db, &both).await.unwrap();
        assert_eq!(read(&engine, "db").await, 6);
        assert!(engine.observe().await.volumes[&db].serving);
        engine.shutdown().await;
    });
}

#[test]
fn a_journal_that_was_not_closed_is_closed_once_the_volume_runs() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        open(&engine, &node, &["a"]).await;
        let (db, one) = (volume("db"), spec(&["a"]));
        engine.ensure_volume(&db, &one).await.unwrap();
        let creation = Creation {
            name: db.clone(),
            replicas: vec![(pool("a"), replica_in(&engine, "a").await)],
            left: None,
        };
        let id = engine.live(&db).unwrap().id;
        let store = &engine.shared.store;
        store.begin_creation(id, creation).await.unwrap();
        engine.ensure_volume(&db, &one).await.unwrap();
        assert!(store.creations().is_empty());
        engine.shutdown().await;
    });
}

/// A3: a copy of a replica's file is refused; the replica itself is not the worse for it.
#[test]
fn a_file_that_was_copied_to_another_pool_harms_nobody() {
    run(async {
        let node = Node::new();
        let engine = stopped_mirror(&node, 5).await;
        let replica = replica_in(&engine, "b").await.to_string();
        let file = |pool: &str| node.path(pool).join("replicas").join(&replica);
        std::fs::copy(file("b"), file("a")).unwrap();
        let before = std::fs::read(file("a")).unwrap();
        let (db, sql, both) = (volume("db"), volume("sql"), spec(&["a", "b"]));
        engine.ensure_volume(&db, &both).await.unwrap();
        let count = |states: Vec<ReplicaState>| {
            let in_sync = states.iter().filter(|s| **s == ReplicaState::InSync);
            in_sync.count()
        };
        assert_eq!(count(states(&engine, "db").await), 2);
        engine.rename_volume(&db, &sql).await.unwrap();
        engine.ensure_volume(&sql, &both).await.unwrap();
        assert_eq!(count(states(&engine, "sql").await), 2);
        assert_eq!(read(&engine, "sql").await, 5);
        assert!(
            std::fs::read(file("a")).unwrap() == before,
            "never written to"
        );
        engine.shutdown().await;
    });
}

#[test]
fn a_volume_waits_for_a_late_member_though_its_memory_copy_is_stale() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        open(&engine, &node, &["a", "b"]).await;
        open_memory(&engine, &node).await;
        let (db, three) = (volume("db"), spec(&["a", "b", "ram"]));
        engine.ensure_volume(&db, &three).await.unwrap();
        engine.shutdown().await;
        drop(engine);
        // The memory copy is blank from now on, and the table says so.
        for late in [false, true] {
            let engine = node.start().await;
            open_memory(&engine, &node).await;
            open(&engine, &node, &["a"]).await;
            if !late {
                open(&engine, &node, &["b"]).await;
            }
            let (ensured, ()) = tokio::join!(engine.ensure_volume(&db, &three), async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                open(&engine, &node, &["b"]).await;
            });
            ensured.unwrap();
            let states = states(&engine, "db").await;
            assert_eq!(states[..2], [ReplicaState::InSync; 2], "{late} {states:?}");
            engine.shutdown().await;
        }
    });
}

#[test]
fn a_memory_volume_loses_its_old_address_when_it_is_renamed() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        open_memory(&engine, &node).await;
        let (tmp, new) = (volume("tmp"), volume("new"));
        engine.ensure_volume(&tmp, &spec(&["ram"])).await.unwrap();
        write(&engine, "tmp", 2).await;
        let export = ExportSpec::VhostUser {
            socket: None,
            queues: 1,
            depth: 16,
            pin_guest_memory: false,
        };
        std::fs::create_dir_all(node.path("run")).unwrap();
        engine.ensure_export(&tmp, &export, false).await.unwrap();
        engine.rename_volume(&tmp, &new).await.unwrap();
        engine.ensure_export(&new, &export, false).await.unwrap();
        assert!(node.path("run").join("new.sock").exists());
        assert!(!node.path("run").join("tmp.sock").exists());
        assert_eq!(read(&engine, "new").await, 2);
        engine.shutdown().await;
    });
}

/// Who restores what is being purged must not be told that it is back.
#[test]
fn what_was_purged_meanwhile_is_not_said_to_be_restored() {
    run(async {
        let node = Node::new();
        let engine = stopped_mirror(&node, 9).await;
        let db = volume("db");
        let entry = engine.quarantine_volume(&db).await.unwrap();
        let (purged, restored) =
            tokio::join!(engine.purge(&entry), engine.restore_volume(&entry, &db));
        purged.unwrap();
        assert_eq!(restored.unwrap_err().reason(), "NotFound");
        engine.shutdown().await;
    });
}
