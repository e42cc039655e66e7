//! Members of a running volume: gained, lost, brought back; growing; and crashes half way.

use super::*;
use crate::model::ReplicaId;
use crate::nexus::Health;
use crate::pool::Place;
use crate::state::MemberChange;

pub(super) async fn open_pools(engine: &Engine, node: &Node, names: &[&str]) {
    for name in names {
        let opened = engine.open_pool(&pool(name), &node.pool(name)).await;
        opened.unwrap();
    }
}

pub(super) async fn ensure(engine: &Engine, pools: &[&str]) {
    let db = volume("db");
    engine.ensure_volume(&db, &spec(pools)).await.unwrap();
}

/// Waits until the volume's members are in these pools, all in sync.
pub(super) async fn in_sync(engine: &Engine, pools: &[&str]) {
    let live = engine.live(&volume("db")).unwrap();
    let mut status = live.status.clone();
    let reached = status.wait_for(|status| {
        let members = status.children.iter().filter(|child| child.is_member);
        let mut found: Vec<&str> = members
            .filter(|child| child.state == ReplicaState::InSync)
            .map(|child| child.pool.as_ref().unwrap().as_str())
            .collect();
        found.sort_unstable();
        found == pools && status.health == Health::Online
    });
    let reached = tokio::time::timeout(Duration::from_secs(30), reached).await;
    let reached = reached.map(|found| found.is_ok());
    assert!(reached.is_ok(), "{:?}", live.status.borrow());
}

fn files(node: &Node, pool: &str) -> Vec<String> {
    let entries = std::fs::read_dir(node.path(pool).join("replicas")).unwrap();
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[test]
fn a_replica_that_is_added_is_a_member_after_a_restart_too() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        open_pools(&engine, &node, &["a", "b"]).await;
        ensure(&engine, &["a"]).await;
        write(&engine, "db", 7).await;
        let db = volume("db");
        for _ in 0..2 {
            engine.add_replica(&db, &pool("b")).await.unwrap();
        }
        assert_eq!(files(&node, "b").len(), 1, "adding twice is adding once");
        assert!(engine.shared.store.member_changes().is_empty());
        let applied = engine.observe().await.volumes[&db].applied.clone();
        assert_eq!((applied.members, applied.replicas.len()), (2, 2));
        in_sync(&engine, &["a", "b"]).await;
        engine.shutdown().await;
        drop(engine);
        let engine = node.start().await;
        open_pools(&engine, &node, &["a", "b"]).await;
        let applied = engine.observe().await.volumes[&db].applied.clone();
        assert_eq!((applied.members, applied.replicas.len()), (2, 2));
        ensure(&engine, &["a", "b"]).await;
        assert_eq!(read(&engine, "db").await, 7);
        assert_eq!(states(&engine, "db").await.len(), 2);
        engine.shutdown().await;
    });
}

#[test]
fn a_replica_that_is_removed_leaves_no_file_and_the_last_one_stays() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        open_pools(&engine, &node, &["a", "b"]).await;
        ensure(&engine, &["a", "b"]).await;
        write(&engine, "db", 7).await;
        let db = volume("db");
        for _ in 0..2 {
            engine.remove_replica(&db, &pool("a")).await.unwrap();
        }
        assert_eq!(files(&node, "a"), Vec::<String>::new());
        assert!(engine.shared.store.member_changes().is_empty());
        let error = engine.remove_replica(&db, &pool("b")).await.unwrap_err();
        assert_eq!(error.reason(), "LastCopy", "spec G7: {error}");
        assert_eq!(files(&node, "b").len(), 1);
        assert_eq!(read(&engine, "db").await, 7);
        let applied = engine.observe().await.volumes[&db].applied.clone();
        assert_eq!((applied.members, applied.replicas.len()), (1, 1));
        engine.shutdown().await;
        drop(engine);
        let engine = node.start().await;
        open_pools(&engine, &node, &["a", "b"]).await;
        ensure(&engine, &["b"]).await;
        assert_eq!(read(&engine, "db").await, 7);
        assert_eq!(states(&engine, "db").await, [ReplicaState::InSync]);
        engine.shutdown().await;
    });
}

