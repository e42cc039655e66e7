//! What must not happen whatever somebody did to files and names: blank or foreign data in the place of a volume's own.

use super::identity::open;
use super::lifecycle::{fail, files, with_a_full_pool};
use super::*;
use crate::model::spec::OnCreateFail;
use crate::model::{ReplicaId, VolumeId};

async fn ensure(engine: &Engine, name: &str, pools: &[&str]) -> Result<(), EngineError> {
    engine.ensure_volume(&volume(name), &spec(pools)).await
}

fn reason(result: Result<(), EngineError>) -> String {
    result.map_or_else(|error| error.reason().to_owned(), |()| "Ok".to_owned())
}

fn id_of(engine: &Engine, name: &str) -> VolumeId {
    engine.live(&volume(name)).unwrap().id
}

/// A fresh engine, with a volume `db` of its own on `a` and one of another node on `b`. Answers the ids of both.
async fn beside_a_foreign_one(node: &Node) -> (Engine, VolumeId, VolumeId) {
    let elsewhere = Node::new();
    let stranger = elsewhere.start().await;
    open(&stranger, &elsewhere, &["b"]).await;
    ensure(&stranger, "db", &["b"]).await.unwrap();
    write(&stranger, "db", 66).await;
    let foreign = id_of(&stranger, "db");
    stranger.shutdown().await;
    let engine = node.start().await;
    open(&engine, node, &["a"]).await;
    ensure(&engine, "db", &["a"]).await.unwrap();
    write(&engine, "db", 7).await;
    let own = id_of(&engine, "db");
    std::fs::rename(elsewhere.path("b"), node.path("b")).unwrap();
    (engine, own, foreign)
}

async fn restarted(engine: Engine, node: &Node, pools: &[&str]) -> Engine {
    engine.shutdown().await;
    drop(engine);
    let engine = node.start().await;
    open(&engine, node, pools).await;
    engine
}

fn remove_files(node: &Node, pool: &str) {
    for file in std::fs::read_dir(node.path(pool).join("replicas")).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
}

#[test]
fn a_volume_whose_files_vanish_during_its_rename_is_not_made_anew() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        open(&engine, &node, &["a", "b"]).await;
        ensure(&engine, "db", &["a"]).await.unwrap();
        remove_files(&node, "a");
        let (db, sql) = (volume("db"), volume("sql"));
        engine.rename_volume(&db, &sql).await.unwrap();
        let opened = engine.open_volume(&sql, &spec(&["a"])).await;
        assert_eq!(reason(opened), "DataMissing");
        // Nor is it when its table is the first thing that is seen, and lists other pools.
        let engine = restarted(engine, &node, &["a", "b"]).await;
        let renamed = VolumeSpec {
            renamed_from: Some(db),
            ..spec(&["b"])
        };
        assert_eq!(
            reason(engine.ensure_volume(&sql, &renamed).await),
            "DataMissing"
        );
        assert_eq!(files(&node, "a") + files(&node, "b"), 0);
        // Without the claim it is a volume like any other.
        ensure(&engine, "sql", &["b"]).await.unwrap();
        engine.shutdown().await;
    });
}

#[test]
fn data_that_this_node_never_had_does_not_take_the_place_of_its_own() {
    run(async {
        let node = Node::new();
        let (engine, own, foreign) = beside_a_foreign_one(&node).await;
        let engine = restarted(engine, &node, &["b"]).await;
        let error = ensure(&engine, "db", &["b"]).await.unwrap_err();
        assert_eq!(error.reason(), "DataMissing");
        let text = error.to_string();
        assert!(
            text.contains(&own.to_string()) && text.contains(&foreign.to_string()),
            "{text}"
        );
        let adopted = |id| VolumeSpec {
            uuid: Some(id),
            ..spec(&["b"])
        };
        let refused = engine.ensure_volume(&volume("db"), &adopted(own)).await;
        assert_eq!(reason(refused), "NameTaken");
        let db = volume("db");
        engine.ensure_volume(&db, &adopted(foreign)).await.unwrap();
        assert_eq!(read(&engine, "db").await, 66);
        // From now on it is this node's own.
        let engine = restarted(engine, &node, &["b"]).await;
        ensure(&engine, "db", &["b"]).await.unwrap();
        engine.shutdown().await;
    });
}

#[test]
fn data_that_is_hidden_by_a_volume_of_its_name_is_listed() {
    run(async {
        let node = Node::new();
        let (engine, own, _) = beside_a_foreign_one(&node).await;
        open(&engine, &node, &["b"]).await;
        let observed = engine.observe().await;
        assert_eq!(observed.volumes[&volume("db")].ids, [own].into());
        let strays = &observed.strays;
        assert_eq!(strays.len(), 1, "{strays:?}");
        assert_eq!(strays[0].why.reason, "NameTaken");
        let purged = strays[0].replica.unwrap().uuid();
        engine.purge_orphan(purged).await.unwrap();
        assert_eq!((files(&node, "a"), files(&node, "b")), (1, 0));
        assert_eq!(read(&engine, "db").await, 7);
        engine.shutdown().await;
    });
}

