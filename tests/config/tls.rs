//! What the file says of TLS on both sides, with the files that it names.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use ringress::config::{self, Config, Diagnostics, KeepingResolver, Resolver, SystemResolver};
use ringress::tls::{
    Authorities, ClientAuth, ClientSettings, LoadError, Pair, ServerSettings, Version,
};
use tempfile::TempDir;

use crate::support::{Wrong, parse, says_of, stub, with};

/// Where configurations are, with a folder `tls` beside them in which a.pem and a.key fit, and b.pem and b.key.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        fs::create_dir(folder.path("tls")).unwrap();
        for name in ["a", "b"] {
            folder.renew(name);
        }
        folder
    }

    /// A new pair, written in place.
    fn renew(&self, name: &str) {
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new([format!("{name}.example")]).unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        fs::write(self.path(&format!("tls/{name}.pem")), certificate.pem()).unwrap();
        fs::write(self.path(&format!("tls/{name}.key")), key.serialize_pem()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn parse(&self, text: &str) -> Result<Config, Diagnostics> {
        let file = self.path("a.toml");
        config::parse(text, file.to_str().unwrap(), &mut Here(&file))
    }

    fn pair(&self, name: &str) -> Arc<Pair> {
        let file = |ending: &str| self.path(&format!("tls/{name}.{ending}"));
        Arc::new(Pair::load(&file("pem"), &file("key")).unwrap())
    }

    fn authorities(&self, name: &str) -> Arc<Authorities> {
        Arc::new(Authorities::load(&self.path(&format!("tls/{name}.pem"))).unwrap())
    }

    fn server(&self, lines: &str) -> ServerSettings {
        let text = with(&format!("[listeners.web.tls]\n{lines}"), "");
        match self.parse(&text) {
            Ok(mut config) => config.listeners.remove(0).tls.unwrap(),
            Err(errors) => panic!("{errors}"),
        }
    }

    fn client(&self, lines: &str) -> ClientSettings {
        let text = with("", &format!("{lines}\n"));
        match self.parse(&text) {
            Ok(mut config) => config.upstreams.remove(0).tls.unwrap(),
            Err(errors) => panic!("{errors}"),
        }
    }

    /// A file with `tls` of the listener and `ca` of the upstream as given, loaded by `resolver`.
    fn load(
        &self,
        certificates: &str,
        ca: &str,
        resolver: &mut dyn Resolver,
    ) -> Result<Config, Diagnostics> {
        let tls = format!("tls.certificates = [{certificates}]");
        let file = self.path("a.toml");
        fs::write(&file, with(&tls, &format!("tls.ca = {ca}"))).unwrap();
        config::load_with(&file, resolver)
    }
}

/// Knows the hosts that [`stub`] knows, and files; what the system trusts is in tls/b.pem.
struct Here<'a>(&'a Path);

impl Resolver for Here<'_> {
    fn resolve(&mut self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        stub(host, port)
    }

    fn pair(&mut self, certificate: &Path, key: &Path) -> Result<Arc<Pair>, LoadError> {
        SystemResolver.pair(certificate, key)
    }

    fn authorities(&mut self, file: Option<&Path>) -> Result<Arc<Authorities>, LoadError> {
        let system = self.0.with_file_name("tls/b.pem");
        let mut found = Authorities::load(file.unwrap_or(&system))?;
        found.file = file.map(Path::to_owned);
        Ok(Arc::new(found))
    }
}

const A: &str = "{ cert = 'tls/a.pem', key = 'tls/a.key' }";
const B: &str = "{ cert = 'tls/b.pem', key = 'tls/b.key' }";

#[test]
fn termination_has_the_defaults_of_the_contract() {
    let folder = Folder::new();
    let expected = ServerSettings {
        certificates: vec![folder.pair("a")],
        client_auth: ClientAuth::Off,
        min_version: Version::Tls12,
        alpn: Vec::new(),
        tickets: true,
    };
    assert_eq!(folder.server(&format!("certificates = [{A}]")), expected);
    let spelled = format!(
        "certificates = [{A}]\nclient_auth = 'off'\nmin_version = '1.2'\nalpn = []\ntickets = true"
    );
    assert_eq!(folder.server(&spelled), expected);
}

