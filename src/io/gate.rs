//! A gate that lets one writer at a time through, and stays shut for good when a writer is dropped inside.
//!
//! For areas of a disk that may have at most one write in flight (spec L7). A future that is dropped while its write
//! is with the kernel leaves a write whose end nobody will see; a second write might overtake it. So the area is given
//! up: its member has to be faulted, and opened anew once the kernel let go of the file (spec A1).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

use super::device::IoError;

/// Lets one holder at a time through, in no particular order.
#[derive(Debug, Default)]
pub struct Gate {
    busy: Cell<bool>,
    abandoned: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

/// The right to write. [`Entered::leave`] gives it back; dropping it instead shuts the gate for good.
#[derive(Debug)]
#[must_use = "dropping this shuts the gate"]
pub struct Entered<'a> {
    gate: &'a Gate,
    left: bool,
}

impl Gate {
    /// Enters if nobody is inside.
    ///
    /// # Errors
    /// [`IoError::Stopped`] when an earlier holder was dropped inside.
    pub fn try_enter(&self) -> Result<Option<Entered<'_>>, IoError> {
        if self.abandoned.get() {
            return Err(IoError::Stopped);
        }
        if self.busy.replace(true) {
            return Ok(None);
        }
        Ok(Some(Entered {
            gate: self,
            left: false,
        }))
    }

    /// Waits until nobody is inside, then enters.
    ///
    /// # Errors
    /// [`IoError::Stopped`] when an earlier holder was dropped inside.
    pub async fn enter(&self) -> Result<Entered<'_>, IoError> {
        loop {
            if let Some(entered) = self.try_enter()? {
                return Ok(entered);
            }
            self.left().await;
        }
    }

    /// Waits until the present holder, if any, has left or was dropped.
    pub async fn left(&self) {
        poll_fn(|context| {
            if self.busy.get() && !self.abandoned.get() {
                self.waiting.borrow_mut().push(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
    }

    fn wake_all(&self) {
        for waker in self.waiting.take() {
            waker.wake();
        }
    }
}

impl Entered<'_> {
    /// Says that the write has been answered, whatever the answer was.
    pub fn leave(mut self) {
        self.left = true;
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if self.left {
            self.gate.busy.set(false);
        } else {
            self.gate.abandoned.set(true);
        }
        self.gate.wake_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time() {
        let gate = Gate::default();
        let first = gate.try_enter().unwrap().unwrap();
        assert!(gate.try_enter().unwrap().is_none());
        first.leave();
        gate.try_enter().unwrap().unwrap().leave();
    }

    #[test]
    fn a_holder_dropped_inside_shuts_the_gate() {
        let gate = Gate::default();
        drop(gate.try_enter().unwrap().unwrap());
        assert_eq!(gate.try_enter().unwrap_err(), IoError::Stopped);
    }
}