/// Removed while its pool was away, then listed again: the old file is used and does not count as a copy.
#[test]
fn an_old_replica_that_is_listed_again_is_reused_blank() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        open_pools(&engine, &node, &["a", "b"]).await;
        ensure(&engine, &["a", "b"]).await;
        write(&engine, "db", 7).await;
        let old = files(&node, "b");
        engine.shutdown().await;
        drop(engine);
        let engine = node.start().await;
        open_pools(&engine, &node, &["a"]).await;
        ensure(&engine, &["a", "b"]).await;
        let db = volume("db");
        engine.remove_replica(&db, &pool("b")).await.unwrap();
        write(&engine, "db", 8).await;
        assert_eq!(files(&node, "b"), old, "its pool is away: it stays");
        open_pools(&engine, &node, &["b"]).await;
        let applied = engine.observe().await.volumes[&db].applied.clone();
        assert_eq!(applied.members, 1, "a former member is no member");
        engine.add_replica(&db, &pool("b")).await.unwrap();
        assert_eq!(files(&node, "b"), old);
        assert_eq!(read(&engine, "db").await, 8);
        in_sync(&engine, &["a", "b"]).await;
        engine.remove_replica(&db, &pool("a")).await.unwrap();
        assert_eq!(read(&engine, "db").await, 8);
        engine.shutdown().await;
    });
}

#[test]
fn a_file_of_an_addition_that_a_crash_cut_short_is_cleared_away() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        open_pools(&engine, &node, &["a", "b"]).await;
        ensure(&engine, &["a"]).await;
        let live = engine.live(&volume("db")).unwrap();
        let replica = ReplicaId::generate();
        let change = MemberChange {
            volume: live.id,
            pool: pool("b"),
            adds: true,
        };
        let begun = engine.shared.store.begin_member_change(replica, change);
        begun.await.unwrap();
        let handle = engine.open_one(&pool("b")).unwrap();
        handle.create(replica, 9 * MIB, true).await.unwrap();
        engine.shutdown().await;
        drop((live, handle, engine));
        let engine = node.start().await;
        open_pools(&engine, &node, &["a", "b"]).await;
        ensure(&engine, &["a"]).await;
        assert_eq!(files(&node, "b"), Vec::<String>::new());
        assert!(engine.shared.store.member_changes().is_empty());
        engine.shutdown().await;
    });
}

#[test]
fn a_removal_that_a_crash_cut_short_before_its_commit_keeps_the_member() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        open_pools(&engine, &node, &["a", "b"]).await;
        ensure(&engine, &["a", "b"]).await;
        let live = engine.live(&volume("db")).unwrap();
        let replica = live.books().files[1].1;
        let change = MemberChange {
            volume: live.id,
            pool: pool("b"),
            adds: false,
        };
        let begun = engine.shared.store.begin_member_change(replica, change);
        begun.await.unwrap();
        engine.shutdown().await;
        drop((live, engine));
        let engine = node.start().await;
        open_pools(&engine, &node, &["a", "b"]).await;
        ensure(&engine, &["a", "b"]).await;
        assert_eq!(files(&node, "b"), [replica.to_string()]);
        assert_eq!(states(&engine, "db").await, [ReplicaState::InSync; 2]);
        assert!(engine.shared.store.member_changes().is_empty());
        engine.shutdown().await;
    });
}

#[test]
fn a_full_pool_refuses_a_thick_replica_and_the_volume_goes_on_without() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        open_pools(&engine, &node, &["a"]).await;
        let full = PoolSpec {
            reserve: Bytes(1 << 60),
            ..node.pool("b")
        };
        engine.open_pool(&pool("b"), &full).await.unwrap();
        ensure(&engine, &["a"]).await;
        let db = volume("db");
        let error = engine.add_replica(&db, &pool("b")).await.unwrap_err();
        assert_eq!(error.reason(), "NoSpace", "{error}");
        assert_eq!(files(&node, "b"), Vec::<String>::new());
        assert!(engine.shared.store.member_changes().is_empty());
        assert_eq!(engine.observe().await.volumes[&db].applied.members, 1);
        engine.shutdown().await;
    });
}

