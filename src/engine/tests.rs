//! The engine on real directories: what must survive restarts, renames, removals and crashes half way.

use std::path::PathBuf;
use std::time::Duration;

use super::live;
use super::*;
use crate::model::observed::{Observed, RemovalPolicy};
use crate::model::policy::VolumePolicy;
use crate::model::spec::{BlockSize, ExportSpec, OnRemove, PoolBacking, PoolSpec, VolumeSpec};
use crate::model::status::ReplicaState;
use crate::model::{PoolName, VolumeName};
use crate::state::{Creation, StateDir, Store};
use crate::units::{Bytes, MIB};
use crate::volume::Request;

mod identity;
mod lifecycle;
mod many;
mod members;
mod safety;
mod why;

/// A node's folders, on a filesystem with direct I/O.
struct Node {
    folder: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let target = env!("CARGO_MANIFEST_DIR").to_owned() + "/target";
        Self {
            folder: tempfile::tempdir_in(target).unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn start(&self) -> Engine {
        // Tasks of the run before may still be on their way out.
        let state = loop {
            match StateDir::open(&self.path("state")) {
                Ok(state) => break state,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let database = state.database();
        // The database of the run before may still be on its way out.
        let store = loop {
            match Store::open(&database) {
                Ok(store) => break store,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let config = EngineConfig {
            runtime_dir: self.path("run"),
            fault_injection: false,
            io_threads: 1,
            poll: crate::model::Polling::Off,
        };
        Engine::start(config, state, store).await.unwrap()
    }

    fn pool(&self, name: &str) -> PoolSpec {
        PoolSpec {
            node: "n1".parse().unwrap(),
            backing: PoolBacking::Directory(self.path(name)),
            reserve: Bytes(0),
        }
    }
}

fn pool(name: &str) -> PoolName {
    name.parse().unwrap()
}

fn volume(name: &str) -> VolumeName {
    name.parse().unwrap()
}

fn spec(pools: &[&str]) -> VolumeSpec {
    VolumeSpec {
        node: "n1".parse().unwrap(),
        size: Bytes(8 * MIB),
        replicas: pools.iter().map(|name| pool(name)).collect(),
        thin: true,
        block_size: BlockSize::B4096,
        read_only: false,
        export: ExportSpec::None,
        on_remove: OnRemove::Retain,
        quarantine_for: Duration::from_secs(60),
        on_create_fail: Default::default(),
        uuid: None,
        renamed_from: None,
        policy: VolumePolicy {
            degraded_wait: Duration::from_millis(300),
            ..VolumePolicy::default()
        },
        force_start: None,
    }
}

/// Writes a page of `byte` at the start of a volume, and flushes.
async fn write(engine: &Engine, name: &str, byte: u8) {
    let live = engine.live(&volume(name)).unwrap();
    let id = live.id;
    let done = live.reactor.run(move |local| async move {
        let volume = live::find(&local, id).unwrap();
        let buffer = local.buffers().get(4096);
        buffer.fill(byte);
        volume
            .submit(&Request::Write {
                offset: 0,
                buffer,
                fua: false,
            })
            .await?;
        volume.submit(&Request::Flush).await
    });
    assert_eq!(done.await.unwrap(), Ok(()));
}

/// The first byte of a volume.
async fn read(engine: &Engine, name: &str) -> u8 {
    let live = engine.live(&volume(name)).unwrap();
    let id = live.id;
    let done = live.reactor.run(move |local| async move {
        let volume = live::find(&local, id).unwrap();
        let buffer = local.buffers().get(4096);
        let request = Request::Read {
            offset: 0,
            buffer: buffer.clone(),
        };
        volume.submit(&request).await.map(|()| buffer.to_vec()[0])
    });
    done.await.unwrap().unwrap()
}

async fn states(engine: &Engine, name: &str) -> Vec<ReplicaState> {
    let observed = engine.observe().await;
    observed.volumes[&volume(name)]
        .replicas
        .iter()
        .map(|r| r.state)
        .collect()
}

fn entry(observed: &Observed) -> String {
    assert_eq!(observed.quarantine.len(), 1, "{:?}", observed.quarantine);
    observed.quarantine[0].id.clone()
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test);
}

#[test]
fn a_mirrored_volume_survives_a_restart_and_the_loss_of_the_state_folder() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        for name in ["a", "b"] {
            engine
                .open_pool(&pool(name), &node.pool(name))
                .await
                .unwrap();
        }
        engine
            .ensure_volume(&volume("db"), &spec(&["a", "b"]))
            .await
            .unwrap();
        write(&engine, "db", 7).await;
        let id = engine.live(&volume("db")).unwrap().id;
        engine.shutdown().await;
        drop(engine);
        for lose_state in [false, true] {
            if lose_state {
                std::fs::remove_dir_all(node.path("state")).unwrap();
            }
            let engine = node.start().await;
            for name in ["a", "b"] {
                engine
                    .open_pool(&pool(name), &node.pool(name))
                    .await
                    .unwrap();
            }
            assert!(!engine.observe().await.volumes[&volume("db")].serving);
            engine
                .ensure_volume(&volume("db"), &spec(&["a", "b"]))
                .await
                .unwrap();
            assert_eq!(engine.live(&volume("db")).unwrap().id, id);
            assert_eq!(read(&engine, "db").await, 7);
            assert_eq!(states(&engine, "db").await, [ReplicaState::InSync; 2]);
            engine.shutdown().await;
        }
    });
}

#[test]
fn a_removed_volume_comes_back_with_its_data_and_its_id() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        engine.open_pool(&pool("a"), &node.pool("a")).await.unwrap();
        let db = volume("db");
        engine.ensure_volume(&db, &spec(&["a"])).await.unwrap();
        write(&engine, "db", 9).await;
        let id = engine.live(&db).unwrap().id;
        let quarantined = engine.quarantine_volume(&db).await.unwrap();
        assert_eq!(entry(&engine.observe().await), quarantined);
        // Nobody gets a blank disk under this name.
        let error = engine.ensure_volume(&db, &spec(&["a"])).await.unwrap_err();
        assert_eq!(error.reason(), "QuarantinedDataExists");
        engine.restore_volume(&quarantined, &db).await.unwrap();
        engine.ensure_volume(&db, &spec(&["a"])).await.unwrap();
        assert_eq!(
            (engine.live(&db).unwrap().id, read(&engine, "db").await),
            (id, 9)
        );
        // Once more, under another name, and then for ever.
        let quarantined = engine.quarantine_volume(&db).await.unwrap();
        engine
            .restore_volume(&quarantined, &volume("old"))
            .await
            .unwrap();
        engine
            .ensure_volume(&volume("old"), &spec(&["a"]))
            .await
            .unwrap();
        assert_eq!(read(&engine, "old").await, 9);
        let quarantined = engine.quarantine_volume(&volume("old")).await.unwrap();
        engine.purge(&quarantined).await.unwrap();
        assert!(engine.observe().await.quarantine.is_empty());
        engine.ensure_volume(&db, &spec(&["a"])).await.unwrap();
        assert_eq!(read(&engine, "db").await, 0);
        engine.shutdown().await;
    });
}

