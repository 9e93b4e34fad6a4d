//! Where the control socket is. It is found by the path of the configuration, so that several processes on
//! one machine, each with its own file, don't collide, and a command needs to know nothing but the file.
//!
//! `runtime.control_socket = "auto"` is `FOLDER/HASH.sock`. The hash is of the file's absolute path, in which
//! `.` and `..` are taken out by their spelling alone: symbolic links are not followed, since a deployment
//! may point them elsewhere between the start and a command. So process and command must name the
//! file alike.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use toml::de::{DeTable, DeValue};

/// What `runtime.control_socket` asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// `"off"`: none.
    Off,
    /// `"auto"`: found by the path of this configuration file.
    Auto(PathBuf),
    /// This path.
    At(PathBuf),
}

impl Place {
    /// What `file` asks for, even if the rest of it is wrong. `"auto"` where it can't be read.
    pub fn asked_for_by(file: &Path) -> Self {
        let asked = read(file).ok().and_then(|text| control_socket(&text));
        match asked.as_deref() {
            None | Some("auto") => Self::Auto(file.to_owned()),
            Some("off") => Self::Off,
            Some(path) => Self::At(path.into()),
        }
    }
}

/// The value of the key, if it is there and a string.
fn control_socket(text: &str) -> Option<String> {
    let (table, _) = DeTable::parse_recoverable(text);
    let DeValue::Table(runtime) = table.get_ref().get("runtime")?.get_ref() else {
        return None;
    };
    match runtime.get("control_socket")?.get_ref() {
        DeValue::String(value) => Some(value.to_string()),
        _ => None,
    }
}

fn read(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(file)?
        .take(FILE_BYTES_MAX)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// A configuration is a few pages; /dev/zero is not one.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The folders that `"auto"` may use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Folders {
    /// The service manager's, `RUNTIME_DIRECTORY`.
    pub service: Option<PathBuf>,
    /// The system's.
    pub system: PathBuf,
    /// Below the user's own, `XDG_RUNTIME_DIR`.
    pub user: Option<PathBuf>,
}

impl Folders {
    /// Those of this process's environment.
    pub fn of_this_process() -> Self {
        Self::new(
            std::env::var_os("RUNTIME_DIRECTORY"),
            std::env::var_os("XDG_RUNTIME_DIR"),
        )
    }

    /// systemd gives a service's folders with `:` between them; the first is taken. What is not an
    /// absolute path is ignored, as the XDG specification asks for.
    fn new(service: Option<OsString>, user: Option<OsString>) -> Self {
        let service = service.and_then(|all| std::env::split_paths(&all).next());
        let user = user.map(|folder| PathBuf::from(folder).join("ringress"));
        Self {
            service: service.filter(|folder| folder.is_absolute()),
            system: "/run/ringress".into(),
            user: user.filter(|folder| folder.is_absolute()),
        }
    }

    /// Where the socket of a process with the configuration `file` may be, the first choice first; none
    /// twice.
    ///
    /// # Errors
    /// `file` is empty, or is relative and there is no current folder.
    pub fn candidates(&self, file: &Path) -> io::Result<Vec<Candidate>> {
        let name = format!("{:016x}.sock", hash(&absolute(file)?));
        let folders = [
            (self.service.as_ref(), 0o755),
            (Some(&self.system), 0o755),
            (self.user.as_ref(), 0o700),
        ];
        let mut candidates: Vec<Candidate> = Vec::new();
        for (folder, folder_mode) in folders {
            let Some(path) = folder.map(|folder| folder.join(&name)) else {
                continue;
            };
            if candidates.iter().all(|known| known.path != path) {
                candidates.push(Candidate { path, folder_mode });
            }
        }
        Ok(candidates)
    }

    /// Every path at which a process with the configuration `file` may answer. The file may have changed
    /// since it started, so that the places of `"auto"` are among them in any case.
    ///
    /// # Errors
    /// As [`Self::candidates`].
    pub fn of_process_with(&self, file: &Path) -> io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        if let Place::At(path) = Place::asked_for_by(file) {
            paths.push(path);
        }
        let candidates = self.candidates(file)?;
        paths.extend(candidates.into_iter().map(|candidate| candidate.path));
        Ok(paths)
    }
}

/// A place where the socket may be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// The socket's path.
    pub path: PathBuf,
    /// Permission bits of its folder, if that has to be made.
    pub folder_mode: u32,
}

/// The absolute path, `.` and `..` taken out by their spelling.
fn absolute(path: &Path) -> io::Result<PathBuf> {
    let mut absolute = PathBuf::new();
    for component in std::path::absolute(path)?.components() {
        match component {
            Component::ParentDir => {
                absolute.pop();
            }
            Component::CurDir => {}
            other => absolute.push(other),
        }
    }
    Ok(absolute)
}

