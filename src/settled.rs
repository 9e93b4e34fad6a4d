//! Reading a file that somebody may be writing: what comes out was there as a whole, with nobody in the
//! middle of it. Knows nothing of what is in the file.
//!
//! A writer can't be asked, so the file's looks must agree: the same before the reading, after it, and at
//! the path, with as many bytes as were read, and unchanged for a while.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Why there is nothing to give.
#[derive(Debug)]
pub(crate) enum Error {
    /// It can't be read.
    Io(io::Error),
    /// It has more bytes than asked for.
    TooLong,
    /// It was being changed whenever it was looked at.
    KeepsChanging,
    /// It is a FIFO, a device or a socket, which was not asked for.
    Special,
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The bytes of a file, at most `most`. Blocks: for some milliseconds if the file has just been changed,
/// for 2 s if it is changed all the time. What is no regular file, as a FIFO, is read once.
pub(crate) fn read(path: &Path, most: u64) -> Result<Vec<u8>, Error> {
    read_timed(path, most, any_file, system_time, pause)
}

/// As [`read`], but only of a regular file, symbolic links followed. Waits for no writer.
pub(crate) fn read_regular(path: &Path, most: u64) -> Result<Vec<u8>, Error> {
    read_timed(path, most, regular_file, system_time, pause)
}

fn any_file(path: &Path) -> Result<File, Error> {
    Ok(File::open(path)?)
}

/// Opened first and then looked at, since what is at a path may change in between.
fn regular_file(path: &Path) -> Result<File, Error> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    let kind = file.metadata()?.file_type();
    match (kind.is_file(), kind.is_dir()) {
        (true, _) => Ok(file),
        (_, true) => Err(io::Error::from(io::ErrorKind::IsADirectory).into()),
        _ => Err(Error::Special),
    }
}

/// `now` is nanoseconds since the epoch; `pause` passes [`PAUSE`].
fn read_timed(
    path: &Path,
    most: u64,
    open: impl Fn(&Path) -> Result<File, Error>,
    now: impl Fn() -> i128,
    mut pause: impl FnMut(),
) -> Result<Vec<u8>, Error> {
    for _ in 0..MOST_READINGS {
        let mut file = open(path)?;
        let before = file.metadata()?;
        let mut bytes = Vec::new();
        (&mut file).take(most + 1).read_to_end(&mut bytes)?;
        let length = bytes.len() as u64;
        if length > most {
            return Err(Error::TooLong);
        }
        let reading = Reading {
            before: Look::at(&before),
            after: Look::at(&file.metadata()?),
            at_path: fs::metadata(path).ok().as_ref().map(Look::at),
            length,
            now: now(),
        };
        if !before.is_file() || reading.is_settled() {
            return Ok(bytes);
        }
        pause();
    }
    Err(Error::KeepsChanging)
}

/// Everything that was seen around one reading of a file.
#[derive(Clone, Copy, Debug)]
struct Reading {
    before: Look,
    after: Look,
    /// `None` if there is nothing at the path any more.
    at_path: Option<Look>,
    /// Bytes that were read.
    length: u64,
    /// After all of that.
    now: i128,
}

impl Reading {
    fn is_settled(&self) -> bool {
        self.before == self.after
            && self.at_path == Some(self.after)
            && self.length == self.after.size
            && !self.after.is_fresh(self.now)
    }
}

/// What a file looks like from outside. Times are nanoseconds since the epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Look {
    device: u64,
    inode: u64,
    size: u64,
    modified: i128,
    changed: i128,
}

