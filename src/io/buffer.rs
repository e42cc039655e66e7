//! Memory for I/O: reference-counted, so that an operation owns its buffer until the kernel is done with it.
//!
//! An [`IoBuffer`] is either private (from a [`BufferPool`], page-aligned, recycled) or foreign (guest memory, kept
//! mapped by whatever owner it carries). All access goes through copying methods: nobody ever holds a Rust reference
//! into memory that the kernel or a guest may change.

#![allow(
    unsafe_code,
    reason = "raw memory that the kernel and guests write to; listed in tidy"
)]

mod payload;

use std::alloc::Layout;
use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;

use payload::Payloads;

/// Alignment of every private buffer, bytes: a page, which satisfies any O_DIRECT requirement in use.
pub const PRIVATE_ALIGNMENT: usize = 4096;
/// The smallest private allocation, bytes.
const CLASS_MIN: usize = 4096;
/// The largest size that is recycled, bytes; larger buffers go back to the allocator.
const CLASS_MAX: usize = 1 << 20;
/// Number of power-of-two classes from [`CLASS_MIN`] to [`CLASS_MAX`].
const CLASSES: usize = (CLASS_MAX / CLASS_MIN).ilog2() as usize + 1;
/// How many bytes of free buffers a pool keeps per class.
const CLASS_BYTES_KEPT: usize = 2 << 20;

/// A run of memory, one piece of an [`IoBuffer`].
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// First byte.
    pub base: *mut u8,
    /// Length in bytes.
    pub len: usize,
}

/// A view of memory that I/O reads from or writes to. Cloning and slicing share the memory.
#[derive(Clone)]
pub struct IoBuffer {
    memory: Rc<Memory>,
    start: usize,
    len: usize,
}

struct Memory {
    segments: Segments,
    owner: Owner,
    /// The number that the memory is registered under with the ring of its reactor.
    number: Option<u16>,
}

enum Segments {
    One(Segment),
    Many(Vec<Segment>),
}

enum Owner {
    Pool { pool: Rc<FreeLists>, layout: Layout },
    Foreign { _keep: Rc<dyn Any> },
}

#[derive(Default)]
struct FreeLists {
    classes: RefCell<[Vec<NonNull<u8>>; CLASSES]>,
    payloads: Payloads,
}

/// Recycles page-aligned private buffers of one thread.
#[derive(Clone, Default)]
pub struct BufferPool {
    lists: Rc<FreeLists>,
}

impl BufferPool {
    /// A pool whose [`BufferPool::payload`] is memory that `register` has registered, under the number that it answers,
    /// for as long as there are buffers of the pool.
    pub(crate) fn registered(register: impl Fn(Segment) -> io::Result<u16> + 'static) -> Self {
        let payloads = Payloads::new(Box::new(register));
        Self {
            lists: Rc::new(FreeLists {
                classes: RefCell::default(),
                payloads,
            }),
        }
    }

    /// A private buffer of `len` bytes with unspecified (but initialised) contents, aligned to [`PRIVATE_ALIGNMENT`].
    ///
    /// # Panics
    /// When the machine is out of memory.
    #[must_use]
    pub fn get(&self, len: usize) -> IoBuffer {
        let layout = FreeLists::layout(len);
        self.wrap(self.lists.take(layout), layout, len, None)
    }

    fn wrap(&self, base: NonNull<u8>, layout: Layout, len: usize, number: Option<u16>) -> IoBuffer {
        let segments = Segments::One(Segment {
            base: base.as_ptr(),
            len,
        });
        let owner = Owner::Pool {
            pool: Rc::clone(&self.lists),
            layout,
        };
        IoBuffer {
            memory: Rc::new(Memory {
                segments,
                owner,
                number,
            }),
            start: 0,
            len,
        }
    }

    /// A private buffer for data on its way, as [`BufferPool::get`]; if there is one, of memory that is registered with the
    /// ring of the thread's reactor.
    ///
    /// # Panics
    /// When the machine is out of memory.
    #[must_use]
    pub fn payload(&self, len: usize) -> IoBuffer {
        let layout = FreeLists::layout(len);
        let class = FreeLists::class(layout);
        match class.and_then(|class| self.lists.payloads.take(class)) {
            Some((base, number)) => self.wrap(base, layout, len, Some(number)),
            None => self.get(len),
        }
    }

    /// A private buffer of `len` zero bytes.
    #[must_use]
    pub fn zeroed(&self, len: usize) -> IoBuffer {
        let buffer = self.get(len);
        buffer.fill(0);
        buffer
    }

