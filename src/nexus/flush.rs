//! Flushing: what was acknowledged before becomes durable on every member (spec W10).

use std::rc::Rc;

use super::durability::FlushTurn;
use super::env::NexusEnv;
use super::fan_out::{Failure, Operation};
use super::mutant::Mutant;
use super::nexus::Inner;
use super::slots::SlotSet;
use super::timing::Timed;
use super::write::Verdict;
use crate::io::IoError;

impl<E: NexusEnv> Inner<E> {
    /// Spec W10: OK only when every member of the committed write set has flushed.
    pub(super) async fn flush(self: Rc<Self>) -> Result<(), IoError> {
        self.check_writable()?;
        if self.parts.breaks(Mutant::FlushNoop) {
            return Ok(());
        }
        let number = self.intent.flush_begins();
        let mut done = SlotSet::EMPTY;
        loop {
            let operation = |slot| (slot, self.flush_child(slot));
            let asked = self.writers() - done;
            let operations = asked.iter().map(operation).collect();
            let outcome = self.fan_out(operations).await;
            // Even when all fail: each of them may have lost something else.
            for (slot, failure) in outcome.failures(self.writers()) {
                if let Verdict::Child(reason) = Verdict::of(failure) {
                    self.fault(slot, reason);
                }
            }
            done = done | outcome.done;
            self.check_writable()?;
            if (self.usable() & done).is_empty() {
                return Err(IoError::EIO);
            }
            let acknowledged = self.acknowledge(done, None).await;
            // A member whose rebuild began meanwhile holds no range lock up, so it was not asked yet.
            let joined = self.writers() - done - asked;
            if acknowledged.is_err() && !joined.is_empty() {
                continue;
            }
            acknowledged?;
            if self.committed_writers.get().is_within(done) {
                self.intent.proved(number);
            }
            return Ok(());
        }
    }

    /// A flush of one child. Flushes run one at a time; those that wait share the next one.
    pub(super) fn flush_child(self: &Rc<Self>, slot: usize) -> Operation {
        let inner = Rc::clone(self);
        let wanted = inner.children[slot].durability.wanted();
        Box::pin(async move {
            let child = &inner.children[slot];
            let _hold = child.hold(&inner.signal);
            let replica = child.replica().map_err(Failure::Flush)?;
            loop {
                let mut turn = FlushTurn::Wait;
                let signal = &inner.signal;
                signal
                    .until(|| {
                        turn = child.durability.turn(wanted);
                        turn != FlushTurn::Wait
                    })
                    .await;
                if let FlushTurn::Done(result) = turn {
                    return result.map_err(Failure::Flush);
                }
                let clock = &inner.parts.clock;
                let began = child.timing.begin(clock);
                let mut result = replica.flush().await;
                child.timing.end(Timed::Flush, began, clock);
                if result.is_err() && inner.parts.breaks(Mutant::FlushRetried) {
                    result = replica.flush().await;
                }
                child.durability.flushed(result, signal).await;
            }
        })
    }
}
