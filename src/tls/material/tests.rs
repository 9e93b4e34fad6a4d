//! What is taken for a pair and for authorities, and what is said of everything else. Files are those that
//! openssl writes.

use std::fs;
use std::process::Command;

use tempfile::TempDir;

use super::*;

/// A folder in which openssl is at work.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(&self.0)
            .output()
            .expect("openssl is installed");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {arguments}\n{said}");
    }

    /// `name`.pem, a certificate that signs itself, with its key on P-256 in `name`.key.
    fn pair(&self, name: &str, more: &str) {
        self.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
             -keyout {name}.key -out {name}.pem {more}"
        ));
    }

    fn load(&self, certificate: &str, key: &str) -> Result<Pair, LoadError> {
        Pair::load(&self.path(certificate), &self.path(key))
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }
}

const PLAIN: &str = "-subj /CN=a.example";

const ALTERNATIVE: &str = "-subj /CN=cn.example \
     -addext subjectAltName=DNS:A.example,DNS:*.b.Example,IP:192.0.2.1,DNS:x,email:a@c.example";

#[test]
fn keys_of_every_form_are_read() {
    let folder = Folder::new();
    for (name, generate, forms) in [
        (
            "rsa",
            "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa.key",
            &["rsa -traditional"][..],
        ),
        (
            "ec",
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ec.key",
            &["ec"],
        ),
        ("ed", "genpkey -algorithm ED25519 -out ed.key", &[]),
    ] {
        folder.openssl(generate);
        folder.openssl(&format!(
            "req -x509 -key {name}.key -days 3650 -out {name}.pem {PLAIN}"
        ));
        let pair = folder.load(&format!("{name}.pem"), &format!("{name}.key"));
        let pair = pair.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(pair.names, [Box::from("a.example")], "{name}");
        for form in forms {
            folder.openssl(&format!("{form} -in {name}.key -out other.key"));
            let other = folder.text("other.key");
            assert!(!other.contains("BEGIN PRIVATE KEY"), "{form}\n{other}");
            let other = folder.load(&format!("{name}.pem"), "other.key");
            let other = other.unwrap_or_else(|error| panic!("{form}: {error}"));
            assert_eq!(other.certified.cert, pair.certified.cert);
        }
    }
    // As `openssl ecparam -genkey` writes it.
    folder.openssl("ecparam -name prime256v1 -genkey -out ec.key");
    assert!(folder.text("ec.key").contains("BEGIN EC PARAMETERS"));
    folder.openssl(&format!("req -x509 -key ec.key -out ec.pem {PLAIN}"));
    assert!(folder.load("ec.pem", "ec.key").is_ok());
}

#[test]
fn an_encrypted_key_says_how_to_decrypt_it() {
    let folder = Folder::new();
    folder.pair("a", PLAIN);
    folder.openssl("pkey -in a.key -aes256 -passout pass:x -out pkcs8.key");
    folder.openssl("ec -in a.key -aes256 -passout pass:x -out sec1.key");
    for name in ["pkcs8.key", "sec1.key"] {
        let error = folder.load("a.pem", name).unwrap_err();
        assert_eq!(error.what, "the key is encrypted", "{name}");
        let path = folder.path(name);
        let hint = format!("decrypt it: openssl pkey -in {} -out NEW", path.display());
        assert_eq!((error.hint, error.file), (Some(hint), path));
    }
}

#[test]
fn names_are_the_alternative_ones_or_else_the_common_name() {
    let folder = Folder::new();
    for (more, names) in [
        (ALTERNATIVE, &["a.example", "*.b.example", "x"][..]),
        ("-subj /O=x/CN=*.C.example", &["*.c.example"]),
        ("-subj /CN=192.0.2.1", &[]),
        ("-subj /CN=a -addext subjectAltName=IP:192.0.2.1", &[]),
        ("-subj /CN=not*a*name", &[]),
    ] {
        folder.pair("a", more);
        let pair = folder.load("a.pem", "a.key").unwrap();
        let found: Vec<_> = pair.names.iter().map(|it| &**it).collect();
        assert_eq!(found, names, "{more}");
    }
}

#[test]
fn a_certificate_that_has_expired_is_read_with_its_end() {
    let folder = Folder::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap();
    parameters.not_before = rcgen::date_time_ymd(2001, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2001, 9, 9);
    let certificate = parameters.self_signed(&key).unwrap();
    folder.write("a.pem", certificate.pem() + &key.serialize_pem());
    let pair = folder.load("a.pem", "a.pem").unwrap();
    assert_eq!(pair.not_after, 999_993_600);
    assert_eq!(pair.files(), [folder.path("a.pem"), folder.path("a.pem")]);
}

#[test]
fn a_chain_has_the_certificate_of_the_key_first() {
    let folder = Folder::new();
    folder.pair("a", PLAIN);
    folder.pair("ca", "-subj /CN=ca");
    folder.write("chain.pem", folder.text("a.pem") + &folder.text("ca.pem"));
    let chain = folder.load("chain.pem", "a.key").unwrap();
    assert_eq!(chain.certified.cert.len(), 2);
    assert_eq!(chain.names, [Box::from("a.example")]);

    folder.write("wrong.pem", folder.text("ca.pem") + &folder.text("a.pem"));
    let error = folder.load("wrong.pem", "a.key").unwrap_err();
    let certificate = folder.path("wrong.pem");
    let what = format!("this is not the key of {}", certificate.display());
    assert_eq!((error.what, error.file), (what, folder.path("a.key")));
    assert!(error.hint.unwrap().contains("the key of certificate 2"));
    let error = folder.load("ca.pem", "a.key").unwrap_err();
    assert_eq!(error.hint, None);
}

