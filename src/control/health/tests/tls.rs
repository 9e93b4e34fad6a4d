//! Probes over TLS, and what they say of certificates.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::*;
use crate::config;
use crate::control::health::tls::{Tls, client, secure};
use crate::time;
use crate::tls::{
    Authorities, ClientAuth, ClientSettings, Pair, Server, ServerSettings, Tickets, Version,
};

/// An authority, and what it signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

fn parameters(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::new([name.to_owned()]).unwrap();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut parameters = parameters(name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = parameters.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(parameters, key);
        Self { issuer, pem }
    }

    fn sign(&self, parameters: &CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        pair_of(&certificate.pem(), &key)
    }

    fn trusted(&self) -> Option<std::sync::Arc<Authorities>> {
        let file = std::path::Path::new("/ca.pem");
        let read = Authorities::from_pem(file, self.pem.as_bytes()).unwrap();
        Some(read.into())
    }
}

fn pair_of(certificate: &str, key: &KeyPair) -> Pair {
    let (file, key_file) = (
        std::path::Path::new("/a.pem"),
        std::path::Path::new("/a.key"),
    );
    let key = key.serialize_pem();
    Pair::from_pem(file, certificate.as_bytes(), key_file, key.as_bytes()).unwrap()
}

fn server(pair: Pair, client_auth: ClientAuth) -> Server {
    let settings = ServerSettings {
        certificates: vec![pair.into()],
        client_auth,
        min_version: Version::Tls12,
        alpn: Vec::new(),
        tickets: true,
    };
    Server::new(&settings, "app", &std::sync::Arc::new(Tickets::default()))
}

/// A backend for one connection that hears `request` and says `answer`, and expects to be left in order.
async fn speaker(pair: Pair, request: &'static str, answer: &'static str) -> Address {
    secured_backend(server(pair, ClientAuth::Off), request, answer).await
}

async fn secured_backend(server: Server, request: &'static str, answer: &'static str) -> Address {
    backend(async move |stream| {
        let session = server.accept(time::Instant::from_nanos(1));
        let Ok(mut stream) = secure(stream, session).await else {
            return;
        };
        let mut heard = vec![0; request.len()];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&heard), request);
        stream.write_all(answer.as_bytes()).await.unwrap();
        let rest = stream.read_to_end(&mut Vec::new()).await;
        assert!(rest.is_ok(), "the end is a reset: {rest:?}");
        stream.shutdown().await.unwrap();
    })
    .await
}

fn tls(send: Option<&str>, expect: Option<&str>) -> Probe {
    Probe::Tls(exchange(send, expect))
}

const NAME: &str = "app.example";

/// Probes as an upstream with these settings would.
async fn judged(settings: Option<ClientSettings>, address: &Address, probe: Probe) -> String {
    outcome_of(&secured(settings, address, probe, PLENTY)).await
}

fn secured(
    settings: Option<ClientSettings>,
    address: &Address,
    probe: Probe,
    timeout: Duration,
) -> Target {
    let mut upstream = config::Upstream::new("app".into(), Vec::new());
    upstream.tls = settings;
    let client = client(&upstream, &probe).expect("it speaks TLS");
    let host = Some(NAME.into());
    let mut target = target(address, probe, timeout);
    target.tls = Some(Tls { client, host });
    target
}

fn verified_by(authority: &Authority) -> Option<ClientSettings> {
    Some(ClientSettings {
        server_name: None,
        authorities: authority.trusted(),
        identity: None,
    })
}

#[tokio::test]
async fn a_handshake_is_enough_or_an_exchange_over_it() {
    let authority = Authority::new("ca.example");
    let address = speaker(authority.sign(&parameters(NAME)), "", "").await;
    let alone = judged(verified_by(&authority), &address, tls(None, None)).await;
    assert_eq!(alone, "ok");
    for (answer, said) in [
        ("PONG", "ok"),
        ("-ERR", "answered \"-ERR\" instead of \"PONG\""),
    ] {
        let address = speaker(authority.sign(&parameters(NAME)), "PING", answer).await;
        let ping = tls(Some("PING"), Some("PONG"));
        assert_eq!(judged(verified_by(&authority), &address, ping).await, said);
    }
}

