//! What holds for whatever a connection begins with: for tests and for the fuzzer.

use super::{Announced, Fed, HeaderReader, Progress, v1, v2};

/// Panics where how `bytes` are read is not how everything is.
#[doc(hidden)]
pub fn check_laws(bytes: &[u8]) {
    let at_once = HeaderReader::new().feed(bytes);
    assert!(at_once.used <= bytes.len(), "{at_once:?}");
    assert_eq!(fed_in(bytes.chunks(1)), at_once, "byte by byte");
    // Where to split follows from the bytes.
    let split = bytes.iter().copied().map(usize::from).sum::<usize>() % (bytes.len() + 1);
    let (first, rest) = bytes.split_at(split);
    assert_eq!(
        fed_in([first, rest].into_iter()),
        at_once,
        "split at {split}"
    );
    match at_once.progress {
        Progress::More => assert_eq!(at_once.used, bytes.len()),
        Progress::Bad(fault) => {
            let line = fault.to_string();
            assert!(!line.contains(char::is_control), "{line:?}");
            assert!(line.len() < 300, "{line}");
        }
        Progress::Done(announced) => {
            // Nothing of the header depends on what is behind it.
            let header = HeaderReader::new().feed(&bytes[..at_once.used]);
            assert_eq!(header, at_once);
            check_rewritten(announced);
        }
    }
}

/// All pieces together.
fn fed_in<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Fed {
    let mut reader = HeaderReader::new();
    let mut sum = reader.feed(&[]);
    for piece in pieces {
        let fed = reader.feed(piece);
        let was_more = sum.progress == Progress::More;
        assert!(was_more || (fed.used == 0 && fed.progress == sum.progress));
        sum.used += fed.used;
        sum.progress = fed.progress;
    }
    sum
}

/// What was read reads back equal when it is written again.
fn check_rewritten(announced: Announced) {
    let addresses = match announced {
        Announced::Own => None,
        Announced::Client {
            source,
            destination,
        } => Some((source, destination)),
    };
    for header in [v1(addresses), v2(addresses)] {
        let expected = Fed {
            used: header.len(),
            progress: Progress::Done(announced),
        };
        assert_eq!(HeaderReader::new().feed(&header), expected);
    }
}
