//! Every metadata write of a volume's life, cut at every 512 bytes (issue 3, show 10).
//!
//! A real nexus is driven through creation, faults, a rebuild, growth, clean and unclean stops on disks that log what
//! happens in which order. Then the power is cut in the middle of each write to a label or bitmap area, with every
//! prefix and every suffix of it done, and a real nexus assembles what is left, from every choice of disks.

mod world;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use self::world::{CutDisk, CutEnv, Disk, Event, Shared, World, candidate, candidates, parts};
use super::basics::filled;
use crate::io::sim::Sim;
use crate::io::{BlockDevice, BufferPool};
use crate::model::status::ReplicaState;
use crate::nexus::sim::Rig;
use crate::nexus::{Nexus, NexusSpec};
use crate::replica::layout::{DATA_OFFSET, PAGE_SIZE};
use crate::replica::{BitmapKind, Label, OpenError, Page, Replica};

const MEMBERS: usize = 3;
const SIZE: u64 = 32 << 10;
const LARGER: u64 = 48 << 10;
const BLOCK: u64 = 4096;
const SECTOR: usize = 512;

struct Story {
    sim: Sim,
    world: Shared,
    spec: NexusSpec,
    value: Cell<u8>,
}

impl Story {
    fn note(&self, event: Event) {
        self.world.borrow_mut().log.push(event);
    }

    /// A durable write of a value that no other write has.
    async fn write(&self, nexus: &Nexus<CutEnv>, block: u64) {
        let value = self.value.get() + 1;
        self.value.set(value);
        self.note(Event::Sent(block, value));
        let data = filled(4096, value);
        nexus.write(block * BLOCK, &data, true).await.unwrap();
        self.note(Event::Acked(block, value));
    }

    fn set_broken(&self, disk: usize, broken: bool) {
        self.world.borrow_mut().disks[disk].broken = broken;
    }

    async fn assemble(&self) -> Nexus<CutEnv> {
        let parts = parts(&self.world, &self.sim.node());
        let candidates = candidates(&self.world, [true; MEMBERS]);
        let assembled = Nexus::assemble(parts, self.spec.clone(), candidates);
        assembled.await.unwrap()
    }

    /// Creation, faults, a rebuild, growth, stops: whatever writes labels and bitmaps.
    async fn tell(&self) {
        let node = self.sim.node();
        let all = candidates(&self.world, [true; MEMBERS]);
        let created = Nexus::create(parts(&self.world, &node), self.spec.clone(), all);
        let nexus = created.await.unwrap();
        for block in 0..8 {
            self.write(&nexus, block).await;
        }
        // One member leaves, then another; the first comes back.
        self.set_broken(1, true);
        self.write(&nexus, 2).await;
        self.write(&nexus, 3).await;
        self.set_broken(1, false);
        let is_out = || nexus.status().children[1].wants_attach;
        nexus.inner.signal.until(is_out).await;
        let back = candidate(&self.world, 1, true);
        nexus.attach(back).await.unwrap();
        self.write(&nexus, 4).await;
        nexus.rebuild(Rig::replica_id(1)).await.unwrap();
        self.write(&nexus, 5).await;
        self.set_broken(2, true);
        self.write(&nexus, 6).await;
        let is_out = || nexus.status().children[2].wants_attach;
        nexus.inner.signal.until(is_out).await;
        self.set_broken(2, false);
        nexus.grow(LARGER).await.unwrap();
        self.write(&nexus, 9).await;
        // A kill, then a clean stop, and a start after that.
        drop(nexus);
        node.kill();
        let nexus = self.assemble().await;
        self.write(&nexus, 7).await;
        let is_equal = || nexus.status().unresolved_bytes == 0;
        nexus.inner.signal.until(is_equal).await;
        assert!(nexus.stop().await, "A10");
        let nexus = self.assemble().await;
        self.write(&nexus, 0).await;
        let report = nexus.rebuild(Rig::replica_id(2)).await;
        report.unwrap();
        self.write(&nexus, 1).await;
        nexus.stop().await;
    }
}

