//! What `volund why` says, and that what it advises works.

use super::members::{ensure, in_sync, open_pools};
use super::*;
use crate::model::policy::ForceStart;
use crate::model::why::Relation;
use crate::replica::layout::DATA_OFFSET;

#[test]
fn a_blocked_volume_is_explained_and_the_advised_line_starts_it() {
    run(async {
        let node = Node::new();
        let db = volume("db");
        let engine = node.start().await;
        open_pools(&engine, &node, &["a", "b"]).await;
        ensure(&engine, &["a", "b"]).await;
        write(&engine, "db", 7).await;
        engine.shutdown().await;
        drop(engine);
        // Only `a` goes on.
        let engine = node.start().await;
        open_pools(&engine, &node, &["a"]).await;
        ensure(&engine, &["a", "b"]).await;
        write(&engine, "db", 8).await;
        engine.shutdown().await;
        drop(engine);
        // Only the stale one is here.
        let engine = node.start().await;
        open_pools(&engine, &node, &["b"]).await;
        let pools = spec(&["a", "b"]);
        let error = engine.ensure_volume(&db, &pools).await.unwrap_err();
        assert_eq!(error.reason(), "Blocked", "spec A5: {error}");
        let why = engine.why(&db).await.unwrap();
        assert!(!why.serving && why.summary.contains("Blocked"), "{why:?}");
        let [label] = why.labels.as_slice() else {
            panic!("one label is here: {:?}", why.labels);
        };
        assert_eq!(label.pool, pool("b"));
        // Nobody here has the committed history, so that it may be an ancestor or not.
        assert!(matches!(label.relation, Some(Relation::Before(1..))));
        let witness = why.witness.as_ref().unwrap();
        assert!(witness.generation > label.generation.unwrap());
        assert_eq!(witness.in_sync.len(), 1);
        let force = ForceStart {
            from: label.replica,
            at_gen: label.generation.unwrap(),
        };
        let line = format!(
            "force_start = {{ from = \"{}\", at_gen = {} }}",
            force.from, force.at_gen
        );
        assert!(why.next.last().unwrap().ends_with(&line), "{:?}", why.next);
        let told = why.history.iter().rfind(|e| e.what == "Started");
        assert!(told.unwrap().detail.contains("left out: b"), "{told:?}");
        let forced = VolumeSpec {
            force_start: Some(force),
            ..pools
        };
        engine.ensure_volume(&db, &forced).await.unwrap();
        assert_eq!(read(&engine, "db").await, 7);
        engine.shutdown().await;
    });
}

#[test]
fn a_degraded_volume_says_which_pool_it_waits_for() {
    run(async {
        let node = Node::new();
        let db = volume("db");
        let engine = node.start().await;
        open_pools(&engine, &node, &["a", "b"]).await;
        ensure(&engine, &["a", "b"]).await;
        engine.shutdown().await;
        drop(engine);
        std::fs::rename(node.path("b"), node.path("elsewhere")).unwrap();
        let engine = node.start().await;
        open_pools(&engine, &node, &["a"]).await;
        engine
            .open_pool(&pool("b"), &node.pool("b"))
            .await
            .unwrap_err();
        ensure(&engine, &["a", "b"]).await;
        let why = engine.why(&db).await.unwrap();
        assert!(why.serving, "{why:?}");
        assert!(why.next[0].contains("bring pool \"b\" back"), "{why:?}");
        assert_eq!(why.labels[0].relation, Some(Relation::Same), "{why:?}");
        let unknown = engine.why(&volume("nobody")).await.unwrap_err();
        assert_eq!(unknown.reason(), "NotFound");
        engine.shutdown().await;
    });
}

/// Spec section 10: with two replicas a scrub only reports, unless it is told whom to believe.
#[test]
fn flipped_bytes_are_found_and_repaired_only_from_a_replica_that_is_believed() {
    run(async {
        use std::os::unix::fs::FileExt;
        let node = Node::new();
        let db = volume("db");
        let engine = node.start().await;
        open_pools(&engine, &node, &["a", "b"]).await;
        ensure(&engine, &["a", "b"]).await;
        write(&engine, "db", 7).await;
        in_sync(&engine, &["a", "b"]).await;
        let clean = engine.scrub_volume(&db, None).await.unwrap();
        assert_eq!((clean.mismatches, clean.compared), (0, 2), "{clean:?}");
        let entry = std::fs::read_dir(node.path("b").join("replicas")).unwrap();
        let path = entry.last().unwrap().unwrap().path();
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&[1; 512], DATA_OFFSET + 65536).unwrap();
        file.sync_all().unwrap();
        let found = engine.scrub_volume(&db, None).await.unwrap();
        assert_eq!((found.mismatches, found.unrepairable), (1, 1), "{found:?}");
        assert_eq!(found.found[0].offset, 65536);
        let error = engine.scrub_volume(&db, Some(&pool("c"))).await;
        assert_eq!(error.unwrap_err().reason(), "NotFound");
        let repaired = engine.scrub_volume(&db, Some(&pool("a"))).await.unwrap();
        assert_eq!((repaired.mismatches, repaired.repaired), (1, 1));
        let clean = engine.scrub_volume(&db, None).await.unwrap();
        assert_eq!(clean.mismatches, 0);
        engine.shutdown().await;
    });
}

#[test]
fn a_scheduled_scrub_runs_by_itself() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        open_pools(&engine, &node, &["a", "b"]).await;
        ensure(&engine, &["a", "b"]).await;
        let live = engine.live(&volume("db")).unwrap();
        let policy = VolumePolicy {
            scrub_every: Some(Duration::from_millis(100)),
            ..spec(&[]).policy
        };
        let configured = engine.configure_volume(&volume("db"), &policy).await;
        configured.unwrap();
        let scrubbed = async {
            while engine
                .shared
                .store
                .volume(live.id)
                .unwrap()
                .scrubbed_at_unix_seconds
                .is_none()
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let patience = Duration::from_secs(30);
        tokio::time::timeout(patience, scrubbed).await.unwrap();
        engine.shutdown().await;
    });
}
