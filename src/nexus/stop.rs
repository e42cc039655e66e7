//! Stopping a volume (spec A10).

use std::rc::Rc;

use super::env::NexusEnv;
use super::nexus::{Inner, Mode, Nexus};
use super::state::ChildState;

impl<E: NexusEnv> Nexus<E> {
    /// Refuses new requests, waits for those under way, flushes, and lets go of the replicas: their files close when
    /// the kernel is done with them. True when the stop was clean, so that the next start has nothing to resolve.
    /// Never waits for resolving or for a rebuild to finish.
    pub async fn stop(&self) -> bool {
        let inner = Rc::clone(&self.inner);
        if inner.mode.get() == Mode::Serving {
            inner.mode.set(Mode::Stopping);
            inner.touch();
        }
        let idle = || {
            let in_background = [
                inner.resolve_task.get(),
                inner.intent.task.get(),
                inner.scrubbing.is_running(),
                inner.rebuild.borrow().is_some(),
            ];
            inner.running.get() == 0 && in_background == [false; 4]
        };
        inner.signal.until(idle).await;
        let _lock = inner.lock_table().await;
        let clean = inner.close().await;
        if inner.mode.get() == Mode::Stopping {
            inner.mode.set(Mode::Stopped);
        }
        inner.release_all();
        clean
    }
}

impl<E: NexusEnv> Inner<E> {
    /// A start that failed lets go of every replica that does not hang, so that the next one can open it (spec A1). What
    /// hangs is held by its own operation.
    pub(super) fn abandon_start(&self) {
        self.mode.set(Mode::Stopped);
        self.release_all();
    }

    fn release_all(&self) {
        for child in self.children.iter() {
            child.release();
        }
        self.touch();
    }

    /// Flushes, clears intent, and writes CLEAN with the generation unchanged if nothing is left to resolve. What CLEAN states is the
    /// labels' alone; the witness's record does not change.
    async fn close(self: &Rc<Self>) -> bool {
        if self.mode.get() != Mode::Stopping {
            return false;
        }
        let writers = self.committed_writers.get();
        let settled = !self.lost_unflushed.get()
            && self.writers() == writers
            && self
                .active
                .get()
                .iter()
                .all(|slot| self.children[slot].state() == ChildState::InSync);
        let operation = |slot: usize| (slot, self.flush_child(slot));
        let operations = self.writers().iter().map(operation).collect();
        let flushed = self.fan_out(operations).await.done;
        if !settled || !writers.is_within(flushed) || !self.unresolved.borrow().is_empty() {
            return false;
        }
        if !self.single.get() {
            let operation = |slot| (slot, self.clear_all(slot));
            let operations = writers.iter().map(operation).collect();
            if !writers.is_within(self.fan_out(operations).await.done) {
                return false;
            }
        }
        let mut table = self.table.borrow().clone();
        table.flags.clean = true;
        self.sign(&mut table);
        let operation = |slot| (slot, self.write_label(slot, table.clone(), false));
        let operations = writers.iter().map(operation).collect();
        writers.is_within(self.fan_out(operations).await.done)
    }
}