/// The world before `log[at]`; when `lazy`, after a power cut that took everything which was not durable.
fn before(log: &[Event], at: usize, lazy: bool) -> World {
    let mut world = World {
        disks: vec![blank(); MEMBERS],
        ..World::default()
    };
    let flushed = |index: usize, disk: usize| {
        let is_it = |event: &Event| matches!(event, Event::Flush(other) if *other == disk);
        log[index..at].iter().any(is_it)
    };
    for (index, event) in log[..at].iter().enumerate() {
        match event {
            Event::Write { disk, fua, .. } if lazy && !fua && !flushed(index, *disk) => {}
            event => world.apply(event),
        }
    }
    world
}

/// `world` with what the other disks did while `log[at]` was under way, had they been faster.
fn overtaken(mut world: World, log: &[Event], at: usize) -> World {
    let Event::Write { disk, .. } = &log[at] else {
        panic!("only writes are cut");
    };
    for event in &log[at + 1..] {
        match event {
            Event::Write { disk: other, .. } | Event::Grow(other, _) if other != disk => {
                world.apply(event);
            }
            Event::Write { .. } | Event::Grow(..) | Event::Flush(_) => {}
            Event::Commit(_) | Event::Sent(..) | Event::Acked(..) => break,
        }
    }
    world
}

/// `world` with some sectors of a write done.
fn cut(world: &World, write: &Event, kept: impl Fn(usize) -> bool) -> World {
    let Event::Write {
        disk,
        offset,
        bytes,
        ..
    } = write
    else {
        panic!("only writes are cut");
    };
    let mut world = world.clone();
    for sector in (0..bytes.len() / SECTOR).filter(|sector| kept(*sector)) {
        let done = &bytes[sector * SECTOR..(sector + 1) * SECTOR];
        world.disks[*disk].write(offset + (sector * SECTOR) as u64, done);
    }
    world
}

fn blank() -> Disk {
    Disk {
        size: DATA_OFFSET + SIZE,
        ..Disk::default()
    }
}

/// Of each block, the values that it may have on an in-sync member.
fn allowed(log: &[Event], at: usize) -> Vec<Vec<u8>> {
    let blocks = usize::try_from(LARGER / BLOCK).unwrap();
    let mut allowed = vec![vec![0]; blocks];
    for event in &log[..at] {
        match event {
            Event::Sent(block, value) => allowed[usize::try_from(*block).unwrap()].push(*value),
            Event::Acked(block, value) => allowed[usize::try_from(*block).unwrap()] = vec![*value],
            _ => {}
        }
    }
    allowed
}

/// Assembles from some of the disks. Whoever it calls in sync has every acknowledged write (G6).
fn check_authority(
    world: &World,
    present: [bool; MEMBERS],
    allowed: &[Vec<u8>],
    spec: &NexusSpec,
) -> bool {
    let world: Shared = Rc::new(RefCell::new(world.clone()));
    let (sim, spec, own) = (Sim::new(1), spec.clone(), Rc::clone(&world));
    let in_sync = sim.clone().block_on(async move {
        let node = sim.node();
        let candidates = candidates(&own, present);
        let assembled = Nexus::assemble(parts(&own, &node), spec, candidates).await;
        let children = assembled
            .map(|nexus| nexus.status().children)
            .unwrap_or_default();
        node.kill();
        let in_sync = children
            .iter()
            .filter(|child| child.state == ReplicaState::InSync);
        in_sync
            .filter_map(|child| child.replica)
            .collect::<Vec<_>>()
    });
    let world = world.borrow();
    for index in (0..MEMBERS).filter(|index| in_sync.contains(&Rig::replica_id(*index))) {
        assert!(present[index], "A3: who is not here is not in sync");
        for (block, allowed) in (0..).zip(allowed) {
            let data = world.disks[index].read(DATA_OFFSET + block * BLOCK, 4096);
            let whole = data.iter().all(|byte| *byte == data[0]);
            assert!(
                whole && allowed.contains(&data[0]),
                "G6: member {index} of {present:?} is in sync with {} in block {block}, not {allowed:?}",
                data[0]
            );
        }
    }
    !in_sync.is_empty()
}

