//! One operation on several children at once.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use super::env::NexusEnv;
use super::nexus::Inner;
use super::slots::{SLOTS_MAX, SlotSet};
use crate::io::{IoError, Spawn};

/// Which part of an operation on a child failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The label or bitmap area could not be written.
    Label(IoError),
    /// Data could not be written or zeroed.
    Data(IoError),
    /// Data could not be read.
    Read(IoError),
    /// The device could not be flushed.
    Flush(IoError),
}

impl Failure {
    /// What the child answered.
    pub(super) const fn error(self) -> IoError {
        match self {
            Self::Label(error) | Self::Data(error) | Self::Read(error) | Self::Flush(error) => {
                error
            }
        }
    }
}

/// An operation on one child. Boxed because it may have to outlive the request: one allocation per member and write,
/// next to a copy of the payload.
pub(super) type Operation = Pin<Box<dyn Future<Output = Result<(), Failure>>>>;

/// How the operations ended.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The children that completed it.
    pub(super) done: SlotSet,
    /// The children that failed.
    pub(super) failed: [Option<Failure>; SLOTS_MAX],
}

impl Outcome {
    /// The failures of these children.
    pub(super) fn failures(&self, of: SlotSet) -> impl Iterator<Item = (usize, Failure)> + '_ {
        of.iter()
            .filter_map(|slot| self.failed[slot].map(|failure| (slot, failure)))
    }
}

impl<E: NexusEnv> Inner<E> {
    /// Runs the operations until each child that still gets writes has answered. What is under way on a child that was
    /// faulted meanwhile can't be recalled and goes on in the background (spec F1).
    pub(super) async fn fan_out(
        self: &Rc<Self>,
        mut operations: Vec<(usize, Operation)>,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        let mut listener = self.signal.listen();
        poll_fn(|context| {
            operations.retain_mut(|(slot, operation)| match operation.as_mut().poll(context) {
                Poll::Ready(Ok(())) => {
                    outcome.done.insert(*slot);
                    false
                }
                Poll::Ready(Err(failure)) => {
                    outcome.failed[*slot] = Some(failure);
                    false
                }
                Poll::Pending => true,
            });
            let involved = self.writers();
            if operations.iter().any(|(slot, _)| involved.contains(*slot)) {
                listener.register(context);
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        for (_, operation) in operations {
            self.parts.spawn.spawn(async move {
                // Its child is out of the write set: the answer changes nothing.
                let _ = operation.await;
            });
        }
        outcome
    }
}

/// Waits for the first of two futures; true when it was the second.
pub(super) async fn either(
    first: impl Future<Output = ()>,
    second: impl Future<Output = ()>,
) -> bool {
    let mut first = pin!(first);
    let mut second = pin!(second);
    poll_fn(|context| {
        if second.as_mut().poll(context).is_ready() {
            return Poll::Ready(true);
        }
        first.as_mut().poll(context).map(|()| false)
    })
    .await
}