#[test]
fn a_volume_grows_on_all_members_and_never_shrinks() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        open_pools(&engine, &node, &["a", "b"]).await;
        ensure(&engine, &["a", "b"]).await;
        write(&engine, "db", 7).await;
        let db = volume("db");
        let larger = Bytes(16 * MIB);
        for _ in 0..2 {
            engine.grow_volume(&db, larger).await.unwrap();
        }
        let error = engine.grow_volume(&db, Bytes(8 * MIB)).await.unwrap_err();
        assert_eq!(error.reason(), "Invalid");
        for name in ["a", "b"] {
            let file = &files(&node, name)[0];
            let path = node.path(name).join("replicas").join(file);
            assert_eq!(std::fs::metadata(path).unwrap().len(), 17 * MIB);
        }
        engine.shutdown().await;
        drop(engine);
        let engine = node.start().await;
        open_pools(&engine, &node, &["a", "b"]).await;
        ensure(&engine, &["a", "b"]).await;
        assert_eq!(engine.observe().await.volumes[&db].applied.size, larger);
        assert_eq!(read(&engine, "db").await, 7);
        engine.shutdown().await;
    });
}

#[test]
fn a_volume_that_is_in_memory_only_gains_no_file_and_others_lose_not_their_last_one() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        let memory = PoolSpec {
            backing: PoolBacking::Memory(Bytes(64 * MIB)),
            ..node.pool("unused")
        };
        engine.open_pool(&pool("ram"), &memory).await.unwrap();
        open_pools(&engine, &node, &["a"]).await;
        let tmp = volume("tmp");
        engine.ensure_volume(&tmp, &spec(&["ram"])).await.unwrap();
        let error = engine.add_replica(&tmp, &pool("a")).await.unwrap_err();
        assert_eq!(error.reason(), "MemoryOnly");
        ensure(&engine, &["a", "ram"]).await;
        let db = volume("db");
        let error = engine.remove_replica(&db, &pool("a")).await.unwrap_err();
        assert_eq!(error.reason(), "LastCopy", "{error}");
        engine.remove_replica(&db, &pool("ram")).await.unwrap();
        assert_eq!(states(&engine, "db").await, [ReplicaState::InSync]);
        engine.shutdown().await;
    });
}

#[test]
fn a_member_whose_pool_opens_late_comes_back_by_itself() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        open_pools(&engine, &node, &["a", "b"]).await;
        ensure(&engine, &["a", "b"]).await;
        engine.shutdown().await;
        drop(engine);
        let engine = node.start().await;
        open_pools(&engine, &node, &["a"]).await;
        ensure(&engine, &["a", "b"]).await;
        write(&engine, "db", 8).await;
        let live = engine.live(&volume("db")).unwrap();
        assert_eq!(live.status.borrow().health, Health::Degraded);
        open_pools(&engine, &node, &["b"]).await;
        in_sync(&engine, &["a", "b"]).await;
        let id = live.id;
        // Told in the background.
        let told = async {
            loop {
                let history = engine.shared.store.history(id).events;
                let what: Vec<&str> = history.iter().map(|e| e.what.as_str()).collect();
                if what.contains(&"Rebuilt") && what.contains(&"InSync") {
                    return history;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let told = tokio::time::timeout(Duration::from_secs(30), told).await;
        let started = told.unwrap().into_iter().filter(|e| e.what == "Started");
        assert!(
            started
                .last()
                .unwrap()
                .detail
                .contains("left out: b is Absent")
        );
        engine.shutdown().await;
        let found = engine.all_files();
        assert!(
            found
                .iter()
                .all(|(_, f)| matches!(f.place, Place::Active(_)))
        );
    });
}

#[test]
fn a_memory_member_is_made_anew_after_a_start() {
    run(async {
        let node = Node::new();
        let memory = PoolSpec {
            backing: PoolBacking::Memory(Bytes(64 * MIB)),
            ..node.pool("unused")
        };
        for byte in [4, 5] {
            let engine = node.start().await;
            open_pools(&engine, &node, &["a"]).await;
            engine.open_pool(&pool("ram"), &memory).await.unwrap();
            ensure(&engine, &["a", "ram"]).await;
            in_sync(&engine, &["a", "ram"]).await;
            assert_eq!(read(&engine, "db").await, if byte == 4 { 0 } else { 4 });
            write(&engine, "db", byte).await;
            engine.shutdown().await;
        }
    });
}
