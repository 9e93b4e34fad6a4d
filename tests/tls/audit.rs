//! What an auditor says of a listener with the default settings: testssl.sh, with the checks that need no
//! internet and no more than a minute.

use std::process::Command;

use serde_json::Value;

use crate::common::tools::said;
use crate::common::{Proxy, config};
use crate::peers::http;
use crate::pki::Pki;

/// Findings about the certificate of the test, and why each is of no interest here.
const OF_THE_CERTIFICATE: [(&str, &str); 4] = [
    ("cert_chain_of_trust", "its root is the test's own"),
    ("cert_revocation", "its root publishes neither CRL nor OCSP"),
    (
        "cert_expirationStatus",
        "it lives for as long as the test wants",
    ),
    ("cert_notAfter", "likewise"),
];

/// A certificate as an authority would make it today, by openssl.
fn certificate(pki: &Pki) -> String {
    let files = ["audit.pem", "audit.key"].map(|name| pki.path(name).display().to_string());
    let words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 90 -subj /CN=localhost \
                 -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -addext basicConstraints=CA:FALSE";
    let mut openssl = Command::new("openssl");
    openssl
        .args(words.split_whitespace())
        .args(["-out", &files[0], "-keyout", &files[1]]);
    let output = openssl.output().expect("it is installed");
    assert!(output.status.success(), "{output:?}");
    format!(
        "tls = {{ certificates = [{{ cert = {:?}, key = {:?} }}] }}",
        files[0], files[1]
    )
}

#[test]
fn testssl_finds_nothing_above_low_in_the_default_settings() {
    let (pki, backend) = (Pki::new(), http("a page"));
    let listener = certificate(&pki);
    let proxy = Proxy::start(&config(&[&backend.address], &listener, "", ""));
    let report = pki.path("report.json").display().to_string();
    // Protocols, ciphers, forward secrecy, preferences, defaults, vulnerabilities. What HTTP says is up to
    // the backend.
    let checks = "--quiet --color 0 --warnings off --nodns none -p -s -f -P -S -U --jsonfile";
    let mut words: Vec<_> = checks.split(' ').collect();
    let address = proxy.address("web");
    words.extend([report.as_str(), address.as_str()]);
    let printed = said("testssl", &words);
    let report = std::fs::read_to_string(&report).expect("it was written");
    let findings: Vec<Value> = serde_json::from_str(&report).expect("it is JSON");
    let is = |id: &str, severity: &str| {
        findings
            .iter()
            .any(|it| it["id"] == id && it["severity"] == severity)
    };
    let complete = is("TLS1_2", "OK") && is("TLS1_3", "OK") && is("heartbleed", "OK");
    assert!(
        complete && is("RC4", "OK"),
        "not all was checked: {printed}"
    );
    let is_of_the_certificate = |finding: &&Value| {
        let mut known = OF_THE_CERTIFICATE.iter();
        known.any(|(id, _)| finding["id"] == *id)
    };
    let above_low = findings.iter().filter(|finding| {
        let severity = finding["severity"].as_str().expect("each has one");
        !["OK", "INFO", "LOW", "WARN", "DEBUG"].contains(&severity)
    });
    let bad: Vec<_> = above_low.filter(|it| !is_of_the_certificate(it)).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    proxy.end_now();
}
