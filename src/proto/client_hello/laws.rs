//! What holds for whatever a connection begins with: for tests and for the fuzzer.

use super::{HELLO_BYTES_MAX, Hello, HelloReader};

/// Panics where how `bytes` are read is not how everything is.
#[doc(hidden)]
pub fn check_laws(bytes: &[u8]) {
    let at_once = HelloReader::new().feed(bytes);
    let mut reader = HelloReader::new();
    let one_by_one: Vec<_> = bytes.chunks(1).map(|byte| reader.feed(byte)).collect();
    assert_eq!(
        one_by_one.last().cloned().flatten(),
        at_once,
        "byte by byte"
    );
    let certain = one_by_one.iter().position(Option::is_some);
    let after = &one_by_one[certain.unwrap_or(bytes.len())..];
    assert!(after.iter().all(|answer| *answer == at_once), "it changes");
    assert!(at_once.is_some() || bytes.len() < HELLO_BYTES_MAX);
    assert!(certain.is_none_or(|at| at < HELLO_BYTES_MAX));
    // Where to split follows from the bytes.
    let split = bytes.iter().copied().map(usize::from).sum::<usize>() % (bytes.len() + 1);
    let (first, rest) = bytes.split_at(split);
    let mut reader = HelloReader::new();
    reader.feed(first);
    assert_eq!(reader.feed(rest), at_once, "split at {split}");
    if let Some(Hello::Name(name)) = at_once {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        assert!(name.chars().all(is_plain), "{name:?}");
        assert!(
            (1..=253).contains(&name.len()) && !name.ends_with('.'),
            "{name:?}"
        );
    }
}
