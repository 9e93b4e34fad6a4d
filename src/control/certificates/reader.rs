//! Looks at files, and reads those that are not what they were. Everything here may block.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::links;
use super::material::{Found, Look, Material};
use super::watch::{Event, Watches};
use crate::tls::LoadError;

/// Files, and what was last found in them.
pub(super) struct Reader {
    entries: Vec<Entry>,
    watches: Option<Watches>,
}

struct Entry {
    material: Material,
    /// Before it was last read; empty = it was not.
    stamps: Vec<Option<Stamp>>,
    fault: Option<LoadError>,
}

/// What a file looks like from outside: device, inode, size, and the times of its changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    file: [u64; 3],
    times: [i64; 4],
}

impl Reader {
    pub(super) fn new(materials: Vec<Material>, watches: Option<Watches>) -> Self {
        let mut this = Self {
            entries: Vec::new(),
            watches,
        };
        this.follow(materials);
        this
    }

    /// Goes on with other files, which are all read the next time.
    pub(super) fn follow(&mut self, materials: Vec<Material>) {
        let entries = materials.into_iter().map(|material| Entry {
            material,
            stamps: Vec::new(),
            fault: None,
        });
        self.entries = entries.collect();
    }

    /// The event says something of one of the files, or of the way to it.
    pub(super) fn is_about(&self, event: &Event<'_>) -> bool {
        let watches = self.watches.as_ref();
        watches.is_some_and(|watches| watches.is_about(event))
    }

    /// Watches what there is to watch, and reads what has changed. In this order, so that what changes
    /// afterwards is told.
    pub(super) fn read(&mut self) {
        let files: Vec<&Path> = self
            .entries
            .iter()
            .flat_map(|it| it.material.files())
            .collect();
        if let Some(watches) = &mut self.watches {
            watches.renew(|| links::folders(&files));
        }
        self.entries.iter_mut().for_each(Entry::read);
    }

    pub(super) fn found(&self) -> Found {
        let looks = self.entries.iter().map(|entry| Look {
            material: entry.material.clone(),
            fault: entry.fault.clone(),
        });
        Found(looks.collect())
    }
}

impl Entry {
    fn read(&mut self) {
        let stamps: Vec<_> = self.material.files().into_iter().map(Stamp::of).collect();
        if self.fault.is_none() && self.stamps == stamps {
            return;
        }
        self.stamps = stamps;
        match self.material.read() {
            Ok(material) => {
                self.fault = None;
                if material != self.material {
                    self.material = material;
                }
            }
            Err(error) => self.fault = Some(error),
        }
    }
}

impl Stamp {
    /// `None` if it can't be told.
    fn of(file: &Path) -> Option<Self> {
        let metadata = fs::metadata(file).ok()?;
        Some(Self {
            file: [metadata.dev(), metadata.ino(), metadata.size()],
            times: [
                metadata.mtime(),
                metadata.mtime_nsec(),
                metadata.ctime(),
                metadata.ctime_nsec(),
            ],
        })
    }
}
