//! Many volumes at a time, on real files.

use std::sync::Arc;

use super::*;
use crate::engine::found::Found;
use crate::model::ReplicaId;

const VOLUMES: usize = 40;

async fn ensure_all(engine: &Engine) {
    let mut starting = tokio::task::JoinSet::new();
    for number in 0..VOLUMES {
        let engine = engine.clone();
        starting.spawn(async move {
            let name = volume(&format!("v{number}"));
            engine.ensure_volume(&name, &spec(&["a"])).await
        });
    }
    for result in starting.join_all().await {
        result.unwrap();
    }
}

fn looks(engine: &Engine) -> u64 {
    engine.pools()[&pool("a")].looks.count()
}

/// Were it one look per volume, each of which reads every label, starting would take the square of the volumes.
#[test]
fn volumes_that_start_together_share_looks_into_their_pool() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        engine.open_pool(&pool("a"), &node.pool("a")).await.unwrap();
        ensure_all(&engine).await;
        let made = looks(&engine);
        assert!(made < 20, "{made} looks to make {VOLUMES} volumes");
        let files = engine.pools()[&pool("a")].found.iter().count();
        assert_eq!(files, VOLUMES, "each is known to have its file");
        engine.shutdown().await;
        drop(engine);

        let engine = node.start().await;
        engine.open_pool(&pool("a"), &node.pool("a")).await.unwrap();
        ensure_all(&engine).await;
        let found = looks(&engine);
        assert!(found < 10, "{found} looks to find {VOLUMES} volumes");
        assert_eq!(engine.observe().await.volumes.len(), VOLUMES);
        engine.shutdown().await;
    });
}

#[test]
fn a_look_that_began_before_a_file_was_made_does_not_take_it_away() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        engine.open_pool(&pool("a"), &node.pool("a")).await.unwrap();
        let into_a = Arc::clone(&engine.pools()[&pool("a")].looks);
        let replica = ReplicaId::generate();
        let handle = engine.open_one(&pool("a")).unwrap();
        let made = handle.create(replica, 8 * MIB, true).await;
        made.unwrap();
        let look = into_a.hold().await;
        let made = tokio::spawn({
            let engine = engine.clone();
            async move { engine.look_at(&pool("a"), replica).await }
        });
        for _ in 0..100 {
            drop(handle.find(replica).await.unwrap());
        }
        engine.pools().get_mut(&pool("a")).unwrap().found = Found::default();
        drop(look);
        made.await.unwrap().unwrap();
        let pools = engine.pools();
        assert_eq!(pools[&pool("a")].found.of_replica(replica).count(), 1);
    });
}

/// Does something to pool a after it was looked into, and while b still is: nobody may take a for empty (spec A0).
fn check_gather_while(happens: impl Fn(&Engine)) {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        let both = [pool("a"), pool("b")];
        for name in &both {
            let opened = engine.open_pool(name, &node.pool(name.as_str())).await;
            opened.unwrap();
        }
        let made = engine.ensure_volume(&volume("db"), &spec(&["a"])).await;
        made.unwrap();
        let before = looks(&engine);
        let looks_into_b = Arc::clone(&engine.pools()[&both[1]].looks);
        let slow = looks_into_b.hold().await;
        let gathering = tokio::spawn({
            let (engine, both) = (engine.clone(), both.clone());
            async move { engine.gather(&volume("db"), &both).await }
        });
        let looks_into_a = Arc::clone(&engine.pools()[&both[0]].looks);
        while looks(&engine) == before {
            tokio::task::yield_now().await;
        }
        drop(looks_into_a.hold().await);
        happens(&engine);
        drop(slow);
        let gathered = gathering.await.unwrap();
        let offline: Vec<_> = gathered.offline.iter().map(|(pool, _)| pool).collect();
        assert_eq!(offline, [&both[0]]);
        let refused = engine.check_creatable(&volume("db"), None, &gathered);
        assert_eq!(refused.unwrap_err().reason(), "PoolOffline");
        engine.shutdown().await;
    });
}

#[test]
fn a_pool_that_is_opened_anew_while_others_are_looked_into_is_not_taken_for_empty() {
    check_gather_while(|engine| {
        let mut pools = engine.pools();
        let entry = pools.get_mut(&pool("a")).unwrap();
        entry.found = Found::default();
        entry.looks = Arc::default();
    });
}

#[test]
fn a_pool_that_is_closed_while_others_are_looked_into_is_not_taken_for_empty() {
    check_gather_while(|engine| drop(engine.pools().remove(&pool("a"))));
    check_gather_while(|engine| engine.pools().get_mut(&pool("a")).unwrap().pool = None);
}

/// A reactor with nothing to do sleeps: the sizes of its files are none of its business as long as they suffice.
#[test]
fn a_file_that_was_cut_is_noticed_and_one_that_was_not_is_left_alone() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        for name in ["a", "b"] {
            let opened = engine.open_pool(&pool(name), &node.pool(name)).await;
            opened.unwrap();
        }
        let both = spec(&["a", "b"]);
        engine.ensure_volume(&volume("db"), &both).await.unwrap();
        engine.look_around().await;
        assert_eq!(states(&engine, "db").await, [ReplicaState::InSync; 2]);
        let grown = engine.grow_volume(&volume("db"), Bytes(16 * MIB)).await;
        grown.unwrap();
        engine.look_around().await;
        assert_eq!(states(&engine, "db").await, [ReplicaState::InSync; 2]);

        let files = std::fs::read_dir(node.path("b").join("replicas")).unwrap();
        for file in files {
            let path = file.unwrap().path();
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_len(9 * MIB).unwrap();
        }
        let live = engine.live(&volume("db")).unwrap();
        let mut status = live.status.clone();
        engine.look_around().await;
        let is_out = |s: &crate::nexus::NexusStatus| {
            let mut children = s.children.iter();
            children.any(|child| child.state != ReplicaState::InSync)
        };
        status.wait_for(is_out).await.unwrap();
        engine.shutdown().await;
    });
}