/// What an opener finds on the disk whose write was cut: the old or the new label; and a torn page counts as all ones.
fn check_opening(before: &World, after: &World, cut: &World, (disk, offset): (usize, u64)) {
    let open = |world: &World| {
        let world: Shared = Rc::new(RefCell::new(world.clone()));
        crate::io::recording::run(Replica::open(
            CutDisk { world, index: disk },
            &BufferPool::default(),
        ))
    };
    let label = |world: &World| match open(world) {
        Ok(replica) => Some(Label::clone(&replica.label())),
        Err(OpenError::Blank { .. }) => None,
        Err(other) => panic!("disk {disk}: {other}"),
    };
    let found = label(cut);
    assert!(
        found == label(before) || found == label(after),
        "L1: neither old nor new"
    );
    for kind in [BitmapKind::Intent, BitmapKind::Missed] {
        if offset != kind.offset() {
            continue;
        }
        let page = |world: &World| world.disks[disk].read(offset, PAGE_SIZE);
        let torn = page(cut) != page(before) && page(cut) != page(after);
        if let Ok(replica) = open(cut)
            && (torn && Page::decode(&page(cut)).is_err())
        {
            assert_eq!(
                replica.set_count(kind),
                replica.label().regions(),
                "section 9"
            );
        }
        assert!(
            !torn || Page::decode(&page(cut)).is_err(),
            "a torn page shows"
        );
    }
}

/// What was tried.
#[derive(Debug, Default)]
struct Tally {
    writes: usize,
    cuts: usize,
    assemblies: usize,
    started: usize,
}

/// Cuts one write everywhere.
fn check_write(log: &[Event], at: usize, spec: &NexusSpec, tally: &mut Tally) {
    let Event::Write {
        disk,
        offset,
        bytes,
        ..
    } = &log[at]
    else {
        return;
    };
    if *offset >= DATA_OFFSET {
        return;
    }
    tally.writes += 1;
    let sectors = bytes.len() / SECTOR;
    let allowed = allowed(log, at);
    let plain = before(log, at, false);
    let bases = [
        plain.clone(),
        before(log, at, true),
        overtaken(plain.clone(), log, at),
    ];
    let none = plain.clone();
    let whole = cut(&plain, &log[at], |_| true);
    // Many cuts come to the same bytes.
    let mut seen = Vec::new();
    for done in 0..=sectors {
        for is_prefix in [true, false] {
            tally.cuts += 1;
            let last = done.saturating_sub(1) * SECTOR;
            let is_zero = bytes[last..last + SECTOR].iter().all(|byte| *byte == 0);
            if sectors > PAGE_SIZE / SECTOR && is_zero {
                // On a blank file the same as the cut before.
                continue;
            }
            let kept = |sector: usize| (sector < done) == is_prefix;
            let left = cut(&plain, &log[at], kept);
            let found = left.disks[*disk].read(*offset, bytes.len());
            if seen.contains(&found) {
                continue;
            }
            check_opening(&none, &whole, &left, (*disk, *offset));
            seen.push(found);
            if sectors > PAGE_SIZE / SECTOR {
                // The first MiB of a new file, which nobody can take for a replica.
                continue;
            }
            for (how, base) in bases.iter().enumerate() {
                let left = cut(base, &log[at], kept);
                let witnesses = [left.witness.clone(), None];
                for witness in &witnesses[..if how == 0 { 2 } else { 1 }] {
                    let mut left = left.clone();
                    left.witness.clone_from(witness);
                    for choice in 1..1_u8 << MEMBERS {
                        let present = [0, 1, 2].map(|disk| choice & (1 << disk) != 0);
                        let started = check_authority(&left, present, &allowed, spec);
                        tally.assemblies += 1;
                        tally.started += usize::from(started);
                    }
                }
            }
        }
    }
}

#[test]
fn no_cut_of_a_metadata_write_gives_a_replica_authority_that_it_has_not() {
    let sim = Sim::new(10);
    let world = World {
        disks: vec![blank(); MEMBERS],
        ..World::default()
    };
    let spec = Rig::new(1, 1, SIZE, 4096).spec;
    let story = Story {
        world: Rc::new(RefCell::new(world)),
        value: Cell::new(0),
        sim: sim.clone(),
        spec: spec.clone(),
    };
    let world = Rc::clone(&story.world);
    sim.block_on(async move { story.tell().await });
    // Nobody looks at what happened any more.
    let log = std::mem::take(&mut world.borrow_mut().log);
    let mut tally = Tally::default();
    for at in 0..log.len() {
        check_write(&log, at, &spec, &mut tally);
    }
    println!("{tally:?}");
    assert!(tally.writes > 40 && tally.started > 1000, "{tally:?}");
}
