//! Pieces, recycling, registered chunks.

use super::*;

fn scattered(pieces: &[usize]) -> IoBuffer {
    let mut storage: Vec<Vec<u8>> = pieces.iter().map(|len| vec![0; *len]).collect();
    let segments = storage
        .iter_mut()
        .map(|v| Segment {
            base: v.as_mut_ptr(),
            len: v.len(),
        })
        .collect();
    // SAFETY: the vectors move into `keep`, which does not move their heap memory, and nobody else uses them.
    unsafe { IoBuffer::from_foreign(segments, Rc::new(storage)) }
}

#[test]
fn slices_and_copies_cross_segment_borders() {
    let source = scattered(&[3, 5, 1, 7]);
    let bytes: Vec<u8> = (1..=16).collect();
    source.write_at(0, &bytes);
    let target = scattered(&[6, 10]);
    target.copy_from(&source);
    assert_eq!(target.to_vec(), bytes);
    assert_eq!(target.slice(4, 7).to_vec(), bytes[4..11]);
    assert_eq!(target.slice(16, 0).to_vec(), Vec::<u8>::new());
    assert!(!target.is_zero());
    target.fill(0);
    assert!(target.is_zero());
}

#[test]
fn private_buffers_are_aligned_and_recycled() {
    let pool = BufferPool::default();
    let first = pool.get(5000);
    assert!(first.is_aligned(PRIVATE_ALIGNMENT, 1) && first.is_private());
    let address = first.segments().next().map(|s| s.base.addr());
    drop(first);
    assert_eq!(
        pool.get(8192).segments().next().map(|s| s.base.addr()),
        address
    );
}

#[test]
fn a_clone_keeps_the_memory_from_being_recycled() {
    let pool = BufferPool::default();
    let first = pool.copy_of(b"first");
    let kept = first.clone();
    drop(first);
    let second = pool.get(4096);
    second.fill(9);
    assert_eq!(kept.to_vec(), b"first");
}

#[test]
fn payloads_come_from_registered_chunks_until_there_are_too_many() {
    let chunks = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&chunks);
    let pool = BufferPool::registered(move |chunk| {
        seen.borrow_mut().push((chunk.base.addr(), chunk.len));
        Ok(u16::try_from(seen.borrow().len()).unwrap())
    });
    assert!(
        chunks.borrow().is_empty(),
        "nothing is taken before it is used"
    );
    assert_eq!(pool.get(4096).number(), None);
    let buffers: Vec<IoBuffer> = (0..100).map(|_| pool.payload(1 << 20)).collect();
    let numbered = buffers.iter().filter_map(|buffer| {
        let base = buffer.segments().next()?.base.addr();
        Some((base, usize::from(buffer.number()?)))
    });
    let mut bases = Vec::new();
    for (base, number) in numbered {
        let (start, len) = chunks.borrow()[number - 1];
        assert!(start <= base && base + (1 << 20) <= start + len);
        bases.push(base);
    }
    bases.sort_unstable();
    assert!(bases.windows(2).all(|pair| pair[1] - pair[0] >= 1 << 20));
    assert!(
        !bases.is_empty() && bases.len() < 100,
        "the rest is as any other memory"
    );
    let count = chunks.borrow().len();
    drop(buffers);
    assert!(pool.payload(1 << 20).number().is_some());
    assert_eq!(chunks.borrow().len(), count, "used again");
}

#[test]
fn what_can_not_be_registered_is_as_any_other_memory() {
    let asked = Rc::new(std::cell::Cell::new(0));
    let counted = Rc::clone(&asked);
    let pool = BufferPool::registered(move |_| {
        counted.set(counted.get() + 1);
        Err(io::ErrorKind::OutOfMemory.into())
    });
    for _ in 0..3 {
        assert_eq!(pool.payload(4096).number(), None);
    }
    assert_eq!(asked.get(), 1, "not asked again and again");
}
