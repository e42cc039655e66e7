//! "Something changed": wakes every task that waits for a condition on the nexus' state.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

/// Wakes all listeners at once; each looks for itself whether its condition holds.
#[derive(Debug, Default)]
pub(super) struct Signal {
    listeners: RefCell<Listeners>,
    news: Cell<u64>,
}

#[derive(Debug, Default)]
struct Listeners {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

/// A task's place among the listeners, given back when dropped.
#[derive(Debug)]
pub(super) struct Listener<'a> {
    signal: &'a Signal,
    place: Option<usize>,
}

impl Signal {
    /// Counts what [`super::Nexus::status`] would show differently, from 1.
    pub(super) fn news(&self) -> u64 {
        self.news.get() + 1
    }

    /// Wakes everybody, those too who wait for the status to change.
    pub(super) fn tell(&self) {
        self.news.set(self.news.get() + 1);
        self.notify();
    }

    /// Wakes everybody.
    pub(super) fn notify(&self) {
        let wakers: Vec<Waker> = {
            let mut listeners = self.listeners.borrow_mut();
            let taken = listeners.wakers.iter_mut().filter_map(Option::take);
            taken.collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// A place among the listeners, for use inside a `poll` function.
    pub(super) const fn listen(&self) -> Listener<'_> {
        Listener {
            signal: self,
            place: None,
        }
    }

    /// Returns once `condition` holds; it is checked now and after every notification.
    pub(super) async fn until(&self, mut condition: impl FnMut() -> bool) {
        let mut listener = self.listen();
        poll_fn(|context| {
            if condition() {
                return Poll::Ready(());
            }
            listener.register(context);
            Poll::Pending
        })
        .await;
    }
}

impl Listener<'_> {
    /// Sees to it that the next notification wakes the task.
    pub(super) fn register(&mut self, context: &Context<'_>) {
        let mut listeners = self.signal.listeners.borrow_mut();
        let place = self.place.unwrap_or_else(|| {
            listeners.free.pop().unwrap_or_else(|| {
                listeners.wakers.push(None);
                listeners.wakers.len() - 1
            })
        });
        self.place = Some(place);
        match &mut listeners.wakers[place] {
            Some(waker) => waker.clone_from(context.waker()),
            empty => *empty = Some(context.waker().clone()),
        }
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            let mut listeners = self.signal.listeners.borrow_mut();
            listeners.wakers[place] = None;
            listeners.free.push(place);
        }
    }
}
