//! What a configuration refers to outside its file: host names of backends become addresses, and the files
//! of certificates are read, while it is loaded. A trait, because tests and the fuzzer must neither ask a
//! name server nor open a file.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Config;
use crate::tls::{Authorities, ClientAuth, LoadError, Pair};

/// Knows what a configuration refers to.
pub trait Resolver {
    /// All addresses of `host`, each with `port`. None is treated like an error.
    fn resolve(&mut self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;

    /// The certificate chain and the key in two files, whose paths are absolute.
    ///
    /// # Errors
    /// They can't be used. So it always is where files are out of reach, which is the default.
    fn pair(&mut self, certificate: &Path, key: &Path) -> Result<Arc<Pair>, LoadError> {
        let _ = key;
        Err(out_of_reach(certificate))
    }

    /// The authorities in a file, whose path is absolute, or those of the system.
    ///
    /// # Errors
    /// As for [`Self::pair`].
    fn authorities(&mut self, file: Option<&Path>) -> Result<Arc<Authorities>, LoadError> {
        Err(out_of_reach(file.unwrap_or(Path::new(""))))
    }
}

fn out_of_reach(file: &Path) -> LoadError {
    LoadError {
        file: file.to_owned(),
        what: "certificates are out of reach here".to_owned(),
        expected: "a configuration without TLS",
        hint: None,
    }
}

impl<F> Resolver for F
where
    F: FnMut(&str, u16) -> io::Result<Vec<SocketAddr>>,
{
    fn resolve(&mut self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        self(host, port)
    }
}

/// Asks the system: /etc/hosts, then name servers; the file system. Blocks.
#[derive(Clone, Copy, Debug)]
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn resolve(&mut self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok((host, port).to_socket_addrs()?.collect())
    }

    fn pair(&mut self, certificate: &Path, key: &Path) -> Result<Arc<Pair>, LoadError> {
        Pair::load(certificate, key).map(Arc::new)
    }

    fn authorities(&mut self, file: Option<&Path>) -> Result<Arc<Authorities>, LoadError> {
        match file {
            Some(file) => Authorities::load(file),
            None => Authorities::system(),
        }
        .map(Arc::new)
    }
}

/// As [`SystemResolver`], for a configuration that follows another one: what that one has read from a file
/// stays if the file can't be used now, so that half a renewal doesn't refuse a reload. Files that it
/// doesn't use have to be right.
#[derive(Debug)]
pub struct KeepingResolver {
    pairs: HashMap<[PathBuf; 2], Arc<Pair>>,
    authorities: HashMap<Option<PathBuf>, Arc<Authorities>>,
    kept: Vec<LoadError>,
}

impl KeepingResolver {
    /// `present` is the configuration in effect.
    pub fn new(present: &Config) -> Self {
        let mut this = Self {
            pairs: HashMap::new(),
            authorities: HashMap::new(),
            kept: Vec::new(),
        };
        for tls in present.listeners.iter().filter_map(|it| it.tls.as_ref()) {
            this.note_pairs(&tls.certificates);
            match &tls.client_auth {
                ClientAuth::Off => (),
                ClientAuth::Optional(it) | ClientAuth::Required(it) => this.note_authorities(it),
            }
        }
        for tls in present.upstreams.iter().filter_map(|it| it.tls.as_ref()) {
            this.note_pairs(tls.identity.as_slice());
            tls.authorities
                .iter()
                .for_each(|it| this.note_authorities(it));
        }
        this
    }

    /// What is wrong with the files of which the old content was kept, each once.
    pub fn into_kept(self) -> Vec<LoadError> {
        self.kept
    }

    fn note_pairs(&mut self, pairs: &[Arc<Pair>]) {
        for pair in pairs {
            let files = pair.files().map(Path::to_owned);
            self.pairs.insert(files, pair.clone());
        }
    }

    fn note_authorities(&mut self, authorities: &Arc<Authorities>) {
        self.authorities
            .insert(authorities.file.clone(), authorities.clone());
    }

    /// What is new, or else what was there, if there was something. What has not changed stays the same
    /// allocation, so that whoever made something of it can tell.
    fn choose<T: PartialEq>(
        &mut self,
        new: Result<Arc<T>, LoadError>,
        old: Option<Arc<T>>,
    ) -> Result<Arc<T>, LoadError> {
        match (new, old) {
            (Ok(new), Some(old)) if new == old => Ok(old),
            (Err(error), Some(old)) => {
                if !self.kept.contains(&error) {
                    self.kept.push(error);
                }
                Ok(old)
            }
            (new, _) => new,
        }
    }
}

impl Resolver for KeepingResolver {
    fn resolve(&mut self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        SystemResolver.resolve(host, port)
    }

    fn pair(&mut self, certificate: &Path, key: &Path) -> Result<Arc<Pair>, LoadError> {
        let old = self.pairs.get(&[certificate, key].map(Path::to_owned));
        let old = old.cloned();
        self.choose(SystemResolver.pair(certificate, key), old)
    }

    fn authorities(&mut self, file: Option<&Path>) -> Result<Arc<Authorities>, LoadError> {
        let old = self.authorities.get(&file.map(Path::to_owned)).cloned();
        self.choose(SystemResolver.authorities(file), old)
    }
}
