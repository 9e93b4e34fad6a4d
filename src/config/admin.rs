//! `[admin]`: from the file's table to the model. The token is a secret: nothing that is shown of a
//! configuration has it, the lines of the file that a finding quotes included (`secret.rs`).

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};

use toml::de::DeValue;

use super::diagnostics::Fault;
use super::section::{Findings, Section, Value};
use super::value::{self, Read};
use super::{Admin, ControlSocket, Listener, Runtime, endpoint, keys};
use crate::address::Address;

/// What whoever asks over TCP shows to be believed. `Debug` doesn't have it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Arc<str>);

impl Token {
    /// The secret itself: 1 to 256 visible characters of ASCII.
    pub fn secret(&self) -> &str {
        &self.0
    }

    /// By which another one is told from it within this process, and by which nobody can guess it: the digits
    /// are others in each process.
    pub fn mark(&self) -> String {
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        format!("{:016x}", KEY.hash_one(&self.0))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// The endpoint for operators. Listeners and the control socket have their addresses already.
pub(super) fn read(
    root: &Section<'_>,
    (listeners, runtime): (&[Listener], &Runtime),
    findings: &mut Findings,
) -> Admin {
    let section = root.child("admin", keys::ADMIN, findings);
    let default = Admin::default();
    let listen = section.read("listen", None, findings, |value| {
        let address = address(value)?;
        not_bound(&address, listeners, runtime)?;
        Ok(Some(address))
    });
    let written = section.value("token");
    let token = section.read("token", None, findings, token);
    if let Some(address) = &listen
        && written.is_none()
        && !is_of_this_machine(address)
        && let Some(place) = section.value("listen").map(Value::span)
    {
        findings.push(place, needs_token(address));
    }
    Admin {
        listen,
        token,
        max_series: section.read("max_series", default.max_series, findings, |value| {
            value::at_least_one(value, MOST_SERIES)
        }),
    }
}

/// Ten million lines are more than anybody scrapes.
const MOST_SERIES: u32 = 10_000_000;
const LONGEST_TOKEN: usize = 256;
const LISTEN_FORM: &str = "\"ip:port\", \"[ip6]:port\" or \"unix:/path\"";

fn address(value: &DeValue<'_>) -> Read<Address> {
    let text = value::string(value).map_err(|_| value::wrong_type(value, LISTEN_FORM))?;
    endpoint::bind(text).map_err(|fault| match text.starts_with("unix:") {
        true => fault,
        false => fault.expected(LISTEN_FORM),
    })
}

fn token(value: &DeValue<'_>) -> Read<Option<Token>> {
    let expected = format!(
        "1 to {LONGEST_TOKEN} visible characters of ASCII without spaces, such as those of `openssl rand -hex 32`"
    );
    let text = value::string(value).map_err(|_| value::wrong_type(value, &expected))?;
    let fits = (1..=LONGEST_TOKEN).contains(&text.len());
    match fits && text.bytes().all(|c| c.is_ascii_graphic()) {
        true => Ok(Some(Token(text.into()))),
        false => Err(Fault::new("this can't be a token").expected(expected)),
    }
}

/// Nobody reaches it from elsewhere.
fn is_of_this_machine(address: &Address) -> bool {
    let ip = address.as_ip().map(|address| address.ip().to_canonical());
    ip.is_none_or(|ip| ip.is_loopback())
}

fn needs_token(address: &Address) -> Fault {
    Fault::new(format!(
        "{address} can be reached from other machines, and there is no admin.token"
    ))
    .expected("an address of this machine alone (\"127.0.0.1:9900\", \"unix:/path\"), or a token")
    .hint("token = \"...\" with the output of `openssl rand -hex 32`")
}

/// Operators and clients can't come in at the same address.
fn not_bound(address: &Address, listeners: &[Listener], runtime: &Runtime) -> Read<()> {
    let is_port_zero = address.as_ip().is_some_and(|ip| ip.port() == 0);
    let takes_it =
        |it: &&Listener| it.protocol.udp().is_none() && !is_port_zero && it.bind.contains(address);
    let owner = match (
        listeners.iter().find(takes_it),
        &runtime.control_socket,
        address,
    ) {
        (Some(listener), ..) => format!("listener {:?}", listener.name),
        (None, ControlSocket::Path(path), Address::Unix(own)) if path == own => {
            "runtime.control_socket".to_owned()
        }
        _ => return Ok(()),
    };
    Err(Fault::new(format!("{address} is already bound by {owner}"))
        .expected("an address of its own"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, SystemResolver};

    const REST: &str = "listeners.web = { bind = '127.0.0.1:80', upstream = 'app' }\nupstreams.app.backends = ['127.0.0.1:81']\n";

    fn parse(admin: &str) -> Result<Admin, String> {
        let text = format!("{REST}[admin]\n{admin}\n");
        let config = config::parse(&text, "a.toml", &mut SystemResolver);
        config.map(|it| it.admin).map_err(|it| it.to_string())
    }

    #[test]
    fn the_token_is_shown_nowhere() {
        let admin = parse("token = 'hunter2'").unwrap();
        let token = admin.token.clone().unwrap();
        assert_eq!(token.secret(), "hunter2");
        assert!(!format!("{admin:?}").contains("hunter2"));
        assert_eq!(token.mark(), Token("hunter2".into()).mark());
        assert_ne!(token.mark(), Token("hunter3".into()).mark());
        for wrong in [
            "token = 'hunter2 hunter2'",
            "token = 'hunter2'\nmax_series = 0",
            "listen = 'nonsense'\ntoken = \"hunter2\"",
            "token = [ 'hunter2' ]",
            "token = 'hunter2'\ntokens = 5",
        ] {
            let said = parse(wrong).unwrap_err();
            assert!(!said.contains("hunter2"), "{said}");
        }
    }

    /// What is said of `text` behind [`REST`], for people and for machines.
    fn said_of(text: &str) -> String {
        let text = format!("{REST}{text}\n");
        let said = config::parse(&text, "a.toml", &mut SystemResolver).unwrap_err();
        format!("{said}{}", serde_json::to_string(&said).unwrap())
    }

    #[test]
    fn no_slip_shows_the_token() {
        let own = IN_ADMIN.iter().map(|slip| format!("[admin]\n{slip}"));
        for slip in own.chain(ELSEWHERE.iter().map(ToString::to_string)) {
            let said = said_of(&slip);
            assert!(!said.contains("hunter2"), "{slip}\n{said}");
        }
    }

    const IN_ADMIN: &[&str] = &[
        // Of what stands there twice, the library keeps the first.
        "token = 'old'\ntoken = 'hunter2'",
        "token = 'hunter2'\ntoken = 'hunter2'",
        "token = 'old'\n\"token\" = 'hunter2'",
        "token = 'old'\ntoken = \"\"\"\nhunter2\"\"\"",
        "token 'hunter2'",
        "token\"hunter2\"",
        "token: hunter2",
        "token hunter2",
        "token = hunter2",
        "\"token\" 'hunter2'",
        "token = 'hunter2",
        "token = hunter2'",
        "token = \"hunter2'",
        "token = 'old' hunter2",
        "token = 'old'hunter2'",
        "token = 'old', hunter2'",
        "token = \"old\"hunter2\"",
        "token = \"\\q hunter2\"",
        "token == 'hunter2'",
        "token := 'hunter2'",
        "token =\n'hunter2'",
        "token =\nhunter2",
        "token =\n\"\"\"\nhunter2\"\"\"",
        "token\n= 'hunter2'",
        "token\n'hunter2'",
        "token [\n'hunter2'\n]",
        "token = [\n'hunter2'\n",
        "token \"\"\"\nhunter2\n\"\"\"",
        "token '''\nhunter2'''",
        "token = \"\"\"hunter2\nhunter2 hunter2",
        "= 'hunter2'",
        "'hunter2'",
        "tokn = 'hunter2'",
        "Token = 'hunter2'",
        "tokens = 'hunter2'",
        "auth_token = 'hunter2'",
        "password = 'hunter2'",
        "token.is = 'hunter2'",
        "token = { is = 'hunter2' }",
        "\"tok\\u0065n\" = \"hunter2 hunter2\"",
        "listen = '127.0.0.1:9' token = 'hunter2'",
        "listen = '127.0.0.1:9', token = 'hunter2'",
        "max_series = 0 # token = 'hunter2'",
        "hunter2",
        "token = 'old'\r\ntoken = 'hunter2'",
        "token = 'old'\rtoken = 'hunter2'",
        "token = [\n'old',\n'hunter2'\n] x",
        "listen = 'x'\n'token' : \"hunter2\"",
        "# token = 'old'\n'token' = 'hunter2' 'hunter2'",
    ];

    const ELSEWHERE: &[&str] = &[
        "admin.token 'hunter2'",
        "admin.token = 'old'\nadmin.token = 'hunter2'",
        "\"admin.token\" = 'hunter2'",
        "admin.tokens = 'hunter2'",
        "admin.token =\n'hunter2'",
        "admin.token =\nhunter2",
        "admin:\n  token:\n    hunter2",
        "[admin] password = ['hunter2']",
        "admin.token \"\"\"\nhunter2\"\"\"",
        "admin token = 'hunter2'",
        "admin = { token = 'old', token = 'hunter2' }",
        "admin = { token 'hunter2' }",
        "admin = { listen = 5, token 'hunter2', max_series = 0 }",
        "admin = { token = 'hunter2', max_series = 0",
        "admin = { token = 'old'hunter2', max_series = 0 }",
        "admin = { tokn = 'hunter2' }",
        "admin: { \"token\": \"hunter2\" }",
        "admin:\n  token: hunter2",
        "[admin] token = 'hunter2'",
        "[admin\ntoken = 'hunter2'\ntoken = 'hunter2'",
        "[admn]\ntokn 'hunter2'",
        "[ 'admin' ]\npassword = 'hunter2'",
        "[[admin]]\ntoken 'hunter2'",
        "admin . token = 'old'\nadmin . token 'hunter2'",
        "admin.'token' = 'old'\nadmin.'token' = 'hunter2'",
        "\"admin\".\"token\" 'hunter2'",
        "'admin'.token: \"hunter2\"",
        "admin.token = [\n'hunter2'\n",
        "admin.token = [\n'old',\n'hunter2'\n] x",
        "admin = {\n  listen = 5,\n  token 'hunter2'\n}",
        "admin = {\n  token = 'old',\n  'token' = 'hunter2',\n}",
        "admin = {\n  tokn = 'old'\n  password = 'hunter2',\n}",
        "admin = { 'token' = 'old', \"token\" = \"hunter2\" }",
        "admin = { token: hunter2 }",
        "admin = 'hunter2'",
        "admin 'hunter2'",
        "admin.password = 'hunter2'",
        "[admin.token]\nis = 'hunter2'",
        "[admin]\n[token]\nhunter2",
        "[admin] 'hunter2'",
    ];

    #[test]
    fn what_is_no_token_is_quoted() {
        let inline = "admin = { token = 'hunter2', listen = 5 }";
        let said = said_of(inline);
        assert!(
            said.contains("admin = { token = '*******', listen = 5 }"),
            "{said}"
        );
        for line in [
            "[admin]\ntoken = 'a'\nlisten = 'nonsense'",
            "[admin]\ntoken = 'a'\nmax_serie = 5",
            "[upstreams.tokens]\nbackends = ['token.example']",
            "[upstreams.b]\nbackends = ['127.0.0.1:1', 'token.example']",
            "[listeners.token] # is wrong",
            "admin.listen = 'nonsense'",
            "admin = {\n  token = 'a',\n  listen = 'nonsense',\n}\nnonsense = 5",
            "[listeners.b]\nbind = '127.0.0.1:82'\nupstream = \"token\"",
        ] {
            let quoted = line.lines().last().unwrap();
            let said = said_of(line);
            assert!(said.contains(quoted), "{quoted}\n{said}");
        }
    }

    #[test]
    fn loopback_needs_no_token_however_it_is_written() {
        for listen in [
            "127.0.0.1:9",
            "127.1.2.3:9",
            "[::1]:9",
            "[::ffff:127.0.0.1]:9",
            "unix:/run/a",
        ] {
            parse(&format!("listen = '{listen}'")).unwrap();
        }
        for listen in ["0.0.0.0:9", "[::]:9", "10.0.0.1:9", "[fe80::1]:9"] {
            let said = parse(&format!("listen = '{listen}'")).unwrap_err();
            assert!(said.contains("no admin.token"), "{said}");
            parse(&format!("listen = '{listen}'\ntoken = 'a'")).unwrap();
        }
    }
}
