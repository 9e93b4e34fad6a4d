//! What a configuration has from files of certificates, and how what was found in them is put in place.

use std::path::Path;
use std::sync::Arc;

use super::expiry::date;
use crate::config::{Config, Listener, Upstream};
use crate::tls::{Authorities, ClientAuth, LoadError, Pair};

/// What is read from one or two files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::control) enum Material {
    Pair(Arc<Pair>),
    Authorities(Arc<Authorities>),
}

impl Material {
    /// Where it is read. Nowhere, if it is the system's.
    pub(in crate::control) fn files(&self) -> Vec<&Path> {
        match self {
            Self::Pair(pair) => pair.files().to_vec(),
            Self::Authorities(authorities) => authorities.file.as_deref().into_iter().collect(),
        }
    }

    /// It is a certificate with its key.
    pub(in crate::control) fn pair(&self) -> Option<&Arc<Pair>> {
        match self {
            Self::Pair(pair) => Some(pair),
            Self::Authorities(_) => None,
        }
    }

    /// What is in the files now.
    ///
    /// # Errors
    /// It can't be used.
    pub(super) fn read(&self) -> Result<Self, LoadError> {
        match self {
            Self::Pair(pair) => Pair::load(&pair.certificate, &pair.key)
                .map(Arc::new)
                .map(Self::Pair),
            Self::Authorities(authorities) => match &authorities.file {
                Some(file) => Authorities::load(file).map(Arc::new).map(Self::Authorities),
                None => Ok(self.clone()),
            },
        }
    }
}

/// Everything that a configuration has from files, once for each place that names it.
pub(in crate::control) fn materials(config: &Config) -> Vec<Material> {
    let listeners = config.listeners.iter().flat_map(of_listener);
    let upstreams = config.upstreams.iter().flat_map(of_upstream);
    listeners.chain(upstreams).collect()
}

/// What a listener has from files.
pub(in crate::control) fn of_listener(listener: &Listener) -> Vec<Material> {
    let Some(tls) = &listener.tls else {
        return Vec::new();
    };
    let authorities = match &tls.client_auth {
        ClientAuth::Off => None,
        ClientAuth::Optional(authorities) | ClientAuth::Required(authorities) => Some(authorities),
    };
    from_files(&tls.certificates, authorities)
}

/// What an upstream has from files.
pub(in crate::control) fn of_upstream(upstream: &Upstream) -> Vec<Material> {
    upstream.tls.as_ref().map_or_else(Vec::new, |tls| {
        from_files(tls.identity.as_slice(), tls.authorities.as_ref())
    })
}

fn from_files(pairs: &[Arc<Pair>], authorities: Option<&Arc<Authorities>>) -> Vec<Material> {
    let pairs = pairs.iter().cloned().map(Material::Pair);
    let authorities = authorities.filter(|authorities| authorities.file.is_some());
    let authorities = authorities.cloned().map(Material::Authorities);
    pairs.chain(authorities).collect()
}

/// The same, once for each file or pair of them.
pub(super) fn distinct(config: &Config) -> Vec<Material> {
    let mut all = materials(config);
    all.sort_by(|a, b| a.files().cmp(&b.files()));
    all.dedup_by(|a, b| a.files() == b.files());
    all
}

/// What files hold, as far as it can be used.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(in crate::control) struct Found(pub(super) Vec<Look>);

/// What was found in a file, or in a pair of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Look {
    /// The last that could be used.
    pub(super) material: Material,
    /// Why it is not the present one.
    pub(super) fault: Option<LoadError>,
}

/// Something has taken effect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Renewal {
    user: User,
    material: Material,
}

/// Who goes by it.
#[derive(Clone, PartialEq, Eq, Debug)]
enum User {
    Listener(Arc<str>),
    Upstream(Arc<str>),
}

impl Found {
    /// All pairs.
    pub(super) fn pairs(&self) -> impl Iterator<Item = &Arc<Pair>> {
        self.0.iter().filter_map(|look| look.material.pair())
    }

    /// Puts everything in place that is other than what `config` has, and says what that was.
    pub(super) fn put(&self, config: &mut Config) -> Vec<Renewal> {
        let mut renewed = Vec::new();
        for listener in &mut config.listeners {
            let mut note = |material| {
                let user = User::Listener(listener.name.clone());
                renewed.push(Renewal { user, material });
            };
            let Some(tls) = &mut listener.tls else {
                continue;
            };
            for pair in &mut tls.certificates {
                self.put_pair(pair, &mut note);
            }
            match &mut tls.client_auth {
                ClientAuth::Off => {}
                ClientAuth::Optional(authorities) | ClientAuth::Required(authorities) => {
                    self.put_authorities(authorities, &mut note);
                }
            }
        }
        for upstream in &mut config.upstreams {
            let mut note = |material| {
                let user = User::Upstream(upstream.name.clone());
                renewed.push(Renewal { user, material });
            };
            let Some(tls) = &mut upstream.tls else {
                continue;
            };
            if let Some(pair) = &mut tls.identity {
                self.put_pair(pair, &mut note);
            }
            if let Some(authorities) = &mut tls.authorities {
                self.put_authorities(authorities, &mut note);
            }
        }
        renewed
    }

    fn put_pair(&self, pair: &mut Arc<Pair>, note: &mut impl FnMut(Material)) {
        let found = self.pairs().find(|it| it.files() == pair.files());
        if let Some(found) = found.filter(|found| *found != pair) {
            *pair = found.clone();
            note(Material::Pair(found.clone()));
        }
    }

    fn put_authorities(&self, present: &mut Arc<Authorities>, note: &mut impl FnMut(Material)) {
        let mut all = self.0.iter().filter_map(|look| match &look.material {
            Material::Authorities(authorities) => Some(authorities),
            Material::Pair(_) => None,
        });
        let found = all.find(|it| it.file.is_some() && it.file == present.file);
        if let Some(found) = found.filter(|found| *found != present) {
            *present = found.clone();
            note(Material::Authorities(found.clone()));
        }
    }
}

impl Renewal {
    pub(super) fn log(&self) {
        let (listener, upstream) = match &self.user {
            User::Listener(name) => (Some(&**name), None),
            User::Upstream(name) => (None, Some(&**name)),
        };
        match &self.material {
            Material::Pair(pair) => tracing::info!(
                listener,
                upstream,
                file = %pair.certificate.display(),
                names = pair.names.join(", "),
                not_after = date(pair.not_after),
                "certificate renewed"
            ),
            Material::Authorities(authorities) => tracing::info!(
                listener,
                upstream,
                file = authorities.file.as_ref().map(|it| it.display().to_string()),
                "authorities renewed"
            ),
        }
    }
}
