//! What a listener's file says of whom it takes, and how many.

use crate::support::{Wrong, parse, says_where_and_what, with};

#[test]
fn networks_are_a_list_or_a_single_one() {
    let text = with(
        "allow = ['10.0.0.0/8', '2001:db8::/32', '10.1.0.0/16', '192.0.2.1', '10.0.0.0/8']\ndeny = '::1'",
        "",
    );
    let config = parse(&text).unwrap();
    let listener = &config.listeners[0];
    let allowed: Vec<_> = listener.allow.iter().map(ToString::to_string).collect();
    assert_eq!(
        allowed,
        [
            "10.0.0.0/8",
            "2001:db8::/32",
            "10.1.0.0/16",
            "192.0.2.1/32",
            "10.0.0.0/8"
        ],
        "as written: they may overlap and repeat"
    );
    assert_eq!(listener.deny, ["::1/128".parse().unwrap()]);
}

#[test]
fn a_wrong_network_is_shown_at_its_place() {
    says_where_and_what(|line| with(line, ""), NETWORK_LINES);
}

const NETWORK_LINES: &[Wrong] = &[
    (
        "allow = ['10.0.0.0/8', '10.0.0.1/8']",
        "'10.0.0.1/8'",
        "help: did you mean \"10.0.0.0/8\"?",
    ),
    (
        "deny = '2001:db8::1/32'",
        "'2001:db8::1/32'",
        "help: did you mean \"2001:db8::/32\"?",
    ),
    ("deny = ['10.0.0.0/33']", "'10.0.0.0/33'", "/0 to /32"),
    ("deny = ['::/129']", "'::/129'", "/0 to /128"),
    (
        "deny = ['::ffff:10.0.0.0/104']",
        "'::ffff:10.0.0.0/104'",
        "help: did you mean \"10.0.0.0/8\"?",
    ),
    ("allow = 'lan'", "'lan'", "expected: a network like"),
    ("allow = [10]", "10", "wrong type: an integer"),
    ("allow = true", "true", "wrong type: a boolean"),
    ("alow = []", "alow", "did you mean \"allow\"?"),
];

#[test]
fn a_unix_socket_has_no_client_address() {
    says_where_and_what(|line| with(line, ""), UNIX_LINES);
    let harmless = "bind = 'unix:/run/a.sock'\nallow = []\ndeny = []";
    assert!(parse(&with(harmless, "")).is_ok());
}

const UNIX_LINES: &[Wrong] = &[
    (
        "bind = ['[::1]:80', 'unix:/run/a.sock']\nallow = ['10.0.0.0/8']",
        "['10.0.0.0/8']",
        "\"allow\" goes by the client's address, and a unix socket has none",
    ),
    (
        "deny = '10.0.0.0/8'\nbind = 'unix:/run/a.sock'",
        "'10.0.0.0/8'",
        "give the unix socket a listener of its own",
    ),
];
