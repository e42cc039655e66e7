//! What volumes and nodes say about copies, about trying again, and about danger.

use std::time::Duration;

use super::good;
use crate::model::policy::{ForceStart, NodePolicy, RetryPolicy, VolumePolicy};

#[test]
fn what_a_volume_and_its_node_say_about_copies_is_read() {
    let state = good(
        "version = 1\n[pool.a]\npath = \"/srv/a\"\n[pool.b]\npath = \"/srv/b\"\n\
         [retry]\nmax_attempts = 3\ninitial_wait = \"500ms\"\nmultiplier = 1.5\nmax_wait = \"10s\"\n\
         [danger_zone]\nfault_injection = true\n\
         [defaults.node]\nrebuild_max = 4\n\
         [defaults.volume]\nio_timeout = \"2s\"\nrebuild_bandwidth = \"1MiB/s\"\nscrub = { every = \"7d\" }\n\
         [volume.db]\nsize = \"1GiB\"\nreplicas = [\"a\", \"b\"]\ndegraded_wait = \"0s\"\ncommit_timeout = \"1m\"\n\
         read_hedge = \"20ms\"\nintent_max = 64\nrebuild_bandwidth = \"unlimited\"\n\
         scrub = { every = \"never\", repair_from = \"b\" }\n\
         force_start = { from = \"0197f0a4-5d3c-7c1e-9b1e-3f2d8a4c6e11\", at_gen = 12 }\n\
         [volume.web]\nsize = \"1GiB\"\npool = \"a\"\n",
    );
    let retry = RetryPolicy {
        max_attempts: 3,
        initial_wait: Duration::from_millis(500),
        multiplier_percent: 150,
        max_wait: Duration::from_secs(10),
    };
    let expected = NodePolicy {
        rebuild_max: 4,
        retry,
    };
    assert_eq!(state.policy, expected);
    assert!(state.danger_zone.fault_injection);
    let db = &state.volumes[&"db".parse().unwrap()];
    let expected = VolumePolicy {
        io_timeout: Duration::from_secs(2),
        commit_timeout: Duration::from_secs(60),
        read_hedge: Duration::from_millis(20),
        degraded_wait: Duration::ZERO,
        intent_max: 64,
        rebuild_bandwidth: 0,
        scrub_every: None,
        scrub_repair_from: Some("b".parse().unwrap()),
    };
    assert_eq!(db.policy, expected);
    let force_start = ForceStart {
        from: "0197f0a4-5d3c-7c1e-9b1e-3f2d8a4c6e11".parse().unwrap(),
        at_gen: 12,
    };
    assert_eq!(db.force_start, Some(force_start));
    let web = &state.volumes[&"web".parse().unwrap()];
    let expected = VolumePolicy {
        io_timeout: Duration::from_secs(2),
        rebuild_bandwidth: 1 << 20,
        scrub_every: Some(Duration::from_secs(7 * 86400)),
        ..VolumePolicy::default()
    };
    assert_eq!((&web.policy, web.force_start), (&expected, None));
}

#[test]
fn a_nodes_own_word_on_rebuilds_goes_before_the_default() {
    let state = good(
        "version = 1\n[cluster]\nid = \"0197f0a4-5d3c-7c1e-9b1e-3f2d8a4c6e10\"\n[defaults.node]\nrebuild_max = 3\n\
         [node.n1]\naddress = \"a:1\"\nrebuild_max = 5\n[node.n2]\naddress = \"b:1\"\n",
    );
    assert_eq!(state.policy.rebuild_max, 5);
}
