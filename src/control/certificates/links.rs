//! Which folders decide what is found at a path: every one on the way, through every symbolic link.
//! Watches nothing itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Folders, and the names in each that matter. Without a name it matters only that the folder stays where
/// it is.
pub(super) type Folders = BTreeMap<PathBuf, BTreeSet<OsString>>;

/// Those of all these paths, which are absolute. A path that leads nowhere is followed as far as it goes.
pub(super) fn folders(paths: &[&Path]) -> Folders {
    let mut folders = Folders::new();
    for path in paths {
        follow(path, &mut folders);
    }
    folders
}

fn follow(path: &Path, folders: &mut Folders) {
    /// As many as the kernel follows (path_resolution(7)).
    const MOST_LINKS: usize = 40;
    let mut at = PathBuf::from("/");
    let mut rest: VecDeque<OsString> = steps(path).collect();
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        let entry = at.join(&name);
        let names = folders.entry(at.clone()).or_default();
        match fs::symlink_metadata(&entry) {
            Ok(found) if found.is_dir() => at = entry,
            Ok(found) if found.is_symlink() && links < MOST_LINKS => {
                links += 1;
                names.insert(name);
                let Ok(target) = fs::read_link(&entry) else {
                    return;
                };
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                let steps: Vec<_> = steps(&target).collect();
                steps.into_iter().rev().for_each(|it| rest.push_front(it));
            }
            // The file, or where the way ends.
            _ => {
                names.insert(name);
                return;
            }
        }
    }
}

/// Without what leads nowhere.
fn steps(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|step| match step {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}
