use rcgen::{CertificateParams, date_time_ymd};

use super::super::Kind;
use super::super::tests::{Signer, Talk, as_authority, params, self_signed, serving, trusting};
use super::super::{Pair, Server};
use super::*;

/// What a client that wants `name` and trusts `authorities` says of a server with this certificate.
fn judge(pair: &Arc<Pair>, settings: &ClientSettings) -> Result<(), String> {
    let mut talk = Talk::of(pair, settings);
    talk.shake_hands(usize::MAX).map_err(|failure| {
        assert!(failure.client);
        assert_eq!(failure.fault.kind(), Kind::Certificate);
        // An alert: the server is told.
        assert!(!failure.reply.is_empty());
        failure.fault.to_string()
    })
}

fn valid(from: i32, to: i32) -> CertificateParams {
    let mut params = params(&["a.example"]);
    params.not_before = date_time_ymd(from, 1, 1);
    params.not_after = date_time_ymd(to, 1, 1);
    params
}

fn anyone() -> ClientSettings {
    ClientSettings {
        server_name: None,
        authorities: None,
        identity: None,
    }
}

#[test]
fn a_certificate_that_an_authority_has_signed_is_trusted() {
    let signer = Signer::new("authority");
    let pair = signer.sign(&params(&["a.example", "*.b.example"]));
    for name in ["a.example", "x.b.example"] {
        assert_eq!(judge(&pair, &trusting(&signer.authorities(), name)), Ok(()));
    }
}

#[test]
fn faults_of_certificates_are_named() {
    let signer = Signer::new("authority");
    let trusted = trusting(&signer.authorities(), "a.example");
    let said = |pair: &Arc<Pair>| judge(pair, &trusted).unwrap_err();
    let expired = said(&signer.sign(&valid(2000, 2001)));
    assert!(
        expired.starts_with("its certificate expired ") && expired.ends_with(" days ago"),
        "{expired}"
    );
    assert_eq!(
        said(&signer.sign(&valid(3000, 3001))),
        "its certificate is not valid yet: is this machine's clock right?"
    );
    assert_eq!(
        said(&signer.sign(&params(&["b.example", "c.example"]))),
        "its certificate is for b.example, c.example, not for a.example (server_name)"
    );
    assert_eq!(
        said(&self_signed(&params(&["a.example"])).0),
        "its certificate is self-signed and not known here: give it as ca"
    );
    assert_eq!(
        said(&Signer::new("other").sign(&params(&["a.example"]))),
        "its certificate is signed by an authority that is not known here (ca)"
    );
    assert_eq!(
        said(&Signer::new("authority").sign(&params(&["a.example"]))),
        "its certificate is not signed by the authority of that name that is known here (ca)"
    );
}

#[test]
fn a_certificate_that_is_trusted_as_it_is_may_be_an_authoritys() {
    for params in [params(&["a.example"]), as_authority(params(&["a.example"]))] {
        let (pair, authorities) = self_signed(&params);
        assert_eq!(judge(&pair, &trusting(&authorities, "a.example")), Ok(()));
        let other = judge(&pair, &trusting(&authorities, "b.example")).unwrap_err();
        assert_eq!(
            other,
            "its certificate is for a.example, not for b.example (server_name)"
        );
    }
}

#[test]
fn a_certificate_that_is_trusted_as_it_is_has_its_time_still() {
    for (from, to, begins) in [
        (2000, 2001, "its certificate expired "),
        (3000, 3001, "its certificate is not valid yet"),
    ] {
        let (pair, authorities) = self_signed(&valid(from, to));
        let said = judge(&pair, &trusting(&authorities, "a.example")).unwrap_err();
        assert!(said.starts_with(begins), "{said}");
    }
}

#[test]
fn whoever_is_not_verified_is_trusted() {
    let strangers = [
        self_signed(&params(&["b.example"])).0,
        self_signed(&valid(2000, 2001)).0,
        self_signed(&as_authority(params(&[]))).0,
        Signer::new("authority").sign(&params(&["b.example"])),
    ];
    for pair in strangers {
        assert_eq!(judge(&pair, &anyone()), Ok(()));
    }
}

#[test]
fn the_name_is_the_one_that_is_set_or_the_host_or_the_address() {
    let (pair, authorities) = self_signed(&params(&["a.example", "192.0.2.7"]));
    let server = Server::new(&serving(&pair), "web", &Arc::default());
    let address = Some("192.0.2.7".parse().unwrap());
    let elsewhere = Some("192.0.2.8".parse().unwrap());
    for (set, host, address, trusted) in [
        (Some("a.example"), Some("b.example"), elsewhere, true),
        (Some("b.example"), Some("a.example"), address, false),
        (None, Some("a.example"), elsewhere, true),
        (None, Some("b.example"), address, false),
        (None, None, address, true),
        (None, None, elsewhere, false),
        (None, None, None, false),
    ] {
        let settings = ClientSettings {
            server_name: set.map(Into::into),
            ..trusting(&authorities, "")
        };
        let client = Client::new(&settings, 1);
        let mut talk = Talk::new(&client, &server);
        talk.client = client.connect(0, host, address);
        let outcome = talk.shake_hands(usize::MAX);
        assert_eq!(outcome.is_ok(), trusted, "{set:?} {host:?} {address:?}");
    }
}