#[test]
fn whatever_is_no_certificate_says_what_it_is() {
    let folder = Folder::new();
    folder.pair("a", PLAIN);
    folder.openssl("req -new -key a.key -out a.csr -subj /CN=a.example");
    folder.openssl("x509 -req -in a.csr -signkey a.key -out v1.pem");
    folder.openssl("x509 -in a.pem -outform der -out a.der");
    let whole = folder.text("a.pem");
    folder.write("half.pem", &whole[..whole.len() / 2]);
    let at = whole.len() / 2;
    folder.write("torn.pem", format!("{}*{}", &whole[..at], &whole[at..]));
    folder.write("empty.pem", "");
    folder.write("other.pem", folder.text("a.pem").replace("MII", "MIJ"));
    folder.write("long.pem", vec![b'\n'; (1 << 20) + 1]);
    for (file, what) in [
        ("none.pem", "there is no such file"),
        (".", "this is a directory"),
        ("/dev/zero", "this is no regular file"),
        ("long.pem", "the file has more than 1 MiB"),
        ("empty.pem", "there is no certificate in it"),
        ("a.key", "there is a key in it and no certificate"),
        ("a.csr", "there is a request for a certificate in it"),
        ("half.pem", "its PEM ends in the middle"),
        ("torn.pem", "what it holds is not Base64"),
        ("other.pem", "certificate 1 in it is not one of X.509"),
        ("v1.pem", "the certificate in it can't be used"),
    ] {
        let error = folder.load(file, "a.key").unwrap_err();
        assert!(error.what.contains(what), "{error}");
        assert_eq!(error.file, folder.path(file));
    }
    let der = folder.load("a.der", "a.key").unwrap_err();
    assert!(der.hint.unwrap().contains("openssl x509 -inform der"));
}

#[test]
fn whatever_is_no_key_says_what_it_is() {
    let folder = Folder::new();
    folder.pair("a", PLAIN);
    folder.openssl("pkey -in a.key -pubout -out public.key");
    folder.openssl("pkey -in a.key -outform der -out der.key");
    folder.openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out short.key");
    let whole = folder.text("a.key");
    folder.write("half.key", &whole[..whole.len() / 2]);
    for (file, what) in [
        ("none.key", "there is no such file"),
        (".", "this is a directory"),
        ("a.pem", "there is a certificate in it and no key"),
        (
            "public.key",
            "there is a public key in it and no private one",
        ),
        ("der.key", "there is no key in it"),
        ("half.key", "its PEM ends in the middle"),
        ("short.key", "the key in it can't be used"),
    ] {
        let error = folder.load("a.pem", file).unwrap_err();
        assert_eq!(error.file, folder.path(file), "{error}");
        assert!(error.what.contains(what), "{error}");
        assert!(
            error
                .to_string()
                .starts_with(&folder.0.path().display().to_string())
        );
    }
}

#[test]
fn other_bytes_are_another_pair_with_another_fingerprint() {
    let folder = Folder::new();
    for name in ["a", "b", "ca"] {
        folder.pair(name, PLAIN);
    }
    let a = folder.load("a.pem", "a.key").unwrap();
    folder.write("copy.pem", folder.text("a.pem"));
    let copy = folder.load("copy.pem", "a.key").unwrap();
    assert_eq!((&a, a.fingerprint()), (&copy, copy.fingerprint()));
    assert_eq!(a.fingerprint().len(), 16);
    folder.write("chain.pem", folder.text("a.pem") + &folder.text("ca.pem"));
    let chain = folder.load("chain.pem", "a.key").unwrap();
    let b = folder.load("b.pem", "b.key").unwrap();
    for other in [&chain, &b] {
        assert_ne!(&a, other);
        assert_ne!(a.fingerprint(), other.fingerprint());
    }
}

#[test]
fn authorities_are_all_certificates_of_a_file() {
    let folder = Folder::new();
    for name in ["a", "b"] {
        folder.pair(name, PLAIN);
    }
    folder.write("both.pem", folder.text("a.pem") + &folder.text("b.pem"));
    let both = Authorities::load(&folder.path("both.pem")).unwrap();
    assert_eq!(both.certificates.len(), 2);
    assert_eq!(both.file, Some(folder.path("both.pem")));
    let one = Authorities::load(&folder.path("a.pem")).unwrap();
    assert_ne!(both, one);
    assert_ne!(both.fingerprint(), one.fingerprint());
    let torn = folder
        .text("both.pem")
        .replacen("MII", "MIJ", 2)
        .replacen("MIJ", "MII", 1);
    folder.write("torn.pem", torn);
    for (file, what) in [
        ("a.key", "there is a key in it and no certificate"),
        ("torn.pem", "certificate 2 in it can't be used"),
        ("none.pem", "there is no such file"),
    ] {
        let error = Authorities::load(&folder.path(file)).unwrap_err();
        assert!(error.what.contains(what), "{error}");
    }
}

#[test]
fn the_authorities_of_the_system_have_no_file() {
    match Authorities::system() {
        Ok(system) => {
            assert_eq!(system.file, None);
            assert!(!system.certificates.is_empty());
            assert_eq!(Ok(system), Authorities::system());
        }
        Err(error) => assert_eq!(
            error.to_string(),
            "this system has no certificates of authorities"
        ),
    }
}
