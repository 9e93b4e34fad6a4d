//! The access log: a line per session, written by a thread of its own out of a bounded queue, so that a slow
//! disk holds up nobody. What can't be written is counted and forgotten, and serving goes on.

mod batch;
mod line;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use self::batch::{Batch, Unwritten};
use super::Error;
use super::writing::{self, Writing};
use crate::config::{self, Config, LogFormat, LogLevel};
use crate::ring;
use crate::telemetry::events::Events;
use crate::telemetry::sessions::{Losses, SessionRecord};

/// What is written, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Settings {
    pub(super) sink: config::AccessLog,
    pub(super) format: LogFormat,
    /// Sessions stand in the log, too: its level is debug or finer.
    pub(super) in_log: bool,
}

impl Settings {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            sink: config.access_log.clone(),
            format: config.log.format,
            in_log: false,
        }
        .at(config.log.level)
    }

    /// The same with a log of this level.
    pub(super) fn at(self, level: LogLevel) -> Self {
        Self {
            in_log: level >= LogLevel::Debug,
            ..self
        }
    }

    /// Has workers tell what is to be written, and no more.
    fn want_of(&self, events: &Events) {
        let sessions = &events.sessions;
        sessions.tell(self.in_log || self.sink != config::AccessLog::Off);
        // Whoever debugs wants to see them all.
        sessions.tell_refusals(if self.in_log { u32::MAX } else { REFUSALS });
    }
}

/// The thread that writes.
pub(super) struct AccessLog {
    asked: Arc<Mutex<Asked>>,
    writing: Writing,
}

/// What the thread is to do before its next line.
#[derive(Default)]
struct Asked {
    settings: Option<(Settings, Opened)>,
    /// Whether sessions stand in the log, whatever `settings` say.
    in_log: Option<bool>,
    reopen: bool,
}

/// Something to write to.
enum Opened {
    Nothing,
    Stdout,
    File(File),
}

impl Opened {
    fn open(sink: &config::AccessLog) -> Result<Self, (PathBuf, io::Error)> {
        Ok(match sink {
            config::AccessLog::Off => Self::Nothing,
            config::AccessLog::Stdout => Self::Stdout,
            config::AccessLog::File(path) => {
                Self::File(open(path).map_err(|error| (path.clone(), error))?)
            }
        })
    }

    /// What is written to one goes on in the other.
    fn goes_on_in(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Stdout, Self::Stdout) => true,
            (Self::File(one), Self::File(other)) => {
                let file = |file: &File| file.metadata().map(|it| (it.dev(), it.ino())).ok();
                file(one).is_some() && file(one) == file(other)
            }
            _ => false,
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    // To open a FIFO waits for its reader, and who opens this has more to do.
    let flags = OFlags::NONBLOCK.bits() as i32;
    let mut options = OpenOptions::new();
    options.append(true).create(true).custom_flags(flags);
    let file = options.open(path).map_err(|error| {
        match Errno::from_io_error(&error) {
            Some(Errno::NXIO) => io::Error::new(
                error.kind(),
                "it is a FIFO that nobody reads, or a socket: start the reader first, or name a file",
            ),
            _ => error,
        }
    })?;
    // It is the thread that writes that waits from now on, which may.
    let flags = fcntl_getfl(&file)?;
    fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
    Ok(file)
}

/// A sink that was tried out, for [`AccessLog::change`].
pub(super) struct Prepared(Settings, Opened);

/// Opens what `settings` name.
///
/// # Errors
/// As open(2).
pub(super) fn prepare(settings: Settings) -> Result<Prepared, Error> {
    match Opened::open(&settings.sink) {
        Ok(opened) => Ok(Prepared(settings, opened)),
        Err((path, error)) => Err(Error::AccessLog(path, error)),
    }
}

impl AccessLog {
    /// Starts to write what `records` brings.
    pub(super) fn start(
        records: Receiver<Box<SessionRecord>>,
        events: &Arc<Events>,
        prepared: Prepared,
    ) -> io::Result<Self> {
        let Prepared(settings, opened) = prepared;
        settings.want_of(events);
        let asked = Arc::new(Mutex::new(Asked::default()));
        let mut writer = Writer {
            settings,
            opened,
            asked: asked.clone(),
            losses: events.sessions.losses.clone(),
            batch: Batch::default(),
            complained: None,
        };
        let writing = writing::begin("access-log", move || writer.write_all(&records))?;
        Ok(Self { asked, writing })
    }

    /// Goes by these settings from the next line on.
    pub(super) fn change(&self, events: &Events, Prepared(settings, opened): Prepared) {
        settings.want_of(events);
        let mut asked = self.lock();
        asked.in_log = None;
        asked.settings = Some((settings, opened));
    }

