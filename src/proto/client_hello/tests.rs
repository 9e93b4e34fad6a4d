use std::sync::Arc;

use proptest::prelude::*;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;

const OPENSSL: &[u8] = include_bytes!("../../../fuzz/seeds/client_hello/openssl_tls13");
const OPENSSL_TLS12: &[u8] = include_bytes!("../../../fuzz/seeds/client_hello/openssl_tls12");
const OPENSSL_NO_NAME: &[u8] = include_bytes!("../../../fuzz/seeds/client_hello/openssl_no_name");
const MALFORMED: Hello = Hello::Malformed("");

fn read(bytes: &[u8]) -> Option<Hello> {
    HelloReader::new().feed(bytes)
}

fn name(text: &str) -> Hello {
    Hello::Name(text.into())
}

/// The same, whatever is malformed.
fn kind(hello: Option<Hello>) -> Option<Hello> {
    match hello {
        Some(Hello::Malformed(_)) => Some(MALFORMED),
        other => other,
    }
}

/// As the rustls of this crate says it.
fn rustls_hello(name: &'static str, fragment: Option<usize>) -> Vec<u8> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has suites of both")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.max_fragment_size = fragment;
    let name = name.try_into().expect(name);
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).expect("a vector takes all");
    }
    bytes
}

/// A length of so many bytes before what it is the length of.
fn vector(length_bytes: usize, body: &[u8]) -> Vec<u8> {
    let mut bytes = body.len().to_be_bytes()[8 - length_bytes..].to_vec();
    bytes.extend(body);
    bytes
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().to_vec(), vector(2, data)].concat()
}

/// An entry of a list of names.
fn entry(kind: u8, name: &[u8]) -> Vec<u8> {
    [vec![kind], vector(2, name)].concat()
}

fn server_names(entries: &[Vec<u8>]) -> Vec<u8> {
    extension(0, &vector(2, &entries.concat()))
}

/// The message's body up to the extensions.
fn start() -> Vec<u8> {
    start_with(&[9; 32])
}

fn start_with(session: &[u8]) -> Vec<u8> {
    let parts = [
        &[3, 3][..],
        &[7; 32],
        &vector(1, session),
        &vector(2, &[0x1a, 0x1a, 0x13, 0x01]),
        &vector(1, &[0]),
    ];
    parts.concat()
}

fn body(extensions: &[Vec<u8>]) -> Vec<u8> {
    [start(), vector(2, &extensions.concat())].concat()
}

fn message(body: &[u8]) -> Vec<u8> {
    [vec![1], vector(3, body)].concat()
}

/// The message in records with so many bytes of it each.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| [vec![22, 3, 1], vector(2, part)].concat();
    message.chunks(size).flat_map(record).collect()
}

fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
    records(&message(&body(extensions)), RECORD_BYTES_MAX)
}

fn hello_to(name: &[u8]) -> Vec<u8> {
    hello(&[server_names(&[entry(0, name)])])
}

/// What a browser adds: values for nobody to know (RFC 8701) and an encrypted hello behind an outer one.
fn browser_hello() -> Vec<u8> {
    hello(&[
        extension(0x0a0a, &[]),
        extension(0xfe0d, &[0; 200]),
        server_names(&[entry(0, b"outer.example.com")]),
        extension(0x4469, &[1]),
        extension(0x2a2a, &[0]),
    ])
}

#[test]
fn what_real_clients_say_is_read() {
    assert_eq!(read(OPENSSL), Some(name("www.example.com")));
    assert_eq!(read(OPENSSL_TLS12), Some(name("mail.example.org")));
    assert_eq!(read(OPENSSL_NO_NAME), Some(Hello::NoName));
    let of_rustls = rustls_hello("A.example.com", None);
    assert_eq!(read(&of_rustls), Some(name("a.example.com")));
    let without_name = rustls_hello("192.0.2.1", None);
    assert_eq!(read(&without_name), Some(Hello::NoName));
    let in_parts = rustls_hello("a.example.com", Some(40));
    assert_ne!(in_parts.len(), of_rustls.len());
    assert_eq!(read(&in_parts), Some(name("a.example.com")));
}

#[test]
fn a_hello_is_complete_with_its_last_byte_however_it_is_split() {
    let in_parts = rustls_hello("a.example.com", Some(40));
    for bytes in [OPENSSL, OPENSSL_TLS12, &browser_hello(), &in_parts] {
        let expected = read(bytes);
        assert!(expected.is_some());
        for at in 0..bytes.len() {
            let mut reader = HelloReader::default();
            assert_eq!(reader.feed(&bytes[..at]), None, "{at}");
            assert_eq!(reader.feed(&bytes[at..]), expected, "{at}");
        }
        check_laws(bytes);
    }
}

#[test]
fn a_hello_may_lie_in_records_of_any_size() {
    let message = &OPENSSL[HEADER..];
    for size in 1..=message.len() {
        let bytes = records(message, size);
        assert_eq!(read(&bytes), Some(name("www.example.com")), "{size}");
        assert_eq!(read(&bytes[..bytes.len() - 1]), None, "{size}");
    }
    check_laws(&records(message, 1));
}

