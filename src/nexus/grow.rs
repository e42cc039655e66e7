//! Growing a volume while it is used (spec section 10, "Resize").

use std::rc::Rc;

use super::env::NexusEnv;
use super::fan_out::{Failure, Operation};
use super::nexus::{Inner, Mode, Nexus};
use super::state::ChildState;
use super::table::Uncommitted;
use crate::io::IoError;
use crate::replica::Label;
use crate::replica::layout::region_shift;

impl<E: NexusEnv> Nexus<E> {
    /// Makes the volume `size` bytes large, durably: room on every member that gets writes, then a table that names the
    /// size. What is new reads as zeroes. The clients are the caller's to tell. A member that is out of sync grows when
    /// it comes back.
    ///
    /// # Errors
    /// `EINVAL` for a smaller size, one that is not a multiple of 4 KiB, or one that no label can hold; `EBUSY` while a
    /// member is being rebuilt and the bitmaps need larger regions, and at the very beginning of a rebuild; what the disks
    /// say, `ENOSPC` first. Then the volume has its old size, and it may be tried again.
    pub(super) async fn grow_to(&self, size: u64) -> Result<(), IoError> {
        let inner = Rc::clone(&self.inner);
        let _reshaping = inner.reshape().await;
        let before = inner.size.get();
        if size < before || !size.is_multiple_of(4096) {
            return Err(IoError::EINVAL);
        }
        if size == before {
            return Ok(());
        }
        let shift = region_shift(size);
        // Whoever counts in regions holds a range lock. Taken before the table's: a request may hold one and wait for
        // the other.
        let all = if shift == inner.table.borrow().region_shift {
            None
        } else {
            Some(inner.locks.exclusive(0..before).await)
        };
        let lock = inner.lock_table().await;
        if inner.mode.get() != Mode::Serving {
            return Err(IoError::Stopped);
        }
        let joining = inner.writers() - inner.committed_writers.get();
        if all.is_some() && inner.is_rebuilding() || !joining.is_empty() {
            return Err(IoError::Os(libc::EBUSY));
        }
        inner.make_room(size).await?;
        let change = |table: &mut Label| {
            table.data_len = size;
            table.region_shift = shift;
        };
        let changed = inner.change_table(&lock, &change).await;
        changed.map_err(|why| match why {
            Uncommitted::Interrupted => IoError::Stopped,
            Uncommitted::Refused => IoError::EINVAL,
        })?;
        inner.unresolved.borrow_mut().grow(size);
        inner.size.set(size);
        inner.touch();
        drop(all);
        Ok(())
    }
}

impl<E: NexusEnv> Inner<E> {
    fn is_rebuilding(&self) -> bool {
        let rebuilding = |slot: usize| self.children[slot].state() == ChildState::Rebuilding;
        self.members().iter().any(rebuilding)
    }

    async fn make_room(self: &Rc<Self>, size: u64) -> Result<(), IoError> {
        let operation = |slot: usize| {
            let inner = Rc::clone(self);
            let operation: Operation = Box::pin(async move {
                let child = &inner.children[slot];
                let _hold = child.hold(&inner.signal);
                let replica = child.replica().map_err(Failure::Data)?;
                // It flushes: if that fails, no later flush speaks for what was written before (spec W10).
                let durable = child.durability.write(&inner.signal);
                let grown = replica.grow(size).await;
                durable.ended(grown);
                grown.map_err(Failure::Data)
            });
            (slot, operation)
        };
        let writers = self.writers();
        let outcome = self.fan_out(writers.iter().map(operation).collect()).await;
        let errors = outcome
            .failures(writers)
            .filter_map(|(_, failure)| match failure {
                Failure::Data(error) => Some(error),
                Failure::Label(_) | Failure::Read(_) | Failure::Flush(_) => None,
            });
        // A full pool is what people can do something about.
        match errors.min_by_key(|error| !error.is_no_space()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}
