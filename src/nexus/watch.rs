//! Children that do not answer (spec G11): faulted while another copy goes on, told about while none does.
//!
//! No clock is read and no timer set per operation: while operations are under way, one task counts intervals, and each
//! replica counts by interval what it was asked and has not answered.

use std::cell::{Cell, OnceCell};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use super::env::NexusEnv;
use super::fan_out::either;
use super::nexus::{Inner, Mode};
use super::slots::{SLOTS_MAX, SlotSet};
use super::state::{ChildState, FaultReason};
use crate::io::{Clock, Spawn};
use crate::replica::PATIENCE;

/// Shortest interval between two looks, whatever the I/O timeout.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

/// Whether somebody watches the children of a nexus, and how to begin.
#[derive(Default)]
pub(super) struct Watch {
    task: Cell<bool>,
    start: OnceCell<Box<dyn Fn()>>,
}

impl Watch {
    /// Whether the task is under way.
    #[cfg(test)]
    pub(super) fn is_active(&self) -> bool {
        self.task.get()
    }

    /// An operation on a child begins.
    pub(super) fn begin(&self) {
        if !self.task.get()
            && let Some(start) = self.start.get()
        {
            self.task.set(true);
            start();
        }
    }
}

impl<E: NexusEnv> Inner<E> {
    /// From now on the children are watched while they are at work.
    pub(super) fn watched(self) -> Rc<Self> {
        let inner = Rc::new(self);
        let weak = Rc::downgrade(&inner);
        let start = Box::new(move || {
            if let Some(inner) = weak.upgrade() {
                let spawn = inner.parts.spawn.clone();
                spawn.spawn(inner.watch_children());
            }
        });
        let first = inner.watch.start.set(start).is_ok();
        assert!(first, "a nexus is built once");
        inner
    }

    /// Looks at them a few times per I/O timeout, until nothing is under way.
    async fn watch_children(self: Rc<Self>) {
        let over = || self.mode.get() == Mode::Stopped;
        loop {
            let interval = self.watch_interval();
            let stopped = self.signal.until(over);
            either(self.parts.clock.sleep(interval), stopped).await;
            self.look();
            if over() || !self.children.iter().any(|child| child.is_busy()) {
                break;
            }
        }
        // No await since the last look: whoever begins from here on starts a new task.
        self.watch.task.set(false);
    }

    fn watch_interval(&self) -> Duration {
        let timeout = self.spec.borrow().policy.timeouts.io;
        (timeout / PATIENCE).max(INTERVAL_MIN)
    }

    /// One interval has passed.
    fn look(self: &Rc<Self>) {
        let is_overdue = |slot: &usize| {
            let replica = self.children[*slot].replica();
            replica.is_ok_and(|replica| replica.tick())
        };
        let overdue: SlotSet = (0..SLOTS_MAX).filter(is_overdue).collect();
        let timeout = self.spec.borrow().policy.timeouts.io;
        // When nobody answers there is nobody to go on with.
        let answering = self.usable() - overdue;
        for slot in (self.writers() & overdue).iter() {
            let is_target = self.children[slot].state() == ChildState::Rebuilding;
            if !self.single.get() && (is_target || self.suffice(answering)) {
                self.fault(slot, FaultReason::Hung(timeout));
            }
        }
        let hung = self.usable() & overdue;
        for (slot, child) in self.children.iter().enumerate() {
            let before = child.hung.get();
            let now = hung
                .contains(slot)
                .then(|| before.map_or(0, |looks| looks.saturating_add(1)));
            child.hung.set(now);
            if before.is_some() != now.is_some() {
                self.touch();
            }
        }
    }

    /// Whether every copy hangs that could be asked.
    pub(super) fn nobody_answers(&self) -> bool {
        let is_hung = |slot: usize| self.children[slot].hung.get().is_some();
        self.usable().iter().all(is_hung)
    }

    /// What is said about the last copy while it does not answer.
    pub(super) fn hung_reason(&self, slot: usize) -> Option<String> {
        let looks = self.children[slot].hung.get()?;
        let looks = looks.saturating_add(PATIENCE);
        let time = self.watch_interval().saturating_mul(looks);
        Some(format!("ChildHung: no answer for {} s", time.as_secs()))
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("task", &self.task.get())
            .finish_non_exhaustive()
    }
}
