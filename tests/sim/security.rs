//! Which sides of a run speak TLS, and who tells whom about the client.

use std::cell::Cell;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use ringress::config::{Announce, Listener, Route, Upstream};
use ringress::proto::proxy_header;
use ringress::ring::sim::Layer;
use ringress::tls::{ClientAuth, ClientSettings, ServerSettings, Version};

use crate::layers::{Hearing, NAME, Plain, Secure, Told, announcing, keys};

/// Around a run's payload.
#[derive(Clone, Debug)]
pub(crate) struct Security {
    pub(crate) client: Clients,
    /// The proxy speaks TLS to backends.
    pub(crate) backend: bool,
    /// Clients say a PROXY header of this version first.
    pub(crate) accepts: Option<u8>,
    pub(crate) announce: Announce,
    pub(crate) version: Version,
    /// Bytes of plaintext in a record of a peer at most; `None` = as many as there may be.
    pub(crate) fragment: Option<usize>,
    /// What clients speak by instead, by their number.
    pub(crate) dress_client: Dress,
    /// What connections to backends speak by instead, in the order in which they come.
    pub(crate) dress_backend: Dress,
}

/// What the client's side is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Clients {
    Plain,
    /// Plain, and looked at for a hello.
    LookedAt,
    /// TLS that ends at the proxy.
    Terminated,
    /// TLS that ends at the backend.
    PassedOn,
}

/// How connections to backends get what is under their scripts.
pub(crate) type MakeLayer = Rc<dyn Fn() -> Box<dyn Layer>>;

/// By number.
#[derive(Clone)]
pub(crate) struct Dress(pub(crate) Option<Rc<Dresser>>);

/// The layer of the peer of this number, if it is to have one.
type Dresser = dyn Fn(usize) -> Option<Box<dyn Layer>>;

impl Dress {
    pub(crate) fn new(dress: impl Fn(usize) -> Option<Box<dyn Layer>> + 'static) -> Self {
        Self(Some(Rc::new(dress)))
    }

    fn get(&self, number: usize) -> Option<Box<dyn Layer>> {
        self.0.as_ref()?(number)
    }
}

impl fmt::Debug for Dress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dress({})", self.0.is_some())
    }
}

impl Default for Security {
    fn default() -> Self {
        Self {
            client: Clients::Plain,
            backend: false,
            accepts: None,
            announce: Announce::Never,
            version: Version::Tls13,
            fragment: None,
            dress_client: Dress(None),
            dress_backend: Dress(None),
        }
    }
}

impl Security {
    /// TLS ends at the proxy.
    pub(crate) fn terminated() -> Self {
        Self {
            client: Clients::Terminated,
            ..Self::default()
        }
    }

    /// TLS to backends only.
    pub(crate) fn to_backends() -> Self {
        Self {
            backend: true,
            ..Self::default()
        }
    }

    /// TLS on both sides.
    pub(crate) fn both() -> Self {
        Self {
            client: Clients::Terminated,
            backend: true,
            ..Self::default()
        }
    }

    /// TLS from the client to the backend.
    pub(crate) fn passed_on() -> Self {
        Self {
            client: Clients::PassedOn,
            ..Self::default()
        }
    }

    /// Nobody speaks by anything else than what is said here.
    pub(crate) fn is_honest(&self) -> bool {
        self.dress_client.0.is_none() && self.dress_backend.0.is_none()
    }

    /// Who a client is said to be.
    pub(crate) fn announced(index: usize) -> SocketAddr {
        let ip = Ipv4Addr::from_bits(Ipv4Addr::new(198, 51, 100, 0).to_bits() + index as u32);
        SocketAddr::new(IpAddr::V4(ip), 5_000 + index as u16)
    }

    /// What a client has under its script.
    pub(crate) fn client_layer(&self, index: usize) -> Option<Box<dyn Layer>> {
        if let Some(layer) = self.dress_client.get(index) {
            return Some(layer);
        }
        let secure = || Box::new(self.secure_client()) as Box<dyn Layer>;
        let speaks_tls = matches!(self.client, Clients::Terminated | Clients::PassedOn);
        let inner = speaks_tls.then(secure);
        let Some(version) = self.accepts else {
            return inner;
        };
        let destination = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)), 443);
        let addresses = Some((Self::announced(index), destination));
        let header = match version {
            1 => proxy_header::v1(addresses),
            _ => proxy_header::v2(addresses),
        };
        let inner = inner.unwrap_or_else(|| Box::new(Plain::default()));
        Some(announcing(header, inner))
    }

    pub(crate) fn secure_client(&self) -> Secure {
        let mut config = keys().client(self.version);
        config.max_fragment_size = self.fragment;
        Secure::client(config)
    }

    /// The same for connections to all backends.
    pub(crate) fn backend_layers(&self, told: &Told) -> Option<MakeLayer> {
        let speaks_tls = self.backend || self.client == Clients::PassedOn;
        let hears = self.announce != Announce::Never;
        if !speaks_tls && !hears {
            return None;
        }
        let mut config = keys().server(self.version);
        config.max_fragment_size = self.fragment;
        let config = Arc::new(config);
        let (told, dress, number) = (told.clone(), self.dress_backend.clone(), Cell::new(0));
        Some(Rc::new(move || {
            if let Some(layer) = dress.get(number.replace(number.get() + 1)) {
                return layer;
            }
            let inner: Box<dyn Layer> = match speaks_tls {
                true => Box::new(Secure::server(&config)),
                false => Box::new(Plain::default()),
            };
            match hears {
                true => Box::new(Hearing::new(inner, told.clone())),
                false => inner,
            }
        }))
    }

    /// The same in the configuration.
    pub(crate) fn listener(&self, listener: Listener) -> Listener {
        let routed = matches!(self.client, Clients::LookedAt | Clients::PassedOn);
        let route = || Route {
            sni: vec![NAME.into()],
            upstream: 0,
        };
        let proxies = "10.0.0.0/8".parse().expect("a network");
        Listener {
            tls: (self.client == Clients::Terminated).then(|| ServerSettings {
                certificates: vec![keys().pair.clone()],
                client_auth: ClientAuth::Off,
                min_version: Version::Tls12,
                alpn: Vec::new(),
                tickets: true,
            }),
            routes: routed.then(route).into_iter().collect(),
            trusted_proxies: self.accepts.map(|_| vec![proxies]),
            ..listener
        }
    }

    /// The same in the configuration.
    pub(crate) fn upstream(&self, upstream: Upstream) -> Upstream {
        Upstream {
            announce: self.announce,
            tls: self.backend.then(|| ClientSettings {
                server_name: Some(NAME.into()),
                authorities: Some(keys().authorities.clone()),
                identity: None,
            }),
            ..upstream
        }
    }
}
