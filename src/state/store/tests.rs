//! The database: what survives reopening, and damage.

use super::*;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(future)
}

#[test]
fn what_was_written_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volund.redb");
    let (pool, volume) = (PoolId::generate(), VolumeId::generate());
    let record = VolumeRecord {
        thin: Some(true),
        quarantine_seconds: 60,
        ..Default::default()
    };
    let creation = Creation {
        name: "db".parse().unwrap(),
        replicas: Vec::new(),
        left: None,
    };
    let applied = AppliedConfig {
        generation: 3,
        text: "x".into(),
        ..Default::default()
    };
    let store = Store::open(&path).unwrap();
    block_on(async {
        store.set_pool("main".parse().unwrap(), pool).await.unwrap();
        store.set_volume(volume, record.clone()).await.unwrap();
        store
            .begin_creation(volume, creation.clone())
            .await
            .unwrap();
        store.set_applied(applied.clone()).await.unwrap();
    });
    let reopen = |store: Store| {
        let thread_ended = store.changes.clone();
        drop((store, thread_ended));
        // The thread closes the file when it sees its queue closed; redb refuses a second opener until then.
        loop {
            match Store::open(&path) {
                Ok(store) => return store,
                Err(_) => std::thread::yield_now(),
            }
        }
    };
    let store = reopen(store);
    assert_eq!(store.pool(&"main".parse().unwrap()), Some(pool));
    assert_eq!(store.volume(volume), Some(record));
    assert_eq!(store.creations().get(&volume), Some(&creation));
    assert_eq!(store.applied(), Some(applied));
    block_on(async {
        store.remove_volume(volume).await.unwrap();
        store.end_creation(volume).await.unwrap();
    });
    let store = reopen(store);
    assert!(store.volumes().is_empty() && store.creations().is_empty());
}

#[test]
fn a_damaged_database_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volund.redb");
    std::fs::write(&path, vec![0x5a; 10_000]).unwrap();
    let error = Store::open(&path).unwrap_err().to_string();
    assert!(error.contains("move it away"), "{error}");
}

#[test]
fn a_truncated_or_scribbled_database_never_brings_the_daemon_down() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volund.redb");
    let store = Store::open(&path).unwrap();
    let pool = store.set_pool("main".parse().unwrap(), PoolId::generate());
    block_on(pool).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let check = |name: String, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        if let Err(error) = Store::open(&path) {
            let text = path.display().to_string();
            assert!(error.to_string().contains(&text), "{error}");
        }
    };
    for percent in [1, 10, 50, 99] {
        let len = whole.len() * percent / 100;
        check(format!("cut-{percent}"), &whole[..len]);
        let mut bytes = whole.clone();
        let end = (len + 4096).min(bytes.len());
        bytes[len..end].fill(0xa5);
        check(format!("scribbled-{percent}"), &bytes);
    }
    let error = Store::open(folder.path()).unwrap_err();
    assert!(matches!(error, StateError::Io { .. }), "{error}");
}

#[test]
fn changes_of_members_and_histories_survive_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volund.redb");
    let (volume, replica) = (VolumeId::generate(), crate::model::ReplicaId::generate());
    let change = MemberChange {
        volume,
        pool: "main".parse().unwrap(),
        adds: true,
    };
    let mut history = History::default();
    for generation in 0..70 {
        history.push(crate::model::why::HistoryEvent {
            time: "t".into(),
            generation,
            what: "Test".into(),
            pool: None,
            replica: Some(replica),
            detail: String::new(),
        });
    }
    assert_eq!(history.events.len(), crate::state::records::HISTORY_MAX);
    assert_eq!(history.events[0].generation, 6, "the oldest are dropped");
    let store = Store::open(&path).unwrap();
    block_on(async {
        let begun = store.begin_member_change(replica, change.clone()).await;
        begun.unwrap();
        // Many at a time, as at a start: none is lost, and they stay in their order.
        let events = history.events.iter().cloned();
        let adding = events.map(|event| store.add_history(volume, vec![event]));
        let mut adding: Vec<_> = adding.map(Box::pin).collect();
        std::future::poll_fn(|context| {
            adding.retain_mut(|one| one.as_mut().poll(context).map(Result::unwrap).is_pending());
            match adding.is_empty() {
                true => std::task::Poll::Ready(()),
                false => std::task::Poll::Pending,
            }
        })
        .await;
    });
    drop(store);
    let reopened = || loop {
        match Store::open(&path) {
            Ok(store) => return store,
            Err(_) => std::thread::yield_now(),
        }
    };
    let store = reopened();
    assert_eq!(store.member_changes().get(&replica), Some(&change));
    assert_eq!(store.history(volume), history);
    block_on(async {
        store.end_member_change(replica).await.unwrap();
        store.remove_history(volume).await.unwrap();
    });
    drop(store);
    let store = reopened();
    assert!(store.member_changes().is_empty() && store.history(volume).events.is_empty());
}

#[test]
fn what_is_added_while_a_history_is_forgotten_does_not_bring_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volund.redb");
    let volume = VolumeId::generate();
    let event = |generation| crate::model::why::HistoryEvent {
        time: "t".into(),
        generation,
        what: "Test".into(),
        pool: None,
        replica: None,
        detail: String::new(),
    };
    let store = Store::open(&path).unwrap();
    block_on(async {
        store.add_history(volume, vec![event(1)]).await.unwrap();
        // Its place is that of the call, not that of the await.
        let before = store.add_history(volume, vec![event(2)]);
        let mut removing = Box::pin(store.remove_history(volume));
        let removed =
            std::future::poll_fn(|context| std::task::Poll::Ready(removing.as_mut().poll(context)))
                .await;
        let after = store.add_history(volume, vec![event(3)]);
        if removed.is_pending() {
            removing.await.unwrap();
        }
        before.await.unwrap();
        after.await.unwrap();
    });
    assert_eq!(store.history(volume).events, [event(3)]);
    drop(store);
    let store = loop {
        match Store::open(&path) {
            Ok(store) => break store,
            Err(_) => std::thread::yield_now(),
        }
    };
    assert_eq!(store.history(volume).events, [event(3)]);
}