#[test]
fn every_key_of_termination_is_read() {
    let folder = Folder::new();
    let settings = folder.server(&format!(
        "certificates = [{B}, {A}]\nclient_auth = 'required'\nclient_ca = 'tls/a.pem'\n\
         min_version = '1.3'\nalpn = ['h2', 'http/1.1']\ntickets = false"
    ));
    let expected = ServerSettings {
        certificates: vec![folder.pair("b"), folder.pair("a")],
        client_auth: ClientAuth::Required(folder.authorities("a")),
        min_version: Version::Tls13,
        alpn: vec!["h2".into(), "http/1.1".into()],
        tickets: false,
    };
    assert_eq!(settings, expected);
    let optional = format!("certificates = {A}\nclient_auth = 'optional'\nclient_ca = 'tls/a.pem'");
    let optional = folder.server(&optional).client_auth;
    assert_eq!(optional, ClientAuth::Optional(folder.authorities("a")));
}

#[test]
fn paths_begin_in_the_folder_of_the_configuration() {
    let folder = Folder::new();
    let absolute = folder.path("tls/a.pem");
    let lines = format!(
        "certificates = [{{ cert = '{}', key = './tls//a.key' }}]",
        absolute.display()
    );
    let settings = folder.server(&lines);
    let files = settings.certificates[0].files();
    assert_eq!(
        files,
        [absolute.as_path(), folder.path("tls/a.key").as_path()]
    );
    // Nothing is asked of the system where a file has another name.
    let elsewhere = with(&format!("tls.certificates = [{A}]"), "");
    let errors = config::parse(&elsewhere, "none.toml", &mut SystemResolver).unwrap_err();
    let here = std::env::current_dir().unwrap().join("tls/a.pem");
    let said = format!("{}: there is no such file", here.display());
    assert_eq!(errors.list()[0].message, said);
}

#[test]
fn a_file_that_is_named_twice_is_read_once() {
    let folder = Folder::new();
    let text = with(
        &format!("tls.certificates = [{A}]"),
        &format!(
            "tls.verify = false\n[listeners.b]\nbind = '[::1]:1'\nupstream = 'app'\n\
             tls.certificates = [{A}]"
        ),
    );
    let config = folder
        .parse(&text)
        .unwrap_or_else(|errors| panic!("{errors}"));
    let pairs = config.listeners.iter();
    let pairs: Vec<_> = pairs
        .map(|it| &it.tls.as_ref().unwrap().certificates[0])
        .collect();
    assert!(Arc::ptr_eq(pairs[0], pairs[1]));
}

#[test]
fn backends_are_verified_by_what_the_system_trusts_or_a_file_or_not_at_all() {
    let folder = Folder::new();
    let system = ClientSettings {
        server_name: None,
        authorities: Some(folder.authorities("b")),
        identity: None,
    };
    assert_eq!(folder.client("tls = {}"), system);
    assert_eq!(folder.client("tls.verify = true"), system);
    let not_at_all = ClientSettings {
        authorities: None,
        ..system
    };
    assert_eq!(folder.client("tls.verify = false"), not_at_all);
    let every_key = "[upstreams.app.tls]\nserver_name = 'App.internal'\nca = 'tls/a.pem'\n\
                     client_cert = 'tls/b.pem'\nclient_key = 'tls/b.key'\nverify = true";
    let expected = ClientSettings {
        server_name: Some("app.internal".into()),
        authorities: Some(folder.authorities("a")),
        identity: Some(folder.pair("b")),
    };
    assert_eq!(folder.client(every_key), expected);
    let address = folder
        .client("tls = { server_name = '0:0::1' }")
        .server_name;
    assert_eq!(address.as_deref(), Some("::1"));
    for unix in ["server_name = 'a'", "verify = false"] {
        folder.client(&format!("backends = ['unix:/a']\ntls = {{ {unix} }}"));
    }
}

