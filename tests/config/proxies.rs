//! What the file says of the PROXY protocol, in and out.

use ringress::config::{Announce, IpNet};

use crate::support::{Wrong, parse, says_where_and_what, with};

fn trusted(lines: &str) -> Option<Vec<IpNet>> {
    match parse(&with(lines, "")) {
        Ok(mut config) => config.listeners.remove(0).trusted_proxies,
        Err(errors) => panic!("{errors}"),
    }
}

#[test]
fn headers_are_believed_of_the_networks_that_are_listed() {
    let network = |text: &str| text.parse::<IpNet>().unwrap();
    assert_eq!(
        trusted("accept_proxy_protocol = 'off'\ntrusted_proxies = []"),
        None
    );
    let required = "accept_proxy_protocol = 'require'";
    assert_eq!(
        trusted(&format!(
            "{required}\ntrusted_proxies = ['10.0.0.0/8', '::1']"
        )),
        Some(vec![network("10.0.0.0/8"), network("::1/128")])
    );
    let unix = format!("bind = ['unix:/a', 'unix:/b']\n{required}");
    assert_eq!(trusted(&unix), Some(Vec::new()), "their permissions decide");
    let both = format!("bind = ['unix:/a', '[::1]:80']\n{required}\ntrusted_proxies = '::1'");
    assert_eq!(trusted(&both), Some(vec![network("::1/128")]));
}

#[test]
fn who_is_believed_and_whether_anybody_is_asked_go_together() {
    says_where_and_what(|line| with(line, ""), LINES);
}

const LINES: &[Wrong] = &[
    (
        "accept_proxy_protocol = 'require'",
        "'require'",
        "\"trusted_proxies\" is empty",
    ),
    (
        "accept_proxy_protocol = 'require'\ntrusted_proxies = []",
        "'require'",
        "where the proxies are",
    ),
    (
        "bind = ['unix:/a', '[::1]:80']\naccept_proxy_protocol = 'require'",
        "'require'",
        "nobody would be believed",
    ),
    (
        "accept_proxy_protocol = 'require'\ntrusted_proxies = ['10.0.0.1/8']",
        "'10.0.0.1/8'",
        "did you mean \"10.0.0.0/8\"?",
    ),
    (
        "trusted_proxies = ['10.0.0.0/8']",
        "trusted_proxies",
        "expected: accept_proxy_protocol = \"require\" with it",
    ),
    (
        "accept_proxy_protocol = 'off'\ntrusted_proxies = '::1'",
        "trusted_proxies",
        "nobody is asked for a header",
    ),
    (
        "accept_proxy_protocol = 'required'\ntrusted_proxies = '::1'",
        "'required'",
        "did you mean \"require\"?",
    ),
    (
        "accept_proxy_protocol = true",
        "true",
        "wrong type: a boolean",
    ),
];

#[test]
fn clients_of_a_unix_socket_have_an_address_if_a_header_says_so() {
    let lines = "bind = 'unix:/a'\nallow = '10.0.0.0/8'\ndeny = '10.0.0.1'\n\
                 rate_limit.connections_per_ip = { rate = 1 }\n\
                 routes = [{ sni = 'a', upstream = 'app' }]\n";
    let by_client = "balance = 'ip-hash'";
    assert_eq!(parse(&with(lines, by_client)).unwrap_err().list().len(), 5);
    let required = format!("{lines}accept_proxy_protocol = 'require'");
    parse(&with(&required, by_client)).unwrap_or_else(|errors| panic!("{errors}"));
}

#[test]
fn both_versions_go_out_and_only_the_second_with_datagrams() {
    for (lines, announce) in [
        ("", Announce::Never),
        ("send_proxy_protocol = 'off'", Announce::Never),
        ("send_proxy_protocol = 'v1'", Announce::V1),
        ("send_proxy_protocol = 'v2'", Announce::V2Every),
        (
            "send_proxy_protocol = 'v2'\nproxy_protocol_datagrams = 'first'",
            Announce::V2First,
        ),
    ] {
        let config = parse(&with("", lines)).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(config.upstreams[0].announce, announce, "{lines}");
    }
    let both = "[listeners.dns]\nbind = '[::1]:53'\nupstream = 'app'\nprotocol = 'udp'";
    let config = parse(&with("", &format!("send_proxy_protocol = 'v2'\n{both}"))).unwrap();
    assert_eq!(config.listeners.len(), 2, "of one upstream");
    says_where_and_what(
        |line| with("", line),
        &[(
            "send_proxy_protocol = 'v1'\nproxy_protocol_datagrams = 'every'",
            "proxy_protocol_datagrams",
            "expected: send_proxy_protocol = \"v2\" with it",
        )],
    );
}