    /// A private buffer that holds a copy of `bytes`.
    #[must_use]
    pub fn copy_of(&self, bytes: &[u8]) -> IoBuffer {
        let buffer = self.get(bytes.len());
        buffer.write_at(0, bytes);
        buffer
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool").finish_non_exhaustive()
    }
}

impl FreeLists {
    fn layout(len: usize) -> Layout {
        let size = len.max(CLASS_MIN).next_power_of_two();
        Layout::from_size_align(size, PRIVATE_ALIGNMENT)
            .expect("a request length rounded up to a power of two fits the address space")
    }

    fn class(layout: Layout) -> Option<usize> {
        (layout.size() <= CLASS_MAX).then(|| (layout.size() / CLASS_MIN).ilog2() as usize)
    }

    fn take(&self, layout: Layout) -> NonNull<u8> {
        let recycled = Self::class(layout).and_then(|class| self.classes.borrow_mut()[class].pop());
        recycled.unwrap_or_else(|| {
            // SAFETY: the layout's size is at least CLASS_MIN, so not zero.
            let base = unsafe { std::alloc::alloc_zeroed(layout) };
            NonNull::new(base).unwrap_or_else(|| std::alloc::handle_alloc_error(layout))
        })
    }

    fn put(&self, base: NonNull<u8>, layout: Layout) {
        if let Some(class) = Self::class(layout) {
            let list = &mut self.classes.borrow_mut()[class];
            if (list.len() + 1) * layout.size() <= CLASS_BYTES_KEPT {
                list.push(base);
                return;
            }
        }
        // SAFETY: `base` came from `alloc_zeroed` with this very layout, and its only owner gives it up here.
        unsafe { std::alloc::dealloc(base.as_ptr(), layout) };
    }
}

impl Drop for FreeLists {
    fn drop(&mut self) {
        for (class, list) in self.classes.get_mut().iter_mut().enumerate() {
            let layout = Self::layout(CLASS_MIN << class);
            for base in list.drain(..) {
                // SAFETY: `put` stored this pointer in the class of the layout it was allocated with.
                unsafe { std::alloc::dealloc(base.as_ptr(), layout) };
            }
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let (Owner::Pool { pool, layout }, Segments::One(segment)) =
            (&self.owner, &self.segments)
            && let Some(base) = NonNull::new(segment.base)
        {
            match (self.number, FreeLists::class(*layout)) {
                (Some(number), Some(class)) => pool.payloads.put(class, base, number),
                _ => pool.put(base, *layout),
            }
        }
    }
}

impl IoBuffer {
    /// Wraps memory that someone else owns, guest memory above all.
    ///
    /// # Safety
    /// Every segment must be valid for reads and writes of its length for as long as `keep` (or a clone of it) lives,
    /// and no Rust reference to that memory may exist meanwhile. Others (a guest, the kernel) may change it any time.
    #[must_use]
    pub unsafe fn from_foreign(segments: Vec<Segment>, keep: Rc<dyn Any>) -> Self {
        let len = segments.iter().map(|segment| segment.len).sum();
        let segments = match segments.as_slice() {
            [one] => Segments::One(*one),
            _ => Segments::Many(segments),
        };
        Self::foreign(segments, len, keep, None)
    }

    /// The same for memory in one piece. `number` is what it is registered under with the ring of this thread's reactor, if
    /// it is; `keep` keeps it registered too.
    ///
    /// # Safety
    /// As for [`IoBuffer::from_foreign`].
    #[must_use]
    pub unsafe fn from_segment(segment: Segment, keep: Rc<dyn Any>, number: Option<u16>) -> Self {
        Self::foreign(Segments::One(segment), segment.len, keep, number)
    }

    fn foreign(segments: Segments, len: usize, keep: Rc<dyn Any>, number: Option<u16>) -> Self {
        let memory = Memory {
            segments,
            owner: Owner::Foreign { _keep: keep },
            number,
        };
        Self {
            memory: Rc::new(memory),
            start: 0,
            len,
        }
    }

