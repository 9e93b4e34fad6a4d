//! HAProxy, nginx and curl in front of ringress and behind it.

use std::io::Write;
use std::sync::Arc;

use crate::common::socket::finish;
use crate::common::tools::printed;
use crate::common::{Backend, Ending, Proxy, config, connect, ending, told};
use crate::peers::{self, Other, client, exchange, http};
use crate::pki::{Pki, tls};
use crate::{own_address, taking};

/// What a proxy of another maker in front of it sends, in whose words it is told to.
fn in_front(address: &str) -> Vec<(&'static str, Other)> {
    let haproxy = |words: &str| {
        Other::haproxy(&format!(
            "listen l\n mode tcp\n bind ADDRESS\n server r {address} {words}"
        ))
    };
    vec![
        ("HAProxy, v1", haproxy("send-proxy")),
        ("HAProxy, v2", haproxy("send-proxy-v2")),
        (
            "HAProxy, v2 with a checksum",
            haproxy("send-proxy-v2 proxy-v2-options crc32c,ssl"),
        ),
        (
            "HAProxy, v2 with checks",
            haproxy("send-proxy-v2 check inter 100ms"),
        ),
        (
            "nginx",
            Other::nginx(
                &format!(
                    "server {{ listen ADDRESS; proxy_pass {address}; proxy_protocol on; proxy_half_close on; }}"
                ),
                "",
            ),
        ),
    ]
}

#[test]
fn clients_of_another_proxy_in_front_are_known_by_their_own_addresses() {
    let (backend, heard) = Backend::recording("heard");
    let mut proxy = taking(&[&backend.address], "", "");
    for (what, front) in in_front(&proxy.address("web")) {
        // The connection by which it was seen to be there may have gone through.
        let mut socket = connect(&front.address);
        let own = own_address(&socket).to_string();
        socket.write_all(b"payload").expect("it is taken");
        finish(&socket);
        let answer = crate::common::read_to_end(&mut socket);
        assert_eq!(answer, b"heard", "{what}");
        while told(&heard) != b"payload" {}
        let session = loop {
            let session = proxy.next_session();
            if session.bytes_received > 0 {
                break session;
            }
        };
        assert_eq!((session.bytes_received, session.client), (7, own), "{what}");
    }
    proxy.end_now();
}

/// What curl is told by an HTTP server that says who its client is.
fn told_by(other: &Other, version: &str, tls: &str) -> (String, String) {
    let upstream = format!("send_proxy_protocol = {version:?}\n{tls}");
    let proxy = Proxy::start(&config(&[&other.address], "", &upstream, ""));
    let address = proxy.address("web");
    let words = format!("-sS -w ?%{{local_ip}}:%{{local_port}}>{address} http://{address}/");
    let said = printed("curl", &words).expect("it is served");
    proxy.end();
    let (said, expected) = said.split_once('?').expect("curl adds it");
    (said.to_owned(), expected.to_owned())
}

#[test]
fn servers_of_other_makers_behind_it_learn_of_the_client() {
    let pki = Pki::new();
    let leaf = pki.leaf("b.test");
    let both = leaf.together().display().to_string();
    let haproxy = |words: &str| {
        Other::haproxy(&format!(
            "frontend f\n mode http\n bind ADDRESS accept-proxy {words}\n \
             http-request return status 200 content-type text/plain \
             lf-string \"%[src]:%[src_port]>%[dst]:%[dst_port]\""
        ))
    };
    let nginx = |words: &str| {
        let ssl = format!(
            "ssl_certificate {}; ssl_certificate_key {};",
            leaf.cert.display(),
            leaf.key.display()
        );
        Other::nginx(
            "",
            &format!(
                "server {{ listen ADDRESS {words} proxy_protocol; {ssl}\
                 return 200 \"$proxy_protocol_addr:$proxy_protocol_port>\
                 $proxy_protocol_server_addr:$proxy_protocol_server_port\"; }}"
            ),
        )
    };
    let secured = format!("tls = {{ ca = {:?}, server_name = \"b.test\" }}", pki.ca());
    for (what, other, tls) in [
        ("HAProxy", haproxy(""), ""),
        (
            "HAProxy, TLS",
            haproxy(&format!("ssl crt {both}")),
            secured.as_str(),
        ),
        ("nginx", nginx(""), ""),
        ("nginx, TLS", nginx("ssl"), &secured),
    ] {
        for version in ["v1", "v2"] {
            let (said, expected) = told_by(&other, version, tls);
            assert_eq!(said, expected, "{what} {version}");
        }
    }
}

