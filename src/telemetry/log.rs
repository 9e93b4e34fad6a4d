//! The log of the process: what starts, changes and fails, to stderr. Nothing on the path of a byte
//! logs.

use std::io;
use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, dispatcher};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::config::{Log, LogFormat, LogLevel};

/// Starts logging, once per process; later calls change the level only. The format stays.
pub fn start(log: Log) {
    let (dispatch, level) = subscriber(log, io::stderr, is_terminal());
    if dispatcher::set_global_default(dispatch).is_ok() {
        // Nobody else sets it: only the one call that became the default comes here.
        let _ = LEVEL.set(level);
    } else {
        set_level(log.level);
    }
}

/// Changes the level from now on. Without effect before [`start`].
pub fn set_level(level: LogLevel) {
    if let Some(handle) = LEVEL.get() {
        // Fails only when the subscriber is gone, and then there is nobody to tell.
        let _ = handle.reload(filter(level));
    }
}

type LevelHandle = reload::Handle<LevelFilter, Registry>;

static LEVEL: OnceLock<LevelHandle> = OnceLock::new();

fn subscriber<W>(log: Log, writer: W, colours: bool) -> (Dispatch, LevelHandle)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (level, handle) = reload::Layer::new(filter(log.level));
    // A closed stderr must not turn a log line into a panic.
    let lines = fmt::layer().with_writer(writer).log_internal_errors(false);
    let lines = match log.format {
        LogFormat::Text => lines.with_target(false).with_ansi(colours).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_ansi(false).boxed(),
    };
    let dispatch = Dispatch::new(Registry::default().with(level).with(lines));
    (dispatch, handle)
}

fn is_terminal() -> bool {
    io::IsTerminal::is_terminal(&io::stderr())
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn take(&self) -> String {
            let bytes = std::mem::take(&mut *self.0.lock().expect("not poisoned"));
            String::from_utf8(bytes).expect("lines are UTF-8")
        }
    }

    fn started(level: LogLevel, format: LogFormat) -> (Dispatch, LevelHandle, Lines) {
        let lines = Lines::default();
        let writer = lines.clone();
        let (dispatch, handle) = subscriber(Log { level, format }, move || writer.clone(), false);
        (dispatch, handle, lines)
    }

    #[test]
    fn text_is_one_readable_line() {
        let (dispatch, _level, lines) = started(LogLevel::Info, LogFormat::Text);
        dispatcher::with_default(&dispatch, || tracing::warn!(listener = "web", "full"));
        let line = lines.take();
        assert!(
            line.contains("WARN") && line.ends_with("full listener=\"web\"\n"),
            "{line}"
        );
    }

    #[test]
    fn json_is_one_object_a_line() {
        let (dispatch, _level, lines) = started(LogLevel::Info, LogFormat::Json);
        dispatcher::with_default(&dispatch, || tracing::info!(listener = "web", "full"));
        let line: serde_json::Value =
            serde_json::from_str(&lines.take()).expect("the line is JSON");
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["message"], "full");
        assert_eq!(line["listener"], "web");
    }

    #[test]
    fn the_level_holds_and_can_be_changed_while_running() {
        let (dispatch, level, lines) = started(LogLevel::Warn, LogFormat::Text);
        dispatcher::with_default(&dispatch, || {
            tracing::info!("quiet");
            assert_eq!(lines.take(), "");
            level
                .reload(filter(LogLevel::Info))
                .expect("the subscriber lives");
            tracing::info!("loud");
            assert!(lines.take().contains("loud"));
        });
    }
}