#[test]
fn extensions_that_nobody_knows_are_skipped() {
    assert_eq!(read(&browser_hello()), Some(name("outer.example.com")));
    let only_unknown = hello(&[extension(0xdada, &[1; 9]), extension(0xfe0d, &[])]);
    assert_eq!(read(&only_unknown), Some(Hello::NoName));
}

#[test]
fn what_comes_behind_the_hello_changes_nothing() {
    let mut bytes = hello_to(b"example.com");
    let mut reader = HelloReader::new();
    bytes.extend(b"\x17\x03\x03 whatever");
    assert_eq!(reader.feed(&bytes), Some(name("example.com")));
    assert_eq!(reader.feed(b""), Some(name("example.com")));
    assert_eq!(reader.feed(&OPENSSL[..9]), Some(name("example.com")));
    assert_eq!(reader.hello.capacity(), 0);
    // In the same record, too.
    let mut message = message(&body(&[]));
    message.extend([14, 0, 0, 0]);
    assert_eq!(read(&records(&message, 1000)), Some(Hello::NoName));
}

#[test]
fn what_is_not_tls_is_known_by_its_first_bytes() {
    for bytes in [
        &b"G"[..],
        b"SSH-2.0-x\r\n",
        b"\0",
        // A hello of SSLv2, for TLS.
        b"\x80\x2e\x01\x03\x01",
        // An alert.
        b"\x15\x03\x01\0\x02",
        b"\x16\x02",
        b"\x16\xfe\xff",
    ] {
        assert_eq!(read(bytes), Some(Hello::NotTls), "{}", bytes.escape_ascii());
    }
    for bytes in [&b""[..], b"\x16", b"\x16\x03", b"\x16\x03\x04\0\x01\x01"] {
        assert_eq!(read(bytes), None, "{}", bytes.escape_ascii());
    }
}

#[test]
fn records_that_are_none_are_malformed() {
    for (bytes, what) in [
        (&b"\x16\x03\x01\0\0"[..], "a record without content"),
        (b"\x16\x03\x01\x40\x01", "a record of more than 2^14 bytes"),
        (
            b"\x16\x03\x01\0\x01\x02",
            "a handshake that begins with another message",
        ),
        (
            b"\x16\x03\x01\0\x01\x01\x17",
            "a record of another kind within the hello",
        ),
        (
            b"\x16\x03\x01\0\x01\x01\x16\x02",
            "a record of another protocol's version",
        ),
        (
            b"\x16\x03\x01\0\x01\x01\x16\x03\x01\0\0",
            "a record without content",
        ),
    ] {
        assert_eq!(read(bytes), Some(Hello::Malformed(what)));
        assert_eq!(read(&bytes[..bytes.len() - 1]), None, "{what}");
    }
}

#[test]
fn a_hello_that_ends_too_early_is_malformed() {
    let whole = body(&[
        server_names(&[entry(0, b"a.example.com")]),
        extension(16, b"\0\x0c\x02h2\x08http/1.1"),
    ]);
    for len in 0..whole.len() {
        let bytes = records(&message(&whole[..len]), RECORD_BYTES_MAX);
        // Extensions may be missing as a whole.
        let expected = if len == start().len() {
            Hello::NoName
        } else {
            MALFORMED
        };
        assert_eq!(kind(read(&bytes)), Some(expected), "{len}");
    }
}

#[test]
fn lengths_that_do_not_fit_are_malformed() {
    let whole = body(&[server_names(&[entry(0, b"a.example.com")])]);
    let extensions = start().len();
    // The last bytes of: session ID, suites, compressions, extensions, extension, list of names, name.
    let (session, suites, compressions) = (34, 68, extensions - 2);
    let nested = [1, 5, 7, 10].map(|at| extensions + at);
    for at in [session, suites, compressions].into_iter().chain(nested) {
        for wrong in [0, -1i8, 1, 2, 3, 60, -60] {
            let mut bytes = whole.clone();
            bytes[at] = match wrong {
                0 => 0,
                by => bytes[at].wrapping_add_signed(by),
            };
            let is_session = at == session && wrong == 0;
            let answer = kind(read(&records(&message(&bytes), RECORD_BYTES_MAX)));
            assert!(
                answer == Some(MALFORMED) || is_session,
                "{at} by {wrong}: {answer:?}"
            );
        }
    }
    for (len, expected) in [(0, Hello::NoName), (32, Hello::NoName), (33, MALFORMED)] {
        let answer = read(&records(
            &message(&start_with(&vec![9; len])),
            RECORD_BYTES_MAX,
        ));
        assert_eq!(kind(answer), Some(expected), "a session ID of {len} bytes");
    }
    let behind = [whole.clone(), vec![0]].concat();
    let answer = read(&records(&message(&behind), RECORD_BYTES_MAX));
    assert_eq!(
        answer,
        Some(Hello::Malformed("bytes behind the extensions"))
    );
    let mut other_version = whole;
    other_version[0] = 2;
    let answer = read(&records(&message(&other_version), RECORD_BYTES_MAX));
    assert_eq!(kind(answer), Some(MALFORMED));
}

