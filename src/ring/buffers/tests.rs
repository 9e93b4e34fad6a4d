use proptest::prelude::*;

use super::*;

type Pool = Buffers<BUFFER_BYTES>;

/// A kernel that only keeps what it was given, in order.
#[derive(Default)]
struct Given(std::collections::VecDeque<(u16, NonNull<u8>)>);

impl Given {
    fn take_from(&mut self, pool: &mut Pool) {
        self.0.extend(pool.take_outgoing());
    }

    fn receive(&mut self, pool: &mut Pool, payload: &[u8]) -> Chain {
        let (buffer, start) = self.0.pop_front().expect("a buffer is there");
        // SAFETY: the pool gave this buffer of BUFFER_BYTES for writing, and no payload of
        // these tests is longer.
        unsafe {
            std::ptr::copy_nonoverlapping(payload.as_ptr(), start.as_ptr(), payload.len());
        };
        pool.filled(buffer, payload.len() as u32)
    }
}

fn payload(pool: &Pool, chain: &Chain) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (start, len) in pool.slices(chain) {
        // SAFETY: the slice was filled by `receive` and its chain has not been given back.
        bytes
            .extend_from_slice(unsafe { std::slice::from_raw_parts(start.as_ptr(), len as usize) });
    }
    bytes
}

#[test]
fn single_bytes_share_a_buffer() {
    let (mut pool, mut given) = (Pool::new(64), Given::default());
    given.take_from(&mut pool);
    let mut chain = Chain::EMPTY;
    for byte in 0..100u8 {
        let one = given.receive(&mut pool, &[byte]);
        pool.append(&mut chain, one);
        given.take_from(&mut pool);
    }
    assert_eq!((chain.count, chain.bytes, pool.held()), (1, 100, 1));
    assert_eq!(payload(&pool, &chain), (0..100).collect::<Vec<u8>>());
}

#[test]
fn growth_ends_at_the_limit_and_is_given_back_after_a_quiet_interval() {
    let (mut pool, mut given) = (Pool::new(80), Given::default());
    given.take_from(&mut pool);
    let mut held = Vec::new();
    while held.len() < 80 {
        if given.0.is_empty() {
            assert!(pool.grow());
            given.take_from(&mut pool);
        }
        held.push(given.receive(&mut pool, b"x"));
    }
    assert!(!pool.grow());
    pool.trim(true);
    pool.trim(true);
    for mut chain in held {
        pool.release(&mut chain);
    }
    given.take_from(&mut pool);
    assert_eq!((pool.held(), pool.provided()), (0, 80));
    pool.trim(true);
    pool.trim(true);
    assert!(!pool.wants_trim());
    let mut one = given.receive(&mut pool, b"x");
    pool.release(&mut one);
    assert_eq!((pool.provided(), pool.wants_trim()), (79, true));
}

#[test]
fn growth_helps_at_once_when_sessions_hold_more_than_the_target() {
    let (mut pool, mut given) = (Pool::new(1024), Given::default());
    given.take_from(&mut pool);
    let mut held = Vec::new();
    while held.len() < 300 {
        if given.0.is_empty() {
            assert!(pool.grow());
            given.take_from(&mut pool);
        }
        held.push(given.receive(&mut pool, b"x"));
    }
    pool.trim(true);
    pool.trim(true);
    while !given.0.is_empty() {
        held.push(given.receive(&mut pool, b"x"));
    }
    assert!(pool.grow());
    for mut chain in held {
        pool.release(&mut chain);
    }
}

#[test]
#[should_panic(expected = "returned twice")]
fn a_buffer_returned_twice_is_a_broken_invariant() {
    let (mut pool, mut given) = (Pool::new(8), Given::default());
    given.take_from(&mut pool);
    let one = given.receive(&mut pool, b"x");
    let (mut first, mut second) = (one, one);
    pool.release(&mut first);
    pool.release(&mut second);
}

proptest! {
    #[test]
    fn a_chain_is_a_byte_queue(steps in prop::collection::vec((0u8..4, 1usize..20_000), 1..60)) {
        let (mut pool, mut given) = (Pool::new(2048), Given::default());
        given.take_from(&mut pool);
        let (mut chain, mut model, mut next) = (Chain::EMPTY, Vec::<u8>::new(), 0u8);
        for (kind, amount) in steps {
            given.take_from(&mut pool);
            match kind {
                0 | 1 => {
                    let bytes: Vec<u8> = (0..amount.min(BUFFER_BYTES as usize)).map(|_| { next = next.wrapping_add(1); next }).collect();
                    if given.0.is_empty() {
                        prop_assert!(pool.grow());
                        given.take_from(&mut pool);
                    }
                    let one = given.receive(&mut pool, &bytes);
                    pool.append(&mut chain, one);
                    model.extend(bytes);
                }
                2 => {
                    let some = (amount as u32).min(chain.bytes);
                    pool.consume(&mut chain, some);
                    model.drain(..some as usize);
                }
                _ => {
                    let mut front = pool.split(&mut chain, (amount % 5) as u16);
                    prop_assert_eq!(payload(&pool, &front), &model[..front.bytes as usize]);
                    model.drain(..front.bytes as usize);
                    pool.release(&mut front);
                }
            }
            prop_assert_eq!(payload(&pool, &chain), &model[..]);
            prop_assert_eq!(chain.bytes as usize, model.len());
        }
        pool.release(&mut chain);
        prop_assert_eq!(pool.held(), 0);
    }
}
