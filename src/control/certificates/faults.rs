//! What is wrong with files, told once it has been so for a while: a pair is two files, and in between it
//! doesn't fit.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::material::Found;
use crate::tls::LoadError;

/// How long something may be wrong before it is told.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Everything that is wrong.
#[derive(Default)]
pub(super) struct Faults {
    known: Vec<Known>,
    /// Told in another way, maybe before they were known here.
    told: Vec<LoadError>,
}

struct Known {
    files: Vec<PathBuf>,
    error: LoadError,
    since: Instant,
    told: bool,
}

/// What people are to hear.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum News {
    Wrong(LoadError),
    /// Something that was told is over, without anything new in its place.
    Right(PathBuf),
}

impl Faults {
    /// Why the old content of these files is in use.
    pub(super) fn of(&self, files: &[&Path]) -> Option<&LoadError> {
        let found = self.known.iter().find(|known| known.files == files);
        found.map(|known| &known.error)
    }

    /// Takes down what was found, and says what of it is news.
    pub(super) fn note(&mut self, found: &Found, now: Instant) -> Vec<News> {
        let before = std::mem::take(&mut self.known);
        let mut news = Vec::new();
        for look in &found.0 {
            let files = look.material.files();
            let earlier = before.iter().find(|known| known.files == files);
            let Some(error) = &look.fault else {
                if let Some(earlier) = earlier.filter(|it| it.told) {
                    news.push(News::Right(earlier.error.file.clone()));
                }
                continue;
            };
            let since = earlier.map_or(now, |it| it.since);
            let mut told = earlier.is_some_and(|it| it.told && it.error == *error)
                || self.told.contains(error);
            if !told && now - since >= PATIENCE {
                told = true;
                news.push(News::Wrong(error.clone()));
            }
            self.known.push(Known {
                files: files.into_iter().map(Path::to_owned).collect(),
                error: error.clone(),
                since,
                told,
            });
        }
        self.told
            .retain(|it| self.known.iter().any(|known| known.error == *it));
        news.dedup();
        news
    }

    /// These were told in another way.
    pub(super) fn told(&mut self, errors: &[LoadError]) {
        self.told.extend_from_slice(errors);
    }

    /// When something is to be told, if it is still so.
    pub(super) fn due(&self) -> Option<Instant> {
        let untold = self.known.iter().filter(|known| !known.told);
        untold.map(|known| known.since + PATIENCE).min()
    }
}

pub(super) fn log(news: &News) {
    match news {
        News::Wrong(error) => log_wrong(error),
        News::Right(file) => {
            tracing::info!(file = %file.display(), "the file can be used again");
        }
    }
}

/// Says why something new is not used.
pub(in crate::control) fn log_wrong(error: &LoadError) {
    tracing::error!(
        file = %error.file.display(),
        expected = error.expected,
        hint = error.hint,
        "what was read before stays in use: {}",
        error.what
    );
}
