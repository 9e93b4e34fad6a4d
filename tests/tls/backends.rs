//! Servers of other makers as backends that speak TLS.

use std::sync::mpsc;

use rustls::HandshakeKind;

use crate::common::tools::printed;
use crate::common::{Ending, Proxy, config, ending, told};
use crate::peers::{self, Other, echo};
use crate::pki::{Leaf, Pki, VERSIONS};

/// What curl gets from the backend at this address, twice: `keys` are further ones of the upstream's TLS.
fn fetched_twice(pki: &Pki, backend: &str, keys: &str) -> [String; 2] {
    let upstream = format!("tls = {{ ca = {:?}{keys} }}", pki.ca());
    let tables = "[runtime]\nworkers = 1\n";
    let proxy = Proxy::start(&config(&[backend], "", &upstream, tables));
    let url = format!("-sS http://{}/", proxy.address("web"));
    let fetched = [(); 2].map(|()| printed("curl", &url).expect("it is served"));
    proxy.end();
    fetched
}

fn files(leaf: &Leaf) -> [String; 2] {
    [&leaf.cert, &leaf.key].map(|file| file.display().to_string())
}

#[test]
fn opensslss_server_is_spoken_to_and_its_sessions_are_resumed() {
    let pki = Pki::new();
    let [cert, key] = files(&pki.leaf("127.0.0.1"));
    for (version, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let server = Other::openssl(&format!("-cert {cert} -key {key} {version} -www"));
        let [first, second] = fetched_twice(&pki, &server.address, "");
        assert!(first.contains(&format!("New, {name}")), "{first}");
        assert!(second.contains(&format!("Reused, {name}")), "{second}");
    }
}

#[test]
fn nginx_is_spoken_to_and_shown_a_certificate() {
    let pki = Pki::new();
    let [cert, key] = files(&pki.leaf("b.test"));
    let [our_cert, our_key] = files(&pki.leaf("the proxy"));
    for (protocol, reused) in [("TLSv1.2", "r"), ("TLSv1.3", "r")] {
        let server = Other::nginx(
            "",
            &format!(
                "server {{ listen ADDRESS ssl; ssl_certificate {cert}; ssl_certificate_key {key};\
                 ssl_protocols {protocol}; ssl_verify_client on; ssl_client_certificate {};\
                 return 200 \"$ssl_protocol $ssl_server_name $ssl_client_s_dn $ssl_session_reused\"; }}",
                pki.ca()
            ),
        );
        let keys = format!(
            ", server_name = \"b.test\", client_cert = {our_cert:?}, client_key = {our_key:?}"
        );
        let [first, second] = fetched_twice(&pki, &server.address, &keys);
        assert_eq!(first, format!("{protocol} b.test CN=the proxy ."));
        assert_eq!(second, format!("{protocol} b.test CN=the proxy {reused}"));
    }
}

#[test]
fn haproxy_is_spoken_to_and_its_sessions_are_resumed() {
    let pki = Pki::new();
    let both = pki.leaf("b.test").together().display().to_string();
    for (limit, protocol) in [
        ("ssl-max-ver TLSv1.2", "TLSv1.2"),
        ("ssl-min-ver TLSv1.3", "TLSv1.3"),
    ] {
        let server = Other::haproxy(&format!(
            "frontend f\n mode http\n bind ADDRESS ssl crt {both} {limit}\n \
             http-request return status 200 content-type text/plain \
             lf-string \"%[ssl_fc_protocol] %[ssl_fc_sni] %[ssl_fc_is_resumed]\""
        ));
        let keys = ", server_name = \"b.test\"";
        let [first, second] = fetched_twice(&pki, &server.address, keys);
        assert_eq!(first, format!("{protocol} b.test 0"));
        assert_eq!(second, format!("{protocol} b.test 1"));
    }
}

#[test]
fn sessions_with_a_backend_are_resumed_but_not_with_another() {
    let pki = Pki::new();
    for version in VERSIONS {
        let (tell, kinds) = mpsc::channel();
        let [one, two] = ["127.0.0.1", "127.0.0.1"].map(|name| {
            let tell = tell.clone();
            peers::backend(pki.server_of(&pki.leaf(name), version), move |stream| {
                let kind = stream.conn.handshake_kind();
                tell.send(kind.expect("it is over"))
                    .expect("the test waits");
                echo(stream);
            })
        });
        let upstream = format!("tls = {{ ca = {:?} }}", pki.ca());
        let backends = [one.address.as_str(), two.address.as_str()];
        let tables = "[runtime]\nworkers = 1\n";
        let mut proxy = Proxy::start(&config(&backends, "", &upstream, tables));
        let mut seen = Vec::new();
        for _ in 0..6 {
            let mut client = proxy.connect();
            peers::exchange(&mut client).expect("an echo");
            crate::common::socket::finish(&client);
            assert_eq!(ending(&mut client), Ending::Fin);
            seen.push(told(&kinds) == HandshakeKind::Resumed);
            assert_eq!(proxy.next_session().reason, "client-closed");
        }
        println!("{version:?}: {seen:?}");
        assert!(!seen[0], "nothing is known yet");
        assert!(seen[4] && seen[5], "{version:?}: {seen:?}");
        proxy.end();
    }
}