/// Half of what is restored is back under the name of a volume that runs: neither could be opened again.
#[test]
fn a_restore_under_another_name_that_fails_half_way_harms_no_other_volume() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        open(&engine, &node, &["b", "c"]).await;
        ensure(&engine, "db", &["b", "c"]).await.unwrap();
        let entry = engine.quarantine_volume(&volume("db")).await.unwrap();
        engine.shutdown().await;
        drop(engine);
        let (engine, came) = with_one_that_came(&node).await;
        let moved: Vec<_> = engine.all_files();
        let blocked = moved.iter().find(|(place, _)| *place == pool("c")).unwrap();
        let replica = blocked.1.place.replica().to_string();
        std::fs::write(node.path("c/replicas").join(replica), "in the way").unwrap();
        let restored = engine.restore_volume(&entry, &volume("sql")).await;
        assert!(restored.is_err());
        let engine = restarted(engine, &node, &["a", "b", "c"]).await;
        // More than one, and the planner would not have it opened.
        let observed = engine.observe().await;
        assert_eq!(observed.volumes[&volume("db")].ids, [came].into());
        engine.shutdown().await;
    });
}

/// An engine on which a volume `db` that came on the pool `a` runs. Answers its id.
async fn with_one_that_came(node: &Node) -> (Engine, VolumeId) {
    let elsewhere = Node::new();
    let stranger = elsewhere.start().await;
    open(&stranger, &elsewhere, &["a"]).await;
    ensure(&stranger, "db", &["a"]).await.unwrap();
    stranger.shutdown().await;
    std::fs::rename(elsewhere.path("a"), node.path("a")).unwrap();
    let engine = node.start().await;
    open(&engine, node, &["a", "b", "c"]).await;
    ensure(&engine, "db", &["a"]).await.unwrap();
    let id = id_of(&engine, "db");
    (engine, id)
}

#[test]
fn a_volume_that_may_not_have_a_name_goes_on_under_its_own() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        open(&engine, &node, &["a"]).await;
        let (db, sql) = (volume("db"), volume("sql"));
        ensure(&engine, "sql", &["a"]).await.unwrap();
        engine.quarantine_volume(&sql).await.unwrap();
        ensure(&engine, "db", &["a"]).await.unwrap();
        write(&engine, "db", 3).await;
        assert_eq!(reason(engine.rename_volume(&db, &sql).await), "NameTaken");
        assert_eq!(read(&engine, "db").await, 3);
        engine.shutdown().await;
    });
}

#[test]
fn a_creation_of_which_nothing_is_left_is_tried_again() {
    run(async {
        let node = Node::new();
        let engine = with_a_full_pool(&node).await;
        let first = fail(&engine, OnCreateFail::Leave).await;
        assert_eq!(first.reason(), "NoSpace");
        let second = fail(&engine, OnCreateFail::Leave).await;
        assert_eq!(second.reason(), "CreationLeft");
        remove_files(&node, "a");
        let third = fail(&engine, OnCreateFail::Leave).await;
        assert_eq!(third.reason(), "NoSpace");
        engine.shutdown().await;
    });
}

/// With a witness but without files it would count as a volume that was lost, and its name as taken, for ever.
#[test]
fn a_roll_back_that_is_cut_short_leaves_no_witness() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        open(&engine, &node, &["a"]).await;
        let id = VolumeId::generate();
        drop(engine.shared.state.open_witness(id).unwrap());
        let away = (pool("away"), ReplicaId::generate());
        let undone = engine.undo_creation(id, &[away]).await;
        assert_eq!(reason(undone), "PoolOffline");
        let witness = node.path("state/witness").join(id.to_string());
        assert!(!witness.exists());
        engine.shutdown().await;
    });
}

#[test]
fn a_purge_that_was_begun_is_over_once_its_volume_runs() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        open(&engine, &node, &["a"]).await;
        ensure(&engine, "db", &["a"]).await.unwrap();
        let id = id_of(&engine, "db");
        let record = engine.shared.store.volume(id).unwrap();
        let purging = crate::state::VolumeRecord {
            purging: true,
            ..record
        };
        engine.shared.store.set_volume(id, purging).await.unwrap();
        let engine = restarted(engine, &node, &["a"]).await;
        ensure(&engine, "db", &["a"]).await.unwrap();
        assert!(!engine.shared.store.volume(id).unwrap().purging);
        engine.shutdown().await;
    });
}
