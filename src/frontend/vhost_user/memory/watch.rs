//! Accesses to pages that a front end's file no longer has (`SIGBUS`): found to be ours, and survived.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use libc::{c_int, c_void, siginfo_t};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// How many ranges can be watched at a time, over all connections.
pub(in crate::frontend::vhost_user) const WATCHES: usize = 8192;

static TABLE: [Entry; WATCHES] = [const { Entry::new() }; WATCHES];

/// The action in force before ours.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// One watched range. Free while `start` is zero; in force while `end` is not.
struct Entry {
    start: AtomicUsize,
    end: AtomicUsize,
    page: AtomicUsize,
    faulted: AtomicBool,
}

impl Entry {
    const fn new() -> Self {
        Self {
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            page: AtomicUsize::new(0),
            faulted: AtomicBool::new(false),
        }
    }

    /// Whether the range is in force and contains `address`.
    fn covers(&self, address: usize) -> bool {
        // `end` is published last and withdrawn first. A start that was read between two looks at the same end belongs to
        // it: otherwise the entry may have been given to another range meanwhile.
        let end = self.end.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Acquire);
        start <= address && address < end && self.end.load(Ordering::Acquire) == end
    }
}

/// Keeps one mapped range watched until dropped: an access to a page that its file no longer has finds zeroes there,
/// instead of ending the process.
///
/// The kernel answers such an access with `SIGBUS`. The handler looks the address up in a static table (only atomics,
/// so it is async-signal-safe), maps anonymous memory over the missing page and notes the fault; whoever owns the
/// range then ends that connection. A `SIGBUS` elsewhere, or one that somebody sent, gets the action that was in
/// force before.
#[derive(Debug)]
pub(super) struct Watch {
    index: usize,
}

impl Watch {
    /// Watches `len` bytes from `start`, made of pages of `page` bytes. `None` when the table is full.
    pub(super) fn new(start: usize, len: usize, page: usize) -> Option<Self> {
        install();
        let index = TABLE.iter().position(|entry| {
            // 1 is no page's address: the entry is taken, but not in force before `end` is set.
            let taken = (Ordering::Acquire, Ordering::Relaxed);
            let exchange = entry.start.compare_exchange(0, 1, taken.0, taken.1);
            exchange.is_ok()
        })?;
        let entry = &TABLE[index];
        entry.faulted.store(false, Ordering::Relaxed);
        entry.page.store(page, Ordering::Relaxed);
        entry.start.store(start, Ordering::Relaxed);
        entry.end.store(start + len, Ordering::Release);
        Some(Self { index })
    }

    /// Whether an access has hit a missing page.
    pub(super) fn has_faulted(&self) -> bool {
        TABLE[self.index].faulted.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let entry = &TABLE[self.index];
        entry.end.store(0, Ordering::Release);
        entry.start.store(0, Ordering::Release);
    }
}

/// Installs the handler, once per process.
fn install() {
    PREVIOUS.get_or_init(|| {
        let mut previous = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: only asks for the action in force, into memory of the right type.
        let asked =
            unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), previous.as_mut_ptr()) };
        assert_eq!(asked, 0, "SIGBUS exists and its action can be read");
        let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_sigbus;
        // SAFETY: all zeroes is a valid sigaction.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler only does what is allowed in one: atomics and system calls.
        let set = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
        assert_eq!(set, 0, "SIGBUS can be handled");
        // SAFETY: filled by the first call, which succeeded.
        unsafe { previous.assume_init() }
    });
}

/// Runs on the thread that faulted. Async-signal-safe: no allocation, no lock, no panic.
extern "C" fn on_sigbus(_signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo to a SA_SIGINFO handler, which is its own for as long as it runs.
    let info = unsafe { &*info };
    let code = info.si_code;
    // SAFETY: for a fault (a positive code) the address is the part of the union that is set, else it is not used.
    let address = unsafe { info.si_addr() }.addr();
    if code > 0 && patch(address) {
        return;
    }
    if let Some(previous) = PREVIOUS.get() {
        // SAFETY: an action that the kernel itself reported. A fault happens again on return, and meets it.
        let _ = unsafe { libc::sigaction(libc::SIGBUS, previous, std::ptr::null_mut()) };
    }
    if code <= 0 {
        // SAFETY: raising a signal has no preconditions. It is delivered when this handler returns.
        let _ = unsafe { libc::raise(libc::SIGBUS) };
    }
}

/// Maps zeroes over the page at `address` if it is in a watched range.
fn patch(address: usize) -> bool {
    let Some(entry) = TABLE.iter().find(|entry| entry.covers(address)) else {
        return false;
    };
    let page = entry.page.load(Ordering::Relaxed);
    if !page.is_power_of_two() {
        return false;
    }
    let start = std::ptr::with_exposed_provenance_mut::<c_void>(address & !(page - 1));
    let flags = MapFlags::PRIVATE | MapFlags::FIXED;
    // SAFETY: the page lies in a mapping of ours (ranges are whole pages) whose file no longer has it; replacing it
    // keeps every pointer into the range valid.
    let mapped = unsafe { mmap_anonymous(start, page, ProtFlags::READ | ProtFlags::WRITE, flags) };
    if mapped.is_err() {
        return false;
    }
    entry.faulted.store(true, Ordering::Relaxed);
    true
}