    /// Sessions stand in the log or not from the next line on, as `settings` say; all else in them is in
    /// effect already.
    pub(super) fn show_in_log(&self, events: &Events, settings: &Settings) {
        settings.want_of(events);
        self.lock().in_log = Some(settings.in_log);
    }

    /// Opens the file again, which may have been moved away.
    pub(super) fn reopen(&self) {
        self.lock().reopen = true;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all is written, once nobody has anything to tell any more.
    pub(super) fn finish(&self) {
        self.writing.finish();
    }
}

/// How long the thread sleeps at most, and between two batches: workers pay for waking it.
const IDLE: Duration = Duration::from_secs(1);
const BETWEEN: Duration = Duration::from_millis(5);
/// Refusals that are told in a second.
const REFUSALS: u32 = 100;
/// Records that are written at once.
const BATCH: usize = 1024;
/// How often it is told that lines can't be written.
const COMPLAINTS: Duration = Duration::from_secs(60);

/// The thread's side.
struct Writer {
    settings: Settings,
    opened: Opened,
    asked: Arc<Mutex<Asked>>,
    losses: Arc<Losses>,
    batch: Batch,
    complained: Option<crate::time::Instant>,
}

impl Writer {
    fn write_all(&mut self, records: &Receiver<Box<SessionRecord>>) {
        loop {
            let first = records.recv_timeout(IDLE);
            self.obey();
            match first {
                Ok(record) => {
                    self.take(&record);
                    records
                        .try_iter()
                        .take(BATCH)
                        .for_each(|record| self.take(&record));
                    self.tell_losses();
                    self.flush();
                    thread::park_timeout(BETWEEN);
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.tell_losses();
                    self.flush();
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.tell_losses();
                    return self.flush();
                }
            }
        }
    }

    fn obey(&mut self) {
        let asked = {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *asked)
        };
        if let Some((settings, opened)) = asked.settings {
            self.settings = settings;
            self.write_to(opened);
        }
        if let Some(in_log) = asked.in_log {
            self.settings.in_log = in_log;
        }
        if asked.reopen {
            self.reopen();
        }
    }

    fn reopen(&mut self) {
        let config::AccessLog::File(path) = self.settings.sink.clone() else {
            return;
        };
        match open(&path) {
            Ok(file) => {
                self.write_to(Opened::File(file));
                tracing::info!(path = %path.display(), "access log opened again");
            }
            Err(error) => {
                tracing::error!(%error, path = %path.display(), "the access log can't be opened again: the old file stays in use");
            }
        }
    }

    fn write_to(&mut self, opened: Opened) {
        if !self.opened.goes_on_in(&opened) {
            self.batch.begin_anew();
        }
        self.opened = opened;
    }

    fn take(&mut self, record: &SessionRecord) {
        if self.settings.in_log {
            line::log(record);
        }
        if self.settings.sink != config::AccessLog::Off {
            let ago = ring::now() - record.at;
            self.batch.add(record, ago, self.settings.format);
        }
    }

    fn tell_losses(&mut self) {
        if self.settings.sink != config::AccessLog::Off {
            let now = batch::Losses {
                skipped: self.losses.skipped.value(),
                dropped: self.losses.dropped.value(),
            };
            self.batch.add_losses(now, self.settings.format);
        }
    }

    fn flush(&mut self) {
        let written = match &mut self.opened {
            Opened::Nothing => self.batch.write(&mut io::sink()),
            Opened::Stdout => self.batch.write(&mut io::stdout().lock()),
            Opened::File(file) => self.batch.write(file),
        };
        if let Err(unwritten) = written {
            self.complain(&unwritten);
        }
    }

    fn complain(&mut self, Unwritten { lost, error }: &Unwritten) {
        (0..*lost).for_each(|_| self.losses.unwritten.add());
        let now = ring::now();
        if self
            .complained
            .is_none_or(|last| now.since(last) >= COMPLAINTS)
        {
            self.complained = Some(now);
            tracing::error!(%error, lost, "the access log can't be written: lines are lost, serving goes on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_again_and_another_one_by_its_name_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.log");
        let open = || Opened::File(open(&path).expect("it can be written"));
        let first = open();
        assert!(first.goes_on_in(&open()));
        std::fs::rename(&path, folder.path().join("a.log.1")).expect("it is there");
        assert!(!first.goes_on_in(&open()));
        assert!(!first.goes_on_in(&Opened::Stdout));
        assert!(Opened::Stdout.goes_on_in(&Opened::Stdout));
    }
}
