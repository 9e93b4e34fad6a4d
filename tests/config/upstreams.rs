//! What an upstream's file says of its backends and policies.

use std::num::NonZeroUsize;

use crate::support::{Wrong, parse, says_where_and_what, with};

#[test]
fn a_backend_has_a_cap_and_may_be_a_backup() {
    let text = with(
        "",
        "backends = ['10.0.0.1:80', { address = 'two.example:80', max_connections = 9, backup = true }, \
         { address = '10.0.0.9:80', max_connections = 0, backup = false, weight = 0 }]",
    );
    let config = parse(&text).unwrap();
    let backends: Vec<_> = config.upstreams[0]
        .backends
        .iter()
        .map(|it| (it.weight, it.max_connections, it.backup))
        .collect();
    let nine = NonZeroUsize::new(9);
    assert_eq!(
        backends,
        [
            (1, None, false),
            (1, nine, true),
            (1, nine, true),
            (0, None, false)
        ],
        "a host's addresses have what the host has"
    );
}

#[test]
fn a_wrong_backend_is_shown_at_its_place() {
    says_where_and_what(|line| with("", line), BACKEND_LINES);
}

const BACKEND_LINES: &[Wrong] = &[
    (
        "backends = [{ address = '10.0.0.1:1', max_connections = -1 }]",
        "-1",
        "from 0 to 4294967295",
    ),
    (
        "backends = [{ address = '10.0.0.1:1', max_connections = 'auto' }]",
        "'auto'",
        "wrong type: a string",
    ),
    (
        "backends = [{ address = '10.0.0.1:1', backup = 'true' }]",
        "'true'",
        "without quotes",
    ),
    (
        "backends = [{ address = '10.0.0.1:1', backup = true }]",
        "[{ address = '10.0.0.1:1', backup = true }]",
        "every backend is a backup",
    ),
    (
        "backends = [{ address = '10.0.0.1:1', weight = 0 }, { address = '10.0.0.2:1', backup = true }]",
        "[{ address = '10.0.0.1:1', weight = 0 }, { address = '10.0.0.2:1', backup = true }]",
        "every backend that is no backup has weight 0",
    ),
    (
        "backends = [{ address = '10.0.0.1:1', weight = 0, backup = true }]",
        "[{ address = '10.0.0.1:1', weight = 0, backup = true }]",
        "every backend is a backup",
    ),
];
