//! Memory that is registered with a reactor's ring: the kernel has taken its pages once, and not anew for each request.

use std::alloc::Layout;
use std::cell::{Cell, RefCell};
use std::io;
use std::ptr::NonNull;

use rustix::mm::{Advice, madvise};

use super::{CLASS_MIN, CLASSES, Segment};

/// What is registered at a time, bytes: a huge page where there are any.
const CHUNK: usize = 2 << 20;
/// The most chunks of a pool. They stay until it ends.
const CHUNKS_MAX: usize = 8;

type Register = Box<dyn Fn(Segment) -> io::Result<u16>>;
/// A buffer, and the number of its chunk.
type Payload = (NonNull<u8>, u16);

/// Chunks of registered memory, each cut into buffers of one class.
#[derive(Default)]
pub(super) struct Payloads {
    register: Option<Register>,
    /// The machine allows no more.
    refused: Cell<bool>,
    free: RefCell<[Vec<Payload>; CLASSES]>,
    chunks: RefCell<Vec<NonNull<u8>>>,
}

impl Payloads {
    pub(super) fn new(register: Register) -> Self {
        Self {
            register: Some(register),
            refused: Cell::default(),
            free: RefCell::default(),
            chunks: RefCell::default(),
        }
    }

    /// A buffer of a class, and the number that it is registered under.
    pub(super) fn take(&self, class: usize) -> Option<Payload> {
        let free = self.free.borrow_mut()[class].pop();
        free.or_else(|| {
            self.add_chunk(class);
            self.free.borrow_mut()[class].pop()
        })
    }

    pub(super) fn put(&self, class: usize, base: NonNull<u8>, number: u16) {
        self.free.borrow_mut()[class].push((base, number));
    }

    fn add_chunk(&self, class: usize) {
        let Some(register) = &self.register else {
            return;
        };
        if self.refused.get() || self.chunks.borrow().len() == CHUNKS_MAX {
            return;
        }
        let layout = Self::layout();
        // SAFETY: the layout's size is not zero.
        let Some(chunk) = NonNull::new(unsafe { std::alloc::alloc(layout) }) else {
            return;
        };
        // SAFETY: the range was just allocated. The advice changes no content, and the kernel may ignore it.
        let _without_it_there_are_more_pages =
            unsafe { madvise(chunk.as_ptr().cast(), CHUNK, Advice::LinuxHugepage) };
        // SAFETY: the same range, written as a whole before anything is read from it.
        unsafe { std::ptr::write_bytes(chunk.as_ptr(), 0, CHUNK) };
        let registered = register(Segment {
            base: chunk.as_ptr(),
            len: CHUNK,
        });
        let Ok(number) = registered else {
            self.refused.set(true);
            // SAFETY: allocated above with this layout, and nobody has seen it.
            unsafe { std::alloc::dealloc(chunk.as_ptr(), layout) };
            return;
        };
        self.chunks.borrow_mut().push(chunk);
        let free = &mut self.free.borrow_mut()[class];
        for at in (0..CHUNK).step_by(CLASS_MIN << class) {
            // SAFETY: `at` lies inside the chunk.
            free.push((unsafe { chunk.add(at) }, number));
        }
    }

    fn layout() -> Layout {
        Layout::from_size_align(CHUNK, CHUNK).expect("a power of two far below the address space")
    }
}

impl Drop for Payloads {
    fn drop(&mut self) {
        // No buffer is left, since each keeps the pool: nothing is under way, and nobody uses the numbers again.
        for chunk in self.chunks.get_mut().drain(..) {
            // SAFETY: `add_chunk` allocated it with this layout.
            unsafe { std::alloc::dealloc(chunk.as_ptr(), Self::layout()) };
        }
    }
}