impl Look {
    fn at(metadata: &Metadata) -> Self {
        let nanos =
            |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: nanos(metadata.mtime(), metadata.mtime_nsec()),
            changed: nanos(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Somebody may be writing it just now, which might not show: two changes within a tick of the
    /// kernel have the same time. A time in the future says nothing, as clocks differ.
    fn is_fresh(&self, now: i128) -> bool {
        let fresh = 0..FRESH.as_nanos() as i128;
        fresh.contains(&(now - self.modified)) || fresh.contains(&(now - self.changed))
    }
}

/// Two ticks of the slowest kernels.
const FRESH: Duration = Duration::from_millis(20);

/// After this long a file that nobody has touched meanwhile is not fresh any more.
const PAUSE: Duration = FRESH;

/// About 2 s.
const MOST_READINGS: usize = 100;

#[expect(
    clippy::disallowed_methods,
    reason = "the edge: a file's age is told by the clock that stamped it"
)]
fn system_time() -> i128 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_nanos() as i128,
        Err(before) => -(before.duration().as_nanos() as i128),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "reading a file blocks anyway, and no worker reads any"
)]
fn pause() {
    std::thread::sleep(PAUSE);
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Write;
    use std::sync::mpsc;
    use std::thread;

    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use tempfile::TempDir;

    use super::*;

    const SETTLED: Reading = Reading {
        before: LOOK,
        after: LOOK,
        at_path: Some(LOOK),
        length: 7,
        now: 1_020_000_000,
    };

    const LOOK: Look = Look {
        device: 1,
        inode: 2,
        size: 7,
        modified: 900_000_000,
        changed: 1_000_000_000,
    };

    #[test]
    fn a_file_that_looks_the_same_all_the_time_is_settled() {
        assert!(SETTLED.is_settled());
    }

    #[test]
    fn any_other_look_is_another_file_or_another_text() {
        for other in [
            Look { device: 3, ..LOOK },
            Look { inode: 3, ..LOOK },
            Look { size: 8, ..LOOK },
            Look {
                modified: 900_000_001,
                ..LOOK
            },
            Look {
                changed: 999_999_999,
                ..LOOK
            },
        ] {
            let before = Reading {
                before: other,
                ..SETTLED
            };
            let after = Reading {
                after: other,
                ..SETTLED
            };
            let at_path = Reading {
                at_path: Some(other),
                ..SETTLED
            };
            for reading in [before, after, at_path] {
                assert!(!reading.is_settled(), "{reading:?}");
            }
        }
        assert!(
            !Reading {
                at_path: None,
                ..SETTLED
            }
            .is_settled()
        );
        assert!(
            !Reading {
                length: 6,
                ..SETTLED
            }
            .is_settled()
        );
    }

    #[test]
    fn what_was_changed_within_two_ticks_is_not_settled() {
        for (now, settled) in [
            (1_000_000_000, false),
            (1_019_999_999, false),
            (1_020_000_000, true),
            (i128::from(i64::MAX), true),
        ] {
            assert_eq!(Reading { now, ..SETTLED }.is_settled(), settled, "{now}");
        }
        let look = Look {
            modified: 1_010_000_000,
            ..LOOK
        };
        assert!(look.is_fresh(1_029_999_999), "by either time");
        assert!(!look.is_fresh(1_030_000_000));
    }

    #[test]
    fn a_file_from_the_future_is_settled() {
        let now = 999_999_999;
        let look = Look {
            modified: 5_000_000_000,
            ..LOOK
        };
        assert!(!look.is_fresh(now));
        assert!(look.is_fresh(1_000_000_000), "its other time is of now");
    }

    fn folder_with(text: &str) -> (TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        fs::write(&path, text).unwrap();
        (folder, path)
    }

    /// Nanoseconds at which the file was changed last.
    fn changed(path: &Path) -> i128 {
        Look::at(&fs::metadata(path).unwrap()).changed
    }

    const LATER: i128 = FRESH.as_nanos() as i128;

    #[test]
    fn a_file_at_rest_is_read_once() {
        let (_folder, path) = folder_with("text");
        let now = || changed(&path) + LATER;
        let bytes = read_timed(&path, 4, any_file, now, || panic!("it is at rest")).unwrap();
        assert_eq!(bytes, b"text");
        let longer = read_timed(&path, 3, any_file, now, || panic!("no pause helps"));
        assert!(matches!(longer, Err(Error::TooLong)), "{longer:?}");
        let earlier = || changed(&path) - 3_600_000_000_000;
        assert!(
            read_timed(&path, 4, any_file, earlier, || panic!(
                "it is from the future"
            ))
            .is_ok()
        );
        assert_eq!(read(&path, 4).unwrap(), b"text", "by the real clock");
    }

    #[test]
    fn a_file_that_is_written_in_two_halves_is_not_read_in_between() {
        let (_folder, path) = folder_with("the old text");
        let (read_half, go_on) = mpsc::channel::<()>();
        let (wrote, written) = mpsc::channel::<()>();
        let writer = thread::spawn({
            let path = path.clone();
            move || {
                let mut file = File::create(path).unwrap();
                for half in ["the new ", "text"] {
                    file.write_all(half.as_bytes()).unwrap();
                    wrote.send(()).unwrap();
                    go_on.recv().unwrap();
                }
            }
        });
        written.recv().unwrap();
        let age = Cell::new(0);
        let bytes = read_timed(
            &path,
            100,
            any_file,
            || changed(&path) + age.get(),
            || {
                read_half.send(()).unwrap();
                // The writer has gone once it has written both.
                match written.recv() {
                    Ok(()) => age.set(LATER - 1),
                    Err(_) => age.set(LATER),
                }
            },
        );
        assert_eq!(bytes.unwrap(), b"the new text");
        writer.join().unwrap();
    }

    #[test]
    fn a_file_that_keeps_changing_is_given_up() {
        let (_folder, path) = folder_with("0");
        let pauses = Cell::new(0);
        let outcome = read_timed(
            &path,
            100,
            any_file,
            || changed(&path),
            || {
                pauses.set(pauses.get() + 1);
                fs::write(&path, pauses.get().to_string()).unwrap();
            },
        );
        assert!(matches!(outcome, Err(Error::KeepsChanging)), "{outcome:?}");
        assert_eq!(pauses.get(), MOST_READINGS);
        let patience = PAUSE * MOST_READINGS as u32;
        assert_eq!(patience, Duration::from_secs(2));
    }

    #[test]
    fn a_fifo_is_read_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let writer = thread::spawn({
            let path = path.clone();
            move || fs::write(path, "text").unwrap()
        });
        let bytes = read_timed(
            &path,
            100,
            any_file,
            || 0,
            || panic!("it can't be read again"),
        );
        assert_eq!(bytes.unwrap(), b"text");
        writer.join().unwrap();
    }

    #[test]
    fn only_a_regular_file_is_read_where_one_is_asked_for() {
        let (folder, path) = folder_with("text");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(read_regular(&link, 4).unwrap(), b"text");
        let fifo = folder.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        for special in [&fifo, Path::new("/dev/null")] {
            let outcome = read_regular(special, 4);
            assert!(matches!(outcome, Err(Error::Special)), "{outcome:?}");
        }
        let outcome = read_regular(folder.path(), 4);
        let is_directory = |error: &io::Error| error.kind() == io::ErrorKind::IsADirectory;
        assert!(
            matches!(&outcome, Err(Error::Io(it)) if is_directory(it)),
            "{outcome:?}"
        );
    }
}