#[test]
fn what_is_wrong_with_termination_is_shown_at_its_place() {
    let folder = Folder::new();
    let parse = |text: &str| folder.parse(text);
    let tls = |line: &str| with(&format!("[listeners.web.tls]\n{line}"), "");
    says_of(parse, tls, TERMINATION);
    let with_a = |line: &str| tls(&format!("certificates = [{A}]\n{line}"));
    says_of(parse, with_a, WITH_CERTIFICATES);
}

const TERMINATION: &[Wrong] = &[
    ("", "[listeners.web.tls]", "missing key \"certificates\""),
    ("certificates = []", "[]", "the list is empty"),
    ("certificates = 'a.pem'", "'a.pem'", "a list of tables like"),
    ("certificates = [1]", "1", "wrong type: an integer"),
    (
        "certificates = [{ cert = 'tls/a.pem' }]",
        "{ cert = 'tls/a.pem' }",
        "missing key \"key\"",
    ),
    (
        "certificates = [{ cert = 'tls/a.pem', key = '' }]",
        "''",
        "can't be the path of a file",
    ),
    (
        "certificates = [{ cert = 5, key = 'tls/a.key' }]",
        "5",
        "the path of a file, absolute or from the folder of this one",
    ),
    (
        "certificates = [{ cert = 'tls/none.pem', key = 'tls/a.key' }]",
        "'tls/none.pem'",
        "tls/none.pem: there is no such file",
    ),
    (
        "certificates = [{ cert = 'tls/a.pem', key = 'tls/b.key' }]",
        "'tls/b.key'",
        "tls/b.key: this is not the key of ",
    ),
    (
        "certificates = [{ cert = 'tls/a.key', key = 'tls/a.pem' }]",
        "'tls/a.key'",
        "help: have the files of the certificate and of the key been swapped?",
    ),
    (
        "cert = 'tls/a.pem'\ncertificates = { cert = 'tls/a.pem', key = 'tls/a.key' }",
        "cert",
        "is a key of [listeners.NAME.tls.certificates]",
    ),
];

const WITH_CERTIFICATES: &[Wrong] = &[
    (
        "client_auth = 'require'",
        "'require'",
        "did you mean \"required\"?",
    ),
    (
        "client_auth = 'optional'",
        "[listeners.web.tls]",
        "missing key \"client_ca\"",
    ),
    (
        "client_ca = 'tls/a.pem'",
        "client_ca",
        "no meaning with client_auth \"off\", which is the default",
    ),
    (
        "client_auth = 'off'\nclient_ca = 'tls/none.pem'",
        "client_ca",
        "expected: client_auth = \"optional\" or \"required\" with it",
    ),
    (
        "client_auth = 'required'\nclient_ca = 'tls/a.key'",
        "'tls/a.key'",
        "there is a key in it and no certificate",
    ),
    ("min_version = '1.1'", "'1.1'", "\"1.2\" or \"1.3\""),
    ("min_version = 1.3", "1.3", "wrong type: a float"),
    ("alpn = ['h2', '']", "''", "this name has 0 bytes"),
    (
        "alpn = ['h2', 'h2']",
        "'h2'",
        "\"h2\" is already in the list",
    ),
    ("alpn = [2]", "2", "each of 1 to 255 bytes"),
    ("tickets = 'off'", "'off'", "true or false"),
];

#[test]
fn what_is_wrong_with_tls_to_backends_is_shown_at_its_place() {
    let folder = Folder::new();
    says_of(|text| folder.parse(text), |line| with("", line), BACKENDS);
    let long = format!("alpn = ['{}']", "a".repeat(255));
    let tls = |line: &str| with(&format!("tls = {{ certificates = [{A}], {line} }}"), "");
    assert!(folder.parse(&tls(&long)).is_ok());
    assert!(folder.parse(&tls(&long.replace("']", "a']"))).is_err());
}