#[test]
fn a_list_of_names_has_one_host_name_at_most() {
    let host = || entry(0, b"a.example.com");
    let other = || entry(7, b"whatever\0");
    for (extensions, expected) in [
        (
            vec![server_names(&[other(), host()])],
            name("a.example.com"),
        ),
        (vec![server_names(&[other()])], Hello::NoName),
        (
            vec![server_names(&[host(), host()])],
            Hello::Malformed("two host names"),
        ),
        (
            vec![server_names(&[host()]), server_names(&[host()])],
            Hello::Malformed("two server_name extensions"),
        ),
        (
            vec![server_names(&[other()]), server_names(&[host()])],
            Hello::Malformed("two server_name extensions"),
        ),
        (
            vec![server_names(&[])],
            Hello::Malformed("a wrong length of the list of names"),
        ),
        (
            vec![extension(0, &[])],
            Hello::Malformed("a wrong length of the list of names"),
        ),
        (
            vec![server_names(&[entry(0, b"")])],
            Hello::Malformed("a wrong length of a name"),
        ),
    ] {
        assert_eq!(read(&hello(&extensions)), Some(expected));
    }
}

#[test]
fn names_are_told_without_case_and_dot() {
    let label = "a".repeat(63);
    let long = [&label[..], &label, &label, &label[..61]].join(".");
    assert_eq!(long.len(), 253);
    for (sent, expected) in [
        ("WWW.Example.COM", "www.example.com"),
        ("example.com.", "example.com"),
        ("localhost", "localhost"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("_a-.1.example", "_a-.1.example"),
        (&long, &long),
        (&format!("{long}."), &long),
    ] {
        assert_eq!(read(&hello_to(sent.as_bytes())), Some(name(expected)));
    }
    for sent in ["192.0.2.1", "192.0.2.1.", "2001:db8::1", "::"] {
        assert_eq!(
            read(&hello_to(sent.as_bytes())),
            Some(Hello::NoName),
            "{sent}"
        );
    }
}

#[test]
fn names_that_dns_does_not_have_are_malformed() {
    let label = "a".repeat(63);
    let long = [&label[..], &label, &label, &label[..62]].join(".");
    for sent in [
        &b"a\0.example.com"[..],
        b"a.example.com\0",
        b"a.example.com\r\n",
        b"a\r.example.com",
        b"a example.com",
        b"*.example.com",
        b"a/b",
        b"a:443",
        b"b\xc3\xbccher.example",
        b"\xff.example",
        b".",
        b"a..b",
        b".a",
        b"a..",
        format!("{label}a.example").as_bytes(),
        long.as_bytes(),
    ] {
        let answer = kind(read(&hello_to(sent)));
        assert_eq!(answer, Some(MALFORMED), "{}", sent.escape_ascii());
    }
}

#[test]
fn a_hello_has_no_more_than_16_kib() {
    let of_size = |size: usize| {
        let without = message(&body(&[extension(21, &[])])).len();
        message(&body(&[extension(21, &vec![0; size - without])]))
    };
    // With the headers of its records it must fit, too.
    let fits = records(&of_size(HELLO_BYTES_MAX - 2 * HEADER), 10_000);
    assert_eq!(fits.len(), HELLO_BYTES_MAX);
    assert_eq!(read(&fits), Some(Hello::NoName));
    assert_eq!(read(&fits[..fits.len() - 1]), None);
    let too_long = records(&of_size(HELLO_BYTES_MAX - 2 * HEADER + 1), 10_000);
    assert_eq!(read(&too_long), Some(Hello::TooLong));
    assert_eq!(read(&too_long[..HELLO_BYTES_MAX - 1]), None);
    check_laws(&too_long);
    let in_bytes = records(&of_size(3000), 1);
    assert_eq!(read(&in_bytes), Some(Hello::TooLong));
}

#[test]
fn a_hello_that_announces_too_much_is_known_by_its_header() {
    for (length, expected) in [
        ([0, 0x3f, 0xfc], None),
        ([0, 0x3f, 0xfd], Some(Hello::TooLong)),
        ([1, 0, 0], Some(Hello::TooLong)),
        ([0xff; 3], Some(Hello::TooLong)),
    ] {
        let bytes = [&b"\x16\x03\x01\x40\0\x01"[..], &length].concat();
        assert_eq!(read(&bytes), expected);
    }
}

proptest! {
    #[test]
    fn whatever_comes_is_read_without_harm(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        is_record in any::<bool>(),
    ) {
        if is_record {
            check_laws(&records(&message(&bytes), 50));
        } else {
            check_laws(&bytes);
        }
    }

    #[test]
    fn a_hello_with_wrong_bytes_is_read_without_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        size in 1usize..400,
        is_tls12 in any::<bool>(),
    ) {
        let mut message = if is_tls12 { OPENSSL_TLS12 } else { OPENSSL }[HEADER..].to_vec();
        for (at, byte) in changes {
            let at = at.index(message.len());
            message[at] = byte;
        }
        check_laws(&records(&message, size));
    }
}