/// FNV-1a. It must never change: binaries of different versions have to find each other.
fn hash(path: &Path) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let bytes = path.as_os_str().as_bytes().iter();
    bytes.fold(OFFSET_BASIS, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(PRIME)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(folders: &Folders, file: &str) -> Vec<String> {
        let candidates = folders.candidates(Path::new(file)).unwrap();
        let shown = |it: Candidate| format!("{} {:o}", it.path.display(), it.folder_mode);
        candidates.into_iter().map(shown).collect()
    }

    fn folders(service: Option<&str>, user: Option<&str>) -> Folders {
        Folders::new(service.map(OsString::from), user.map(OsString::from))
    }

    #[test]
    fn the_hash_has_its_golden_values() {
        // The first three are test vectors of the algorithm's authors.
        for (path, expected) in [
            ("", 0xcbf2_9ce4_8422_2325),
            ("a", 0xaf63_dc4c_8601_ec8c),
            ("foobar", 0x8594_4171_f739_67e8),
            ("/etc/ringress/ringress.toml", 0xc0f2_8593_3e7b_d5e2),
        ] {
            assert_eq!(hash(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn the_service_managers_folder_comes_first_and_the_users_last() {
        let expected = [
            "/run/a 755",
            "/run/ringress 755",
            "/run/user/7/ringress 700",
        ];
        let expected = expected.map(|it| it.replace(' ', "/0.sock "));
        let found = paths(
            &folders(Some("/run/a:/run/b"), Some("/run/user/7")),
            "/a.toml",
        );
        let name = format!("{:016x}", hash(Path::new("/a.toml")));
        let found: Vec<_> = found.iter().map(|it| it.replace(&name, "0")).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn no_folder_comes_twice_and_relative_ones_not_at_all() {
        let found = folders(Some("/run/ringress"), Some("user")).candidates(Path::new("/a"));
        assert_eq!(found.unwrap().len(), 1);
        let found = folders(Some(""), Some("")).candidates(Path::new("/a"));
        assert_eq!(found.unwrap().len(), 1);
    }

    #[test]
    fn a_file_has_one_socket_however_it_is_spelled() {
        let folders = folders(None, None);
        let expected = paths(&folders, "/etc/ringress/a.toml");
        for spelled in [
            "/etc/ringress/./a.toml",
            "/etc//ringress/a.toml",
            "/etc/other/../ringress/a.toml",
            "/../etc/ringress/a.toml",
        ] {
            assert_eq!(paths(&folders, spelled), expected, "{spelled}");
        }
        assert_ne!(paths(&folders, "/etc/ringress/b.toml"), expected);
        let here = std::env::current_dir().unwrap().join("a.toml");
        assert_eq!(
            paths(&folders, "x/../a.toml"),
            paths(&folders, here.to_str().unwrap())
        );
    }

    #[test]
    fn a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("a.toml"), folder.path().join("b.toml"));
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let of = |path: &Path| folders(None, None).candidates(path).unwrap();
        assert_ne!(of(&file), of(&link));
    }

    #[test]
    fn the_key_is_found_in_a_file_that_is_otherwise_broken() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.toml");
        let auto = || Place::Auto(file.clone());
        assert_eq!(Place::asked_for_by(&file), auto(), "there is no file");
        let at = |path: &str| Place::At(path.into());
        for (text, expected) in [
            ("", auto()),
            ("[runtime]\ncontrol_socket = 'auto'", auto()),
            ("[runtime]\ncontrol_socket = 5", auto()),
            ("runtime = 5", auto()),
            ("[runtime]\ncontrol_socket = 'off'", Place::Off),
            ("runtime.control_socket = '/run/x.sock'", at("/run/x.sock")),
            (
                "nonsense = = 1\n[runtime]\nworkers = [\ncontrol_socket",
                auto(),
            ),
            (
                "a = = 1\n[runtime]\nworkers = -\ncontrol_socket = '/x'\n[runtime]\n]",
                at("/x"),
            ),
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(Place::asked_for_by(&file), expected, "{text}");
        }
    }

    #[test]
    fn a_process_is_looked_for_where_the_file_says_and_where_it_may_have_been_before() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.toml");
        std::fs::write(&file, "runtime.control_socket = '/run/x.sock'").unwrap();
        let found = folders(None, None).of_process_with(&file).unwrap();
        assert_eq!(found[0], Path::new("/run/x.sock"));
        assert!(found[1].starts_with("/run/ringress"), "{found:?}");
        std::fs::write(&file, "runtime.control_socket = 'off'").unwrap();
        let found = folders(None, None).of_process_with(&file).unwrap();
        assert_eq!(found.len(), 1);
    }
}