const BACKENDS: &[Wrong] = &[
    ("tls = true", "true", "expected: a table"),
    (
        "tls.ca = 'tls/none.pem'",
        "'tls/none.pem'",
        "there is no such file",
    ),
    (
        "tls = { verify = false, ca = 'tls/a.pem' }",
        "ca",
        "\"ca\" has no meaning with verify = false",
    ),
    ("tls.verify = 'false'", "'false'", "without quotes"),
    (
        "tls.client_cert = 'tls/a.pem'",
        "client_cert",
        "a certificate and its key go together",
    ),
    (
        "tls.client_key = 'tls/a.key'",
        "client_key",
        "both \"client_cert\" and \"client_key\", or neither",
    ),
    (
        "tls = { client_cert = 'tls/a.pem', client_key = 'tls/b.key' }",
        "'tls/b.key'",
        "this is not the key of",
    ),
    ("tls.server_name = 'a.b:443'", "'a.b:443'", "without a port"),
    (
        "tls.server_name = '*.a.b'",
        "'*.a.b'",
        "is not a name to verify",
    ),
    (
        "tls.server_name = 'a.b.'",
        "'a.b.'",
        "is not a name to verify",
    ),
    (
        "backends = ['10.0.0.1:1', 'unix:/a']\ntls = {}",
        "{}",
        "backend \"unix:/a\" is a unix socket, which has no name to verify",
    ),
    ("tls.server = 'a'", "server", "unknown key"),
];

#[test]
fn where_no_file_may_be_read_tls_is_refused_unless_it_needs_none() {
    let errors = parse(&with(&format!("tls.certificates = [{A}]"), "")).unwrap_err();
    assert!(errors.to_string().contains("out of reach"), "{errors}");
    let errors = parse(&with("", "tls = {}")).unwrap_err();
    assert_eq!(
        errors.list()[0].message,
        "certificates are out of reach here"
    );
    assert!(parse(&with("", "tls.verify = false")).is_ok());
}

#[test]
fn a_reload_keeps_what_the_present_configuration_has_read() {
    let folder = Folder::new();
    let both = format!("{A}, {B}");
    let ca = "'tls/a.pem'";
    let old = folder.load(&both, ca, &mut SystemResolver).unwrap();

    let mut unchanged = KeepingResolver::new(&old);
    let new = folder.load(&both, ca, &mut unchanged).unwrap();
    assert_eq!((&new, unchanged.into_kept()), (&old, Vec::new()));
    let certificates = |config: &Config| config.listeners[0].tls.clone().unwrap().certificates;
    assert!(Arc::ptr_eq(&certificates(&new)[0], &certificates(&old)[0]));

    // Half a renewal of one, a whole one of the other.
    let key = KeyPair::generate().unwrap();
    fs::write(folder.path("tls/a.key"), key.serialize_pem()).unwrap();
    folder.renew("b");
    let mut half = KeepingResolver::new(&old);
    let new = folder.load(&both, ca, &mut half).unwrap();
    assert_eq!(certificates(&new)[0], certificates(&old)[0]);
    assert_eq!(certificates(&new)[1], folder.pair("b"));
    assert_ne!(certificates(&new)[1], certificates(&old)[1]);
    let kept = half.into_kept();
    let [LoadError { file, what, .. }] = kept.as_slice() else {
        panic!("{kept:?}");
    };
    assert_eq!(*file, folder.path("tls/a.key"));
    assert!(what.contains("this is not the key of"), "{what}");

    fs::remove_file(folder.path("tls/a.pem")).unwrap();
    let mut gone = KeepingResolver::new(&old);
    let new = folder.load(&both, ca, &mut gone).unwrap();
    assert_eq!(new.upstreams, old.upstreams);
    let kept = gone.into_kept();
    assert_eq!(
        kept.len(),
        1,
        "certificate and authorities are one file: {kept:?}"
    );

    let mut other = KeepingResolver::new(&old);
    let errors = folder.load(
        &format!("{both}, {{ cert = 'tls/b.pem', key = 'tls/a.key' }}"),
        ca,
        &mut other,
    );
    let errors = errors.unwrap_err();
    assert_eq!(
        errors.list().len(),
        1,
        "a new pair has to be right: {errors}"
    );
}
