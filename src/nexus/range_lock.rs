//! Locks on byte ranges of the volume, first come first served (spec W3, R6).
//!
//! Requests stand in one queue in order of arrival. A request is granted when no earlier one that overlaps it stands
//! in its way, so nobody starves. Nothing is allocated once the queue has grown to the number of requests in flight.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// The locks of one volume. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct RangeLock {
    queue: Rc<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// By ticket.
    entries: RefCell<Vec<Entry>>,
    /// How many of them are not granted.
    waiting: Cell<usize>,
    next_ticket: Cell<u64>,
    /// Wait for everybody who stood in the queue before them; see [`RangeLock::barrier`].
    barriers: RefCell<Vec<Waker>>,
    /// Reused by every release.
    woken: RefCell<Vec<Waker>>,
}

#[derive(Debug)]
struct Entry {
    ticket: u64,
    range: Range<u64>,
    exclusive: bool,
    granted: bool,
    waker: Option<Waker>,
}

/// A place in the queue: while it waits, and once it holds. Given up when dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    queue: Rc<Queue>,
    ticket: u64,
}

impl RangeLock {
    /// Waits until nobody else uses any byte of `range`.
    pub(super) fn exclusive(&self, range: Range<u64>) -> impl Future<Output = Ticket> + use<> {
        self.enqueue(range, true)
    }

    /// Waits until nobody uses any byte of `range` exclusively.
    pub(super) fn shared(&self, range: Range<u64>) -> impl Future<Output = Ticket> + use<> {
        self.enqueue(range, false)
    }

