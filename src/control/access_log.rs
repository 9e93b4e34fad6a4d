//! The access log: a line per session, written by a thread of its own out of a bounded queue, so that a slow
//! disk holds up nobody. What can't be written is counted and forgotten, and serving goes on.

mod line;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::Error;
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
    /// Disconnected when it has ended.
    ended: Receiver<()>,
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
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
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
        let asked = Arc::new(Mutex::new(Asked::default()));
        let (ends, ended) = mpsc::channel();
        let mut writer = Writer {
            settings: prepared.0.clone(),
            opened: Opened::Nothing,
            asked: asked.clone(),
            losses: events.sessions.losses.clone(),
            lines: Vec::new(),
            count: 0,
            torn: false,
            skipped: 0,
            dropped: 0,
            complained: None,
        };
        let log = Self { asked, ended };
        log.change(events, prepared);
        let write = move || {
            let _ends: mpsc::Sender<()> = ends;
            writer.write_all(&records);
        };
        thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(write)?;
        Ok(log)
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
        /// A terminal may be stuck, and the process shall end all the same.
        const PATIENCE: Duration = Duration::from_secs(1);
        // Nothing is ever sent: it is over in time, or not.
        let _ = self.ended.recv_timeout(PATIENCE);
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
    lines: Vec<u8>,
    /// Lines in `lines`.
    count: u64,
    /// The last line in the file is not whole.
    torn: bool,
    /// Of both, how many were told.
    skipped: u64,
    dropped: u64,
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
            self.opened = opened;
        }
        if let Some(in_log) = asked.in_log {
            self.settings.in_log = in_log;
        }
        if let (true, config::AccessLog::File(path)) = (asked.reopen, &self.settings.sink) {
            match open(path) {
                Ok(file) => {
                    self.opened = Opened::File(file);
                    self.torn = false;
                    tracing::info!(path = %path.display(), "access log opened again");
                }
                Err(error) => {
                    tracing::error!(%error, path = %path.display(), "the access log can't be opened again: the old file stays in use");
                }
            }
        }
    }

    fn take(&mut self, record: &SessionRecord) {
        if self.settings.in_log {
            line::log(record);
        }
        if self.settings.sink != config::AccessLog::Off {
            let ago = ring::now() - record.at;
            line::write(&mut self.lines, record, ago, self.settings.format);
            self.count += 1;
        }
    }

    /// What is missing in the log stands there as a number.
    fn tell_losses(&mut self) {
        let (skipped, dropped) = (self.losses.skipped.value(), self.losses.dropped.value());
        let news = (skipped - self.skipped, dropped - self.dropped);
        if news == (0, 0) || self.settings.sink == config::AccessLog::Off {
            return;
        }
        (self.skipped, self.dropped) = (skipped, dropped);
        line::write_losses(&mut self.lines, news, self.settings.format);
    }

    fn flush(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        if std::mem::take(&mut self.torn) {
            self.lines.insert(0, b'\n');
        }
        let written = match &mut self.opened {
            Opened::Nothing => Ok(()),
            Opened::Stdout => write_whole(&mut io::stdout().lock(), &self.lines, &mut self.torn),
            Opened::File(file) => write_whole(file, &self.lines, &mut self.torn),
        };
        if let Err(error) = written {
            self.complain(&error);
        }
        self.lines.clear();
        self.count = 0;
    }

    fn complain(&mut self, error: &io::Error) {
        let lost = self.count;
        (0..lost).for_each(|_| self.losses.unwritten.add());
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

/// `torn`: only a part was written.
fn write_whole(to: &mut impl Write, bytes: &[u8], torn: &mut bool) -> io::Result<()> {
    let mut left = bytes;
    let outcome = loop {
        match to.write(left) {
            Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => left = &left[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
        if left.is_empty() {
            break to.flush();
        }
    };
    let written = &bytes[..bytes.len() - left.len()];
    *torn = written.last().is_some_and(|last| *last != b'\n');
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes.
    struct Full(usize, Vec<u8>);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.0);
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0 -= count;
            self.1.extend(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_an_error_and_tells_whether_a_line_was_cut() {
        for (room, fails, cut) in [
            (0, true, false),
            (3, true, true),
            (4, true, false),
            (8, false, false),
        ] {
            let (mut disk, mut torn) = (Full(room, Vec::new()), false);
            let outcome = write_whole(&mut disk, b"abc\ndef\n", &mut torn);
            assert_eq!((outcome.is_err(), torn), (fails, cut), "{room}");
        }
    }
}