#[test]
fn a_rename_keeps_data_and_id_and_needs_no_state() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        for name in ["a", "b"] {
            engine
                .open_pool(&pool(name), &node.pool(name))
                .await
                .unwrap();
        }
        engine
            .ensure_volume(&volume("db"), &spec(&["a", "b"]))
            .await
            .unwrap();
        write(&engine, "db", 3).await;
        engine
            .rename_volume(&volume("db"), &volume("sql"))
            .await
            .unwrap();
        engine
            .ensure_volume(&volume("sql"), &spec(&["a", "b"]))
            .await
            .unwrap();
        assert_eq!(read(&engine, "sql").await, 3);
        engine.shutdown().await;
        drop(engine);
        std::fs::remove_dir_all(node.path("state")).unwrap();
        let engine = node.start().await;
        for name in ["a", "b"] {
            engine
                .open_pool(&pool(name), &node.pool(name))
                .await
                .unwrap();
        }
        let observed = engine.observe().await;
        assert_eq!(
            observed.volumes.keys().collect::<Vec<_>>(),
            [&volume("sql")]
        );
        engine
            .ensure_volume(&volume("sql"), &spec(&["a", "b"]))
            .await
            .unwrap();
        assert_eq!(read(&engine, "sql").await, 3);
        engine.shutdown().await;
    });
}

#[test]
fn a_known_pool_that_is_not_mounted_is_missing_and_nothing_is_created() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        engine.open_pool(&pool("a"), &node.pool("a")).await.unwrap();
        engine
            .ensure_volume(&volume("db"), &spec(&["a"]))
            .await
            .unwrap();
        engine.shutdown().await;
        drop(engine);
        // The mountpoint without the disk: an empty directory.
        std::fs::rename(node.path("a"), node.path("disk")).unwrap();
        std::fs::create_dir(node.path("a")).unwrap();
        let engine = node.start().await;
        let error = engine
            .open_pool(&pool("a"), &node.pool("a"))
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "PoolMissing", "{error}");
        let error = engine
            .ensure_volume(&volume("db"), &spec(&["a"]))
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "PoolOffline", "{error}");
        assert_eq!(std::fs::read_dir(node.path("a")).unwrap().count(), 0);
        std::fs::remove_dir(node.path("a")).unwrap();
        std::fs::rename(node.path("disk"), node.path("a")).unwrap();
        engine.open_pool(&pool("a"), &node.pool("a")).await.unwrap();
        engine
            .ensure_volume(&volume("db"), &spec(&["a"]))
            .await
            .unwrap();
        engine.shutdown().await;
    });
}

