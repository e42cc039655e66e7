//! Creations that fail or are cut short, data that is gone, and data that nobody declares.

use super::identity::open;
use super::*;
use crate::model::spec::OnCreateFail;
use crate::model::{ReplicaId, VolumeId};

/// Creates `db` on a pool that can't take it; answers why not.
pub(super) async fn fail(engine: &Engine, on_create_fail: OnCreateFail) -> EngineError {
    let impossible = VolumeSpec {
        on_create_fail,
        ..spec(&["a", "full"])
    };
    let created = engine.ensure_volume(&volume("db"), &impossible).await;
    created.unwrap_err()
}

/// Pools `a`, where there is room, and `full`, of which everything is reserve.
pub(super) async fn with_a_full_pool(node: &Node) -> Engine {
    let engine = node.start().await;
    open(&engine, node, &["a"]).await;
    let full = PoolSpec {
        reserve: Bytes(1 << 60),
        ..node.pool("full")
    };
    engine.open_pool(&pool("full"), &full).await.unwrap();
    engine
}

pub(super) fn files(node: &Node, pool: &str) -> usize {
    let folder = node.path(pool).join("replicas");
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn a_failed_creation_is_rolled_back() {
    run(async {
        let node = Node::new();
        let engine = with_a_full_pool(&node).await;
        assert_eq!(
            fail(&engine, OnCreateFail::Delete).await.reason(),
            "NoSpace"
        );
        assert_eq!(files(&node, "a"), 0);
        assert!(engine.shared.store.creations().is_empty());
        engine.shutdown().await;
    });
}

#[test]
fn a_failed_creation_is_left_for_inspection_when_the_table_says_so() {
    run(async {
        let node = Node::new();
        let engine = with_a_full_pool(&node).await;
        let error = fail(&engine, OnCreateFail::Leave).await;
        assert_eq!(error.reason(), "NoSpace");
        assert!(error.to_string().contains("left for inspection"), "{error}");
        assert_eq!(
            fail(&engine, OnCreateFail::Leave).await.reason(),
            "CreationLeft"
        );
        engine.shutdown().await;
        drop(engine);

        // Not even a restart takes it for what a crash has left.
        let engine = with_a_full_pool(&node).await;
        assert_eq!(
            fail(&engine, OnCreateFail::Leave).await.reason(),
            "CreationLeft"
        );
        assert_eq!(files(&node, "a"), 1, "of two attempts, one was made");
        let strays = engine.observe().await.strays;
        assert_eq!(strays.len(), 1, "{strays:?}");
        assert_eq!(strays[0].why.reason, "Unreadable");

        engine
            .ensure_volume(&volume("db"), &spec(&["a"]))
            .await
            .unwrap();
        assert_eq!(files(&node, "a"), 1, "the new one");
        assert!(engine.observe().await.strays.is_empty());
        engine.shutdown().await;
    });
}

#[test]
fn what_a_crash_left_is_collected_though_nobody_asks_for_its_volume() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        open(&engine, &node, &["a"]).await;
        let half = ReplicaId::generate();
        let creation = Creation {
            name: volume("db"),
            replicas: vec![(pool("a"), half)],
            left: None,
        };
        let store = &engine.shared.store;
        store
            .begin_creation(VolumeId::generate(), creation)
            .await
            .unwrap();
        let handle = engine.open_one(&pool("a")).unwrap();
        handle.create(half, 9 * MIB, true).await.unwrap();
        engine.shutdown().await;
        drop(engine);

        let engine = node.start().await;
        open(&engine, &node, &["a"]).await;
        while !engine.shared.store.creations().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(files(&node, "a"), 0);
        engine.shutdown().await;
    });
}

#[test]
fn a_volume_whose_replicas_are_gone_is_never_made_anew() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        open(&engine, &node, &["a"]).await;
        engine
            .ensure_volume(&volume("db"), &spec(&["a"]))
            .await
            .unwrap();
        engine.shutdown().await;
        drop(engine);
        let replica = std::fs::read_dir(node.path("a/replicas")).unwrap().next();
        std::fs::remove_file(replica.unwrap().unwrap().path()).unwrap();

        let engine = node.start().await;
        open(&engine, &node, &["a"]).await;
        let error = engine.ensure_volume(&volume("db"), &spec(&["a"])).await;
        assert_eq!(error.unwrap_err().reason(), "DataMissing");
        assert_eq!(files(&node, "a"), 0);
        engine.shutdown().await;
    });
}

#[test]
fn what_this_node_never_had_is_an_orphan_until_it_is_purged() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        open(&engine, &node, &["a"]).await;
        engine
            .ensure_volume(&volume("db"), &spec(&["a"]))
            .await
            .unwrap();
        let id = engine.live(&volume("db")).unwrap().id;
        assert!(engine.observe().await.volumes[&volume("db")].known);
        engine.shutdown().await;
        drop(engine);
        std::fs::remove_dir_all(node.path("state")).unwrap();

        let engine = node.start().await;
        open(&engine, &node, &["a"]).await;
        assert!(!engine.observe().await.volumes[&volume("db")].known);
        engine.purge_orphan(id.uuid()).await.unwrap();
        assert_eq!(files(&node, "a"), 0);
        let observed = engine.observe().await;
        assert!(observed.volumes.is_empty() && observed.quarantine.is_empty());
        let again = engine.purge_orphan(id.uuid()).await.unwrap_err();
        assert_eq!(again.reason(), "NotFound");
        engine.shutdown().await;
    });
}

#[test]
fn what_is_not_named_like_a_replica_is_a_stray_and_stays() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        open(&engine, &node, &["a"]).await;
        std::fs::write(node.path("a/replicas/notes.txt"), "mine").unwrap();
        open(&engine, &node, &["a"]).await;
        let strays = engine.observe().await.strays;
        assert_eq!(strays[0].why.reason, "Stranger");
        assert!(node.path("a/replicas/notes.txt").exists());
        engine.shutdown().await;
    });
}