    /// The number that the memory is registered under, if it is. Only memory in one piece has one.
    #[must_use]
    pub fn number(&self) -> Option<u16> {
        self.memory.number
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is not a single byte.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the memory is private: nobody but volund and the kernel on its behalf can change it (spec W2).
    #[must_use]
    pub fn is_private(&self) -> bool {
        matches!(self.memory.owner, Owner::Pool { .. })
    }

    /// A view of `len` bytes from `start` of this view, sharing the memory.
    ///
    /// # Panics
    /// When the range does not lie inside this view.
    #[must_use]
    pub fn slice(&self, start: usize, len: usize) -> Self {
        let end = start.checked_add(len).expect("a slice's end fits a usize");
        assert!(
            end <= self.len,
            "slice {start}+{len} of a buffer of {} bytes",
            self.len
        );
        Self {
            memory: Rc::clone(&self.memory),
            start: self.start + start,
            len,
        }
    }

    /// The segments that make up this view, in order. The pointers are valid while this view, or a clone, lives.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + '_ {
        let all = match &self.memory.segments {
            Segments::One(one) => std::slice::from_ref(one),
            Segments::Many(many) => many.as_slice(),
        };
        let mut skip = self.start;
        let mut left = self.len;
        all.iter().filter_map(move |segment| {
            if skip >= segment.len || left == 0 {
                skip = skip.saturating_sub(segment.len);
                return None;
            }
            let len = (segment.len - skip).min(left);
            // SAFETY: `skip` is less than the segment's length, so the result stays inside the same allocation.
            let base = unsafe { segment.base.add(skip) };
            skip = 0;
            left -= len;
            Some(Segment { base, len })
        })
    }

    /// Whether every segment's address is a multiple of `memory`, and its length of `length`. Both powers of two.
    #[must_use]
    pub fn is_aligned(&self, memory: usize, length: usize) -> bool {
        self.segments()
            .all(|s| s.base.addr() & (memory - 1) == 0 && s.len & (length - 1) == 0)
    }

    /// Copies `bytes` into the buffer from byte `at`.
    ///
    /// # Panics
    /// When `bytes` does not fit behind `at`.
    pub fn write_at(&self, at: usize, bytes: &[u8]) {
        let mut rest = bytes;
        for segment in self.slice(at, bytes.len()).segments() {
            let (now, later) = rest.split_at(segment.len);
            // SAFETY: the segment is valid for writes of its length (`from_foreign`, or our own allocation), and a
            // Rust slice can't overlap it because no reference to such memory exists.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), segment.base, now.len()) };
            rest = later;
        }
    }

    /// Copies from byte `at` of the buffer into `bytes`.
    ///
    /// # Panics
    /// When fewer than `bytes.len()` bytes follow `at`.
    pub fn read_at(&self, at: usize, bytes: &mut [u8]) {
        let mut done = 0;
        for segment in self.slice(at, bytes.len()).segments() {
            let target = &mut bytes[done..done + segment.len];
            // SAFETY: the segment is valid for reads of its length, and `target` is exactly as long and disjoint.
            unsafe {
                std::ptr::copy_nonoverlapping(segment.base, target.as_mut_ptr(), target.len());
            };
            done += segment.len;
        }
    }

    /// The contents as a fresh vector.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.read_at(0, &mut bytes);
        bytes
    }

    /// Sets every byte to `value`.
    pub fn fill(&self, value: u8) {
        for segment in self.segments() {
            // SAFETY: the segment is valid for writes of its length.
            unsafe { std::ptr::write_bytes(segment.base, value, segment.len) };
        }
    }

    /// Copies all of `source` into this buffer. This is the one copy that a mirrored write or read makes (spec W2, R7).
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn copy_from(&self, source: &Self) {
        assert_eq!(
            self.len, source.len,
            "a buffer is copied into one of the same length"
        );
        let mut targets = self.segments();
        let mut target = Segment {
            base: std::ptr::null_mut(),
            len: 0,
        };
        for piece in source.segments() {
            let mut from = piece;
            while from.len > 0 {
                if target.len == 0 {
                    target = targets.next().expect("both buffers have the same length");
                }
                let len = from.len.min(target.len);
                // SAFETY: both pieces are valid for `len` bytes; `copy` allows them to overlap, since a guest may
                // describe overlapping memory.
                unsafe { std::ptr::copy(from.base, target.base, len) };
                from = from.advanced(len);
                target = target.advanced(len);
            }
        }
    }

    /// Whether every byte is zero.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        let mut chunk = [0u8; 4096];
        (0..self.len).step_by(chunk.len()).all(|at| {
            let part = &mut chunk[..(self.len - at).min(4096)];
            self.read_at(at, part);
            part.iter().all(|byte| *byte == 0)
        })
    }
}

impl Segment {
    const fn advanced(self, by: usize) -> Self {
        Self {
            base: self.base.wrapping_add(by),
            len: self.len - by,
        }
    }
}

impl fmt::Debug for IoBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoBuffer")
            .field("len", &self.len)
            .field("private", &self.is_private())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