#[tokio::test]
async fn http_goes_over_tls_where_the_upstream_speaks_it() {
    let authority = Authority::new("ca.example");
    let answer = "HTTP/1.1 200 OK\r\n\r\n";
    let address = speaker(authority.sign(&parameters(NAME)), REQUEST, answer).await;
    assert_eq!(
        judged(verified_by(&authority), &address, http()).await,
        "ok"
    );
    let plain = config::Upstream::new("app".into(), Vec::new());
    assert!(client(&plain, &http()).is_none());
    assert!(client(&plain, &tcp(None, None)).is_none());
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_told_in_plain_words() {
    let (own, other) = (
        Authority::new("ca.example"),
        Authority::new("other.example"),
    );
    let mut expired = parameters(NAME);
    expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let key = KeyPair::generate().unwrap();
    let alone = parameters(NAME).self_signed(&key).unwrap();
    for (pair, said) in [
        (own.sign(&expired), "TLS: its certificate expired "),
        (
            own.sign(&parameters("b.example")),
            "TLS: its certificate is for b.example, not for app.example (server_name)",
        ),
        (
            other.sign(&parameters(NAME)),
            "TLS: its certificate is signed by an authority that is not known here (ca)",
        ),
        (
            pair_of(&alone.pem(), &key),
            "TLS: its certificate is self-signed and not known here: give it as ca",
        ),
    ] {
        let address = speaker(pair.clone(), "", "").await;
        let verdict = judged(verified_by(&own), &address, tls(None, None)).await;
        assert!(verdict.starts_with(said), "{verdict}");
        // Passed through it is between client and backend.
        let address = speaker(pair, "", "").await;
        assert_eq!(judged(None, &address, tls(None, None)).await, "ok");
    }
}

#[tokio::test]
async fn the_name_is_that_of_the_settings_if_they_have_one() {
    let authority = Authority::new("ca.example");
    let mut settings = verified_by(&authority);
    settings.as_mut().unwrap().server_name = Some("b.example".into());
    let address = speaker(authority.sign(&parameters("b.example")), "", "").await;
    assert_eq!(judged(settings, &address, tls(None, None)).await, "ok");
}

#[tokio::test]
async fn a_client_certificate_is_shown() {
    let authority = Authority::new("ca.example");
    let required = ClientAuth::Required(authority.trusted().unwrap());
    let ping = || tls(Some("PING"), Some("PONG"));
    for (identity, said) in [
        (Some(authority.sign(&parameters("client"))), "ok"),
        (None, "TLS: it sent the alert CertificateRequired"),
    ] {
        let server = server(authority.sign(&parameters(NAME)), required.clone());
        let address = secured_backend(server, "PING", "PONG").await;
        let mut settings = verified_by(&authority);
        settings.as_mut().unwrap().identity = identity.map(Into::into);
        assert_eq!(judged(settings, &address, ping()).await, said);
    }
}

#[tokio::test]
async fn who_never_answers_the_hello_is_given_up() {
    let authority = Authority::new("ca.example");
    let address = backend(async |mut stream| {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let started = Instant::now();
    let target = secured(verified_by(&authority), &address, tls(None, None), SHORT);
    assert_eq!(outcome_of(&target).await, "no TLS handshake within 80ms");
    assert!((SHORT..PLENTY).contains(&started.elapsed()));
}

#[tokio::test]
async fn what_is_not_tls_is_told() {
    let authority = Authority::new("ca.example");
    let says = async |answer: &'static str| {
        let address = backend(async move |mut stream| {
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        judged(verified_by(&authority), &address, tls(None, None)).await
    };
    let answer = "HTTP/1.1 400 Bad Request\r\n\r\n";
    assert_eq!(says(answer).await, "TLS: what it says is not TLS");
    assert_eq!(says("").await, "TLS: closed during the handshake");
}

#[tokio::test]
async fn the_header_comes_before_the_handshake() {
    let authority = Authority::new("ca.example");
    let server = server(authority.sign(&parameters(NAME)), ClientAuth::Off);
    let address = backend(async move |mut stream| {
        let mut header = vec![0; LOCAL.len()];
        stream.read_exact(&mut header).await.unwrap();
        assert_eq!(header, LOCAL);
        let session = server.accept(time::Instant::from_nanos(1));
        let mut stream = secure(stream, session)
            .await
            .map_err(|it| it.to_string())
            .unwrap();
        stream.write_all(b"220").await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let greeting = tls(None, Some("220"));
    let mut target = secured(verified_by(&authority), &address, greeting, PLENTY);
    target.announce = Announce::V2First;
    assert_eq!(outcome_of(&target).await, "ok");
}

#[tokio::test]
async fn renewed_authorities_are_another_target() {
    let (old, new) = (Authority::new("ca.example"), Authority::new("ca.example"));
    let address = nobody().await.into();
    let tls = |authority| {
        let target = secured(verified_by(authority), &address, tls(None, None), PLENTY);
        target.tls.unwrap()
    };
    assert!(tls(&old) == tls(&old));
    assert!(tls(&old) != tls(&new));
}