    /// Waits until everybody who stands in the queue now, waiting or holding, has left it; nobody waits for this (spec
    /// B2).
    pub(super) fn barrier(&self) -> impl Future<Output = ()> + use<> {
        let queue = Rc::clone(&self.queue);
        let first_later = queue.next_ticket.get();
        poll_fn(move |context| {
            let is_earlier = |entry: &Entry| entry.ticket < first_later;
            if !queue.entries.borrow().iter().any(is_earlier) {
                return Poll::Ready(());
            }
            queue.barriers.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
    }

    /// Takes a place in the queue at once; the future waits until it is granted.
    fn enqueue(&self, range: Range<u64>, exclusive: bool) -> Waiting {
        let ticket = self.queue.next_ticket.get();
        self.queue.next_ticket.set(ticket + 1);
        let mut entries = self.queue.entries.borrow_mut();
        let granted = !entries
            .iter()
            .any(|earlier| earlier.blocks(&range, exclusive));
        entries.push(Entry {
            ticket,
            range,
            exclusive,
            granted,
            waker: None,
        });
        if !granted {
            self.queue.waiting.set(self.queue.waiting.get() + 1);
        }
        let ticket = Ticket {
            queue: Rc::clone(&self.queue),
            ticket,
        };
        Waiting {
            ticket: Some(ticket),
            granted,
        }
    }
}

impl Entry {
    fn blocks(&self, range: &Range<u64>, exclusive: bool) -> bool {
        (self.exclusive || exclusive)
            && self.range.start < range.end
            && range.start < self.range.end
    }
}

impl Queue {
    /// Where a ticket's entry is.
    fn position(entries: &[Entry], ticket: u64) -> usize {
        entries
            .binary_search_by_key(&ticket, |entry| entry.ticket)
            .expect("a ticket has its entry until it is dropped")
    }
}

/// Waits for a ticket to be granted.
struct Waiting {
    ticket: Option<Ticket>,
    /// Whether it was granted at once.
    granted: bool,
}

impl Future for Waiting {
    type Output = Ticket;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Ticket> {
        let granted = self.granted
            || self
                .ticket
                .as_ref()
                .expect("a future is not polled after it has answered")
                .poll_granted(context);
        match (granted, self.ticket.take()) {
            (true, Some(ticket)) => Poll::Ready(ticket),
            (_, ticket) => {
                self.ticket = ticket;
                Poll::Pending
            }
        }
    }
}

impl Ticket {
    fn poll_granted(&self, context: &Context<'_>) -> bool {
        let mut entries = self.queue.entries.borrow_mut();
        let index = Queue::position(&entries, self.ticket);
        let entry = &mut entries[index];
        if !entry.granted {
            entry.waker = Some(context.waker().clone());
        }
        entry.granted
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut woken = self.queue.woken.take();
        {
            let mut entries = self.queue.entries.borrow_mut();
            let index = Queue::position(&entries, self.ticket);
            let gone = entries.remove(index);
            let waiting = &self.queue.waiting;
            waiting.set(waiting.get() - usize::from(!gone.granted));
            // As a rule nobody waits for anybody.
            let first = if waiting.get() > 0 {
                index
            } else {
                entries.len()
            };
            for later in first..entries.len() {
                let (before, rest) = entries.split_at_mut(later);
                let entry = &mut rest[0];
                let concerned = !entry.granted && gone.blocks(&entry.range, entry.exclusive);
                if concerned
                    && !before
                        .iter()
                        .any(|earlier| earlier.blocks(&entry.range, entry.exclusive))
                {
                    entry.granted = true;
                    waiting.set(waiting.get() - 1);
                    woken.extend(entry.waker.take());
                }
            }
        }
        woken.append(&mut self.queue.barriers.borrow_mut());
        woken.drain(..).for_each(Waker::wake);
        self.queue.woken.replace(woken);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    type Pending = Pin<Box<dyn Future<Output = Ticket>>>;

    fn try_now<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    fn poll(future: &mut Pending) -> Option<Ticket> {
        try_now(future.as_mut())
    }

    #[test]
    fn disjoint_ranges_do_not_wait_and_shared_ones_share() {
        let locks = RangeLock::default();
        let a = try_now(locks.exclusive(0..10)).unwrap();
        let b = try_now(locks.exclusive(10..20)).unwrap();
        let c = try_now(locks.shared(20..30)).unwrap();
        let d = try_now(locks.shared(25..35)).unwrap();
        assert!(try_now(locks.shared(9..11)).is_none());
        assert!(try_now(locks.exclusive(29..30)).is_none());
        drop((a, b, c, d));
        assert!(try_now(locks.exclusive(0..100)).is_some());
    }

    #[test]
    fn a_waiting_writer_is_not_overtaken_by_later_readers() {
        let locks = RangeLock::default();
        let reader = try_now(locks.shared(0..10)).unwrap();
        let mut writer: Pending = Box::pin(locks.exclusive(0..10));
        assert!(poll(&mut writer).is_none());
        let mut late: Pending = Box::pin(locks.shared(0..10));
        assert!(poll(&mut late).is_none(), "FIFO");
        drop(reader);
        let writer = poll(&mut writer).expect("the writer is next");
        assert!(poll(&mut late).is_none());
        drop(writer);
        assert!(poll(&mut late).is_some());
    }

    #[test]
    fn a_barrier_waits_for_those_before_it_and_stops_nobody() {
        let locks = RangeLock::default();
        let a = try_now(locks.exclusive(0..10)).unwrap();
        let mut waiting: Pending = Box::pin(locks.exclusive(0..5));
        assert!(poll(&mut waiting).is_none());
        let mut barrier = Box::pin(locks.barrier());
        let later = try_now(locks.exclusive(20..30)).expect("B2: nobody waits for a barrier");
        drop(a);
        assert!(try_now(barrier.as_mut()).is_none());
        let waited = poll(&mut waiting).unwrap();
        assert!(try_now(barrier.as_mut()).is_none());
        drop(waited);
        assert!(try_now(barrier.as_mut()).is_some());
        assert!(try_now(locks.barrier()).is_none());
        drop(later);
    }

    #[test]
    fn giving_up_while_waiting_lets_the_next_one_through() {
        let locks = RangeLock::default();
        let reader = try_now(locks.shared(0..10)).unwrap();
        let writer = Box::pin(locks.exclusive(0..20));
        let mut late: Pending = Box::pin(locks.exclusive(15..20));
        assert!(poll(&mut late).is_none());
        drop(writer);
        assert!(poll(&mut late).is_some());
        drop(reader);
        assert!(locks.queue.entries.borrow().is_empty());
    }

    proptest::proptest! {
        /// Against a naive model: nothing that conflicts is ever held at once, and in the end nobody waits.
        #[test]
        fn conflicting_tickets_are_never_held_together(
            steps in proptest::collection::vec((0u64..20, 1u64..8, proptest::bool::ANY, 0usize..6), 1..60)
        ) {
            let locks = RangeLock::default();
            let mut waiting: Vec<(Range<u64>, bool, Pending)> = Vec::new();
            let mut held: Vec<(Range<u64>, bool, Ticket)> = Vec::new();
            for (start, len, exclusive, release) in steps {
                let range = start..start + len;
                let future: Pending = if exclusive {
                    Box::pin(locks.exclusive(range.clone()))
                } else {
                    Box::pin(locks.shared(range.clone()))
                };
                waiting.push((range, exclusive, future));
                if release < held.len() {
                    held.remove(release);
                }
                let mut still = Vec::new();
                for (range, exclusive, mut future) in waiting {
                    match poll(&mut future) {
                        Some(ticket) => held.push((range, exclusive, ticket)),
                        None => still.push((range, exclusive, future)),
                    }
                }
                waiting = still;
                for (i, (a, a_exclusive, _)) in held.iter().enumerate() {
                    for (b, b_exclusive, _) in &held[..i] {
                        let overlap = a.start < b.end && b.start < a.end;
                        assert!(!(overlap && (*a_exclusive || *b_exclusive)), "{a:?} {b:?}");
                    }
                }
            }
            while !waiting.is_empty() {
                let before = waiting.len();
                held.clear();
                waiting.retain_mut(|(_, _, future)| poll(future).is_none());
                assert!(waiting.len() < before, "somebody must get through");
            }
        }
    }
}
