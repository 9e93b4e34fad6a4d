//! A listener's TLS, ready for handshakes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerConfig,
    UnbufferedServerConnection, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};

use super::material::Authorities;
use super::provider;
use super::session::Session;
use super::settings::{ClientAuth, ServerSettings, Version};
use super::tickets::{Ticketer, Tickets};
use crate::time::Instant;

#[cfg(test)]
mod tests;

/// What all connections of a listener have in common.
pub struct Server {
    config: Arc<ServerConfig>,
    tickets: Arc<Tickets>,
}

impl Server {
    /// `context` names the listener: tickets of another one are worth nothing here.
    pub fn new(settings: &ServerSettings, context: &str, tickets: &Arc<Tickets>) -> Self {
        let provider = provider();
        let versions = match settings.min_version {
            Version::Tls12 => &[&TLS13, &TLS12][..],
            Version::Tls13 => &[&TLS13],
        };
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .expect("the provider has cipher suites for both versions");
        let builder = match &settings.client_auth {
            ClientAuth::Off => builder.with_no_client_auth(),
            ClientAuth::Optional(authorities) => {
                builder.with_client_cert_verifier(verifier(authorities, &provider, false))
            }
            ClientAuth::Required(authorities) => {
                builder.with_client_cert_verifier(verifier(authorities, &provider, true))
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(Certificates::new(settings)));
        let alpn = settings.alpn.iter();
        config.alpn_protocols = alpn.map(|name| name.as_bytes().to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ignore_client_order = true;
        if settings.tickets {
            config.ticketer = Arc::new(Ticketer {
                tickets: tickets.clone(),
                policy: policy(context, &settings.client_auth),
            });
        } else {
            config.send_tls13_tickets = 0;
        }
        Self {
            config: Arc::new(config),
            tickets: tickets.clone(),
        }
    }

    /// A connection that a client begins.
    pub fn accept(&self, now: Instant) -> Session {
        self.tickets.tend(now);
        let connection = UnbufferedServerConnection::new(self.config.clone());
        Session::server(connection.expect("the settings are such that a server can be had"))
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Server")
    }
}

/// What a ticket is good for, in bytes.
fn policy(context: &str, client_auth: &ClientAuth) -> Vec<u8> {
    let (kind, authorities) = match client_auth {
        ClientAuth::Off => (0, None),
        ClientAuth::Optional(authorities) => (1, Some(authorities)),
        ClientAuth::Required(authorities) => (2, Some(authorities)),
    };
    let mut policy = vec![kind];
    policy.extend_from_slice(context.as_bytes());
    policy.push(0);
    policy.extend(authorities.into_iter().flat_map(|it| it.digest()));
    policy
}

fn verifier(
    authorities: &Authorities,
    provider: &Arc<CryptoProvider>,
    required: bool,
) -> Arc<dyn rustls::server::danger::ClientCertVerifier> {
    let roots = Arc::new(roots(authorities));
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
    let builder = match required {
        true => builder,
        false => builder.allow_unauthenticated(),
    };
    builder.build().expect("authorities are never empty")
}

pub(super) fn roots(authorities: &Authorities) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities.certificates.iter().cloned());
    roots
}

/// Certificates by the names they are for; of several for the same name the first that the client can
/// verify.
#[derive(Debug)]
struct Certificates {
    exact: HashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    /// By what follows `*.`.
    wildcard: HashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    first: Vec<Arc<CertifiedKey>>,
}

impl Certificates {
    fn new(settings: &ServerSettings) -> Self {
        let mut exact = HashMap::<_, Vec<_>>::new();
        let mut wildcard = HashMap::<_, Vec<_>>::new();
        for pair in &settings.certificates {
            for name in &pair.names {
                let (map, name) = match name.strip_prefix("*.") {
                    Some(below) => (&mut wildcard, below),
                    None => (&mut exact, &**name),
                };
                let list = map.entry(Box::from(name)).or_default();
                list.push(pair.certified.clone());
            }
        }
        let first = settings.certificates.first();
        // Another key for the same names is as much the first.
        let alike = settings.certificates.iter().filter(|it| {
            first.is_some_and(|first| !it.names.is_empty() && it.names == first.names)
        });
        let mut list: Vec<_> = first
            .map(|pair| pair.certified.clone())
            .into_iter()
            .collect();
        list.extend(alike.skip(1).map(|pair| pair.certified.clone()));
        Self {
            exact,
            wildcard,
            first: list,
        }
    }

    fn find(&self, name: &str) -> &[Arc<CertifiedKey>] {
        let by_wildcard = || self.wildcard.get(name.split_once('.')?.1);
        let found = self.exact.get(name).or_else(by_wildcard);
        found.unwrap_or(&self.first)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        let name = name.map(|name| name.strip_suffix('.').map(str::to_owned).unwrap_or(name));
        let candidates = name.as_deref().map_or(&*self.first, |name| self.find(name));
        NAME.replace(name.map(Into::into));
        let schemes = hello.signature_schemes();
        let mut fitting = candidates.iter();
        let fits = |it: &&Arc<CertifiedKey>| it.key.choose_scheme(schemes).is_some();
        fitting.find(fits).or(candidates.first()).cloned()
    }
}

thread_local! {
    /// The name in the hello that was processed last on this thread: a connection of this kind does not
    /// tell it itself.
    static NAME: RefCell<Option<Box<str>>> = const { RefCell::new(None) };
}

/// The name that was asked for since the last time.
pub(super) fn take_name() -> Option<Box<str>> {
    NAME.take()
}
