//! The log of the process: what starts, changes and fails, to stderr. Nothing on the path of a byte
//! logs.

use std::io;
use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, dispatcher};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layered, SubscriberExt};
use tracing_subscriber::{Layer, Registry, fmt, reload};

use super::news::{self, Keeper};
use crate::config::{Log, LogFormat, LogLevel};

/// Starts logging, once per process; later calls change it.
pub fn start(log: &Log) {
    let (dispatch, handles) = subscriber(log, io::stderr, is_terminal());
    if dispatcher::set_global_default(dispatch).is_ok() {
        // Nobody else sets it: only the one call that became the default comes here.
        let _ = HANDLES.set(handles);
    } else {
        change(log);
    }
}

/// Changes level and format from now on. Without effect before [`start`].
pub fn change(log: &Log) {
    if let Some(handles) = HANDLES.get() {
        handles.change(log, lines(log.format, io::stderr, is_terminal()));
    }
}

/// What is logged is decided below what it looks like.
type Filtered = Layered<reload::Layer<LevelFilter, Registry>, Registry>;
type Lines = Box<dyn Layer<Filtered> + Send + Sync>;

struct Handles {
    level: reload::Handle<LevelFilter, Registry>,
    lines: reload::Handle<Lines, Filtered>,
}

impl Handles {
    fn change(&self, log: &Log, lines: Lines) {
        // Fails only when the subscriber is gone, and then there is nobody to tell.
        let _ = self.level.reload(filter(log.level));
        let _ = self.lines.reload(lines);
    }
}

static HANDLES: OnceLock<Handles> = OnceLock::new();

fn subscriber<W>(log: &Log, writer: W, colours: bool) -> (Dispatch, Handles)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (below, level) = reload::Layer::new(filter(log.level));
    let (above, lines) = reload::Layer::new(lines(log.format, writer, colours));
    let kept = Keeper(news::news().clone());
    let dispatch = Dispatch::new(Registry::default().with(below).with(above).with(kept));
    (dispatch, Handles { level, lines })
}

fn lines<W>(format: LogFormat, writer: W, colours: bool) -> Lines
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // A closed stderr must not turn a log line into a panic.
    let lines = fmt::layer().with_writer(writer).log_internal_errors(false);
    match format {
        LogFormat::Text => lines.with_target(false).with_ansi(colours).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_ansi(false).boxed(),
    }
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
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        fn take(&self) -> String {
            let bytes = std::mem::take(&mut *self.0.lock().expect("not poisoned"));
            String::from_utf8(bytes).expect("lines are UTF-8")
        }
    }

    fn started(level: LogLevel, format: LogFormat) -> (Dispatch, Handles, Written) {
        let lines = Written::default();
        let writer = lines.clone();
        let log = Log { level, format };
        let (dispatch, handles) = subscriber(&log, move || writer.clone(), false);
        (dispatch, handles, lines)
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
    fn level_and_format_hold_and_can_be_changed_while_running() {
        let (dispatch, handles, written) = started(LogLevel::Warn, LogFormat::Text);
        let writer = written.clone();
        dispatcher::with_default(&dispatch, || {
            tracing::info!("quiet");
            assert_eq!(written.take(), "");
            let log = Log {
                level: LogLevel::Info,
                format: LogFormat::Json,
            };
            handles.change(&log, lines(log.format, move || writer.clone(), false));
            tracing::info!("loud");
            let line = written.take();
            assert!(line.starts_with('{') && line.contains("loud"), "{line}");
        });
    }
}
