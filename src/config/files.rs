//! Files of certificates that a configuration names.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::DeValue;

use super::diagnostics::Fault;
use super::resolve::Resolver;
use super::section::{Findings, Section};
use super::value::{self, Read};
use crate::tls::{Authorities, LoadError, Pair};

/// Reads the files, each once, so that whoever names the same one gets the same of it. What could not be
/// read is tried again.
pub(super) struct Files<'a> {
    /// Where relative paths begin.
    folder: PathBuf,
    pub(super) resolver: &'a mut dyn Resolver,
    pairs: HashMap<[PathBuf; 2], Arc<Pair>>,
    authorities: HashMap<Option<PathBuf>, Arc<Authorities>>,
}

impl<'a> Files<'a> {
    /// `configuration` is the path of the file that names the others.
    pub(super) fn beside(configuration: &Path, resolver: &'a mut dyn Resolver) -> Self {
        let folder = configuration.parent().unwrap_or(configuration);
        // So that a path means the same however the process was started. `join` keeps what is not empty.
        let absolute = std::path::absolute(Path::new(".").join(folder));
        Self {
            folder: absolute.unwrap_or_else(|_| folder.to_owned()),
            resolver,
            pairs: HashMap::new(),
            authorities: HashMap::new(),
        }
    }

    /// The pair in the files that the two keys name; `None` if there is none or something is wrong.
    pub(super) fn pair(
        &mut self,
        section: &Section<'_>,
        [certificate, key]: [&str; 2],
        findings: &mut Findings,
    ) -> Option<Arc<Pair>> {
        let (certificate, key) = (section.value(certificate), section.value(key));
        let mut path = |value: Option<&super::section::Value<'_>>| {
            let value = value?;
            findings.keep(value.span(), self.path(value.get_ref()))
        };
        let files = [path(certificate), path(key)];
        let [Some(certificate_file), Some(key_file)] = &files else {
            return None;
        };
        let read = self.read_pair(certificate_file, key_file);
        let of_key = |error: &LoadError| error.file == *key_file && key_file != certificate_file;
        let place = match &read {
            Err(error) if of_key(error) => key,
            _ => certificate,
        };
        findings.keep(place?.span(), read.map_err(fault))
    }

    fn read_pair(&mut self, certificate: &Path, key: &Path) -> Result<Arc<Pair>, LoadError> {
        let files = [certificate, key].map(Path::to_owned);
        if let Some(pair) = self.pairs.get(&files) {
            return Ok(pair.clone());
        }
        let pair = self.resolver.pair(certificate, key)?;
        self.pairs.insert(files, pair.clone());
        Ok(pair)
    }

    /// The authorities in the file that a value names; without a value those of the system.
    pub(super) fn authorities(&mut self, value: Option<&DeValue<'_>>) -> Read<Arc<Authorities>> {
        let file = value.map(|value| self.path(value)).transpose()?;
        if let Some(authorities) = self.authorities.get(&file) {
            return Ok(authorities.clone());
        }
        let authorities = self.resolver.authorities(file.as_deref()).map_err(fault)?;
        self.authorities.insert(file, authorities.clone());
        Ok(authorities)
    }

    /// The path that a value names, absolute.
    pub(super) fn path(&self, value: &DeValue<'_>) -> Read<PathBuf> {
        let text = value::string(value).map_err(|_| value::wrong_type(value, PATH_FORM))?;
        if text.is_empty() || text.contains('\0') || text.ends_with('/') {
            return Err(
                Fault::new(format!("{text:?} can't be the path of a file")).expected(PATH_FORM)
            );
        }
        // Without `.` and doubled slashes: what is the same path looks the same.
        let path = self.folder.join(text);
        Ok(path.components().collect())
    }
}

const PATH_FORM: &str = "the path of a file, absolute or from the folder of this one";

fn fault(error: LoadError) -> Fault {
    let fault = Fault::new(error.to_string()).expected(error.expected);
    match error.hint {
        Some(hint) => fault.hint(hint),
        None => fault,
    }
}