#[test]
fn a_creation_that_was_cut_short_is_cleared_away_and_done_again() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        for name in ["a", "b"] {
            engine
                .open_pool(&pool(name), &node.pool(name))
                .await
                .unwrap();
        }
        // The journal has it and one of its files exists: a crash between the two files.
        let (half, missing) = (
            crate::model::ReplicaId::generate(),
            crate::model::ReplicaId::generate(),
        );
        let creation = Creation {
            name: volume("db"),
            replicas: vec![(pool("a"), half), (pool("b"), missing)],
            left: None,
        };
        let id = crate::model::VolumeId::generate();
        engine
            .shared
            .store
            .begin_creation(id, creation)
            .await
            .unwrap();
        let handle = engine.open_one(&pool("a")).unwrap();
        handle.create(half, 9 * MIB, true).await.unwrap();
        engine
            .ensure_volume(&volume("db"), &spec(&["a", "b"]))
            .await
            .unwrap();
        assert!(engine.shared.store.creations().is_empty());
        assert_eq!(handle.list().await.unwrap().replicas.len(), 1);
        assert_eq!(states(&engine, "db").await, [ReplicaState::InSync; 2]);
        engine.shutdown().await;
    });
}

#[test]
fn a_memory_volume_is_parked_when_removed_and_new_after_a_restart() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        let memory = PoolSpec {
            backing: PoolBacking::Memory(Bytes(64 * MIB)),
            ..node.pool("unused")
        };
        engine.open_pool(&pool("ram"), &memory).await.unwrap();
        engine
            .ensure_volume(&volume("tmp"), &spec(&["ram"]))
            .await
            .unwrap();
        write(&engine, "tmp", 5).await;
        let parked = engine.quarantine_volume(&volume("tmp")).await.unwrap();
        assert_eq!(entry(&engine.observe().await), parked);
        let error = engine
            .ensure_volume(&volume("tmp"), &spec(&["ram"]))
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "QuarantinedDataExists");
        engine
            .restore_volume(&parked, &volume("tmp"))
            .await
            .unwrap();
        assert_eq!(read(&engine, "tmp").await, 5);
        engine.shutdown().await;
        drop(engine);
        let engine = node.start().await;
        engine.open_pool(&pool("ram"), &memory).await.unwrap();
        engine
            .ensure_volume(&volume("tmp"), &spec(&["ram"]))
            .await
            .unwrap();
        assert_eq!(read(&engine, "tmp").await, 0);
        engine.shutdown().await;
    });
}

#[test]
fn a_memory_replica_beside_a_file_is_blank_after_a_restart_and_the_data_stays() {
    run(async {
        let node = Node::new();
        let memory = PoolSpec {
            backing: PoolBacking::Memory(Bytes(64 * MIB)),
            ..node.pool("unused")
        };
        let engine = node.start().await;
        engine.open_pool(&pool("a"), &node.pool("a")).await.unwrap();
        engine.open_pool(&pool("ram"), &memory).await.unwrap();
        engine
            .ensure_volume(&volume("db"), &spec(&["a", "ram"]))
            .await
            .unwrap();
        write(&engine, "db", 4).await;
        engine.shutdown().await;
        drop(engine);
        let engine = node.start().await;
        engine.open_pool(&pool("a"), &node.pool("a")).await.unwrap();
        engine.open_pool(&pool("ram"), &memory).await.unwrap();
        engine
            .ensure_volume(&volume("db"), &spec(&["a", "ram"]))
            .await
            .unwrap();
        assert_eq!(read(&engine, "db").await, 4);
        let states = states(&engine, "db").await;
        assert_eq!(states[0], ReplicaState::InSync);
        assert_ne!(states[1], ReplicaState::InSync);
        engine.shutdown().await;
    });
}

#[test]
fn a_full_pool_refuses_a_thick_volume_and_leaves_nothing_behind() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        engine.open_pool(&pool("a"), &node.pool("a")).await.unwrap();
        let huge = VolumeSpec {
            size: Bytes(1 << 50),
            thin: false,
            ..spec(&["a"])
        };
        let error = engine
            .ensure_volume(&volume("db"), &huge)
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "NoSpace", "{error}");
        let handle = engine.open_one(&pool("a")).unwrap();
        assert!(handle.list().await.unwrap().replicas.is_empty());
        assert!(engine.shared.store.creations().is_empty());
        assert!(engine.shared.state.witnesses().unwrap().is_empty());
        engine.shutdown().await;
    });
}

#[test]
fn the_removal_policy_is_the_one_last_applied() {
    run(async {
        let node = Node::new();
        let engine = node.start().await;
        engine.open_pool(&pool("a"), &node.pool("a")).await.unwrap();
        engine
            .ensure_volume(&volume("db"), &spec(&["a"]))
            .await
            .unwrap();
        let policy = RemovalPolicy {
            on_remove: OnRemove::Delete,
            quarantine_for: Duration::from_secs(5),
        };
        engine
            .set_removal_policy(&volume("db"), policy)
            .await
            .unwrap();
        engine.quarantine_volume(&volume("db")).await.unwrap();
        engine.shutdown().await;
        drop(engine);
        let engine = node.start().await;
        engine.open_pool(&pool("a"), &node.pool("a")).await.unwrap();
        assert_eq!(engine.observe().await.quarantine[0].applied.removal, policy);
        engine.shutdown().await;
    });
}