#[test]
fn nginx_as_a_stream_server_behind_it_learns_of_the_client() {
    let nginx = Other::nginx(
        "server { listen ADDRESS proxy_protocol; return \"$proxy_protocol_addr:$proxy_protocol_port\"; }",
        "",
    );
    for version in ["v1", "v2"] {
        let upstream = format!("send_proxy_protocol = {version:?}");
        let proxy = Proxy::start(&config(&[&nginx.address], "", &upstream, ""));
        let mut client = proxy.connect();
        let own = own_address(&client).to_string();
        let said = crate::common::read_to_end(&mut client);
        assert_eq!(String::from_utf8_lossy(&said), own, "{version}");
        drop(client);
        proxy.end();
    }
}

#[test]
fn curl_sends_a_header_before_its_request_and_before_its_handshake() {
    let backend = http("a page");
    let mut proxy = taking(&[&backend.address], "", "");
    let words = format!("-sS --haproxy-protocol http://{}/", proxy.address("web"));
    assert_eq!(printed("curl", &words).as_deref(), Some("a page"));
    let session = proxy.next_session();
    assert!(
        session.client.starts_with("127.0.0.1:"),
        "{}",
        session.client
    );
    proxy.end();

    let pki = Pki::new();
    let mut proxy = taking(&[&backend.address], &tls(&[&pki.leaf("127.0.0.1")], ""), "");
    let url = format!("--cacert {} https://{}/", pki.ca(), proxy.address("web"));
    let with = format!("-sS --haproxy-protocol {url}");
    assert_eq!(printed("curl", &with).as_deref(), Some("a page"));
    let reason = proxy.next_session().reason;
    assert!(reason.ends_with("-closed"), "{reason}");
    // Not without it.
    assert_eq!(printed("curl", &format!("-sS {url}")), None);
    assert_eq!(proxy.next_session().reason, "bad-proxy-header");
    proxy.end();
}

#[test]
fn haproxy_speaks_tls_after_its_header() {
    let pki = Pki::new();
    let backend = Backend::echo();
    let mut proxy = taking(&[&backend.address], &tls(&[&pki.leaf("a.test")], ""), "");
    let address = proxy.address("web");
    for words in ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl-cn"] {
        let front = Other::haproxy(&format!(
            "listen l\n mode tcp\n bind ADDRESS\n \
             server r {address} {words} ssl verify required ca-file {} verifyhost a.test sni str(a.test)",
            pki.ca()
        ));
        let mut client = connect(&front.address);
        let own = own_address(&client).to_string();
        exchange(&mut client).expect("an echo");
        finish(&client);
        assert_eq!(ending(&mut client), Ending::Fin, "{words}");
        let session = loop {
            let session = proxy.next_session();
            if session.bytes_received > 0 {
                break session;
            }
        };
        assert_eq!(
            (session.client, session.bytes_received),
            (own, 6),
            "{words}"
        );
    }
    proxy.end_now();
}

#[test]
fn with_tls_on_both_sides_each_header_comes_before_its_handshake() {
    let (pki, theirs) = (Pki::new(), Pki::new());
    let both = theirs.leaf("b.test").together().display().to_string();
    // HAProxy takes the header, then TLS, and hands both client and bytes to an echo.
    let echo = Backend::echo();
    let behind = Other::haproxy(&format!(
        "listen l\n mode tcp\n bind ADDRESS accept-proxy ssl crt {both}\n server e {} send-proxy",
        echo.address
    ));
    let upstream = format!(
        "send_proxy_protocol = \"v2\"\ntls = {{ ca = {:?}, server_name = \"b.test\" }}",
        theirs.ca()
    );
    let listener = tls(&[&pki.leaf("a.test")], "");
    let mut proxy = taking(&[&behind.address], &listener, &upstream);
    let mut socket = proxy.connect();
    let header = crate::line("192.0.2.7:4000", "198.51.100.1:443");
    socket.write_all(&header).expect("it is taken");
    let secured = peers::secure(&Arc::new(pki.client()), "a.test", socket);
    let mut stream = secured.expect("a handshake");
    // The echo has got HAProxy's header first, with the client that was announced to ringress.
    let mut echoed = vec![0; header.len() + 6];
    stream.write_all(b"a word").expect("it is taken");
    std::io::Read::read_exact(&mut stream, &mut echoed).expect("an echo");
    assert_eq!(echoed, [&header[..], b"a word"].concat());
    peers::finish(&mut stream);
    drop(stream);
    assert_eq!(proxy.next_session().client, "192.0.2.7:4000");
    // Whoever begins with the handshake is refused.
    client(&Arc::new(pki.client()), "a.test", &proxy.address("web")).expect_err("no header");
    assert_eq!(proxy.next_session().reason, "bad-proxy-header");
    proxy.end();
}
