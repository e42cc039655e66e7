//! What a reactor that looks around looks at besides its ring: places where others leave work and would ring, if they were
//! asked to.

use std::cell::RefCell;
use std::fmt;
use std::rc::{Rc, Weak};

/// A place where others leave work for a task of this reactor. Shut, it is looked at; open, whoever leaves something
/// rings.
pub trait Door {
    /// Whether something is there that nobody has rung for.
    fn has_work(&self) -> bool;

    /// Takes what is there. The door may be shut again.
    fn take_work(self: Rc<Self>);

    /// Opens it: from now on they ring. Whether something has come meanwhile, for which nobody may have rung.
    fn open(&self) -> bool;
}

/// The doors that are shut at the moment.
#[derive(Default)]
pub(crate) struct Doors {
    shut: RefCell<Vec<Weak<dyn Door>>>,
}

impl Doors {
    /// A door was shut: it is looked at until it is opened, before the reactor sleeps.
    pub(crate) fn shut(&self, door: Weak<dyn Door>) {
        self.shut.borrow_mut().push(door);
    }

    /// Whether there is anything behind a shut door.
    pub(crate) fn have_work(&self) -> bool {
        let has_work = |door: &Weak<dyn Door>| door.upgrade().is_some_and(|door| door.has_work());
        self.shut.borrow().iter().any(has_work)
    }

    /// Takes what is behind shut doors.
    pub(crate) fn look(&self) {
        let with_work = |door: &Weak<dyn Door>| door.upgrade().filter(|door| door.has_work());
        // Out of the borrow first: taking shuts doors.
        let found: Vec<_> = self.shut.borrow().iter().filter_map(with_work).collect();
        found.into_iter().for_each(Door::take_work);
    }

    /// Opens all doors. Whether something has come meanwhile; it was taken then, and the doors in question are shut.
    pub(crate) fn open(&self) -> bool {
        let mut doors = self.shut.take();
        let mut any = false;
        for door in doors.drain(..).filter_map(|door| door.upgrade()) {
            if door.open() {
                any = true;
                door.take_work();
            }
        }
        // Its memory serves the next time.
        let mut shut = self.shut.borrow_mut();
        doors.append(&mut shut);
        *shut = doors;
        any
    }
}

impl fmt::Debug for Doors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doors").finish_non_exhaustive()
    }
}
