//! Lines of the access log. What a client has chosen (names, what went wrong) is escaped, so that it can't
//! pass for a line or a field of its own.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::config::LogFormat;
use crate::telemetry::calendar;
use crate::telemetry::sessions::SessionRecord;

/// A session as it is written, field by field in this order. Times are in seconds.
#[derive(Serialize)]
struct Line<'a> {
    /// When it ended, in UTC.
    time: String,
    listener: &'a str,
    client: Option<String>,
    upstream: Option<&'a str>,
    route: Option<usize>,
    backend: Option<&'a str>,
    retries: u32,
    bytes_received: u64,
    bytes_sent: u64,
    queued: Option<f64>,
    connect: Option<f64>,
    first_byte: Option<f64>,
    duration: f64,
    tls: Option<&'a str>,
    sni: Option<&'a str>,
    reason: &'a str,
    detail: Option<&'a str>,
    /// The worker and its number for the session, as in the flight recorder.
    session: String,
}

/// What is missing.
#[derive(Serialize)]
struct Losses {
    time: String,
    /// Refusals above a hundred a second.
    skipped: u64,
    /// Sessions that found the queue full.
    dropped: u64,
}

impl<'a> Line<'a> {
    fn new(record: &'a SessionRecord, ago: Duration) -> Self {
        let seconds = |time: Option<Duration>| time.map(seconds);
        Self {
            time: moment(ago),
            listener: &record.listener,
            client: record.client.map(|it| it.to_string()),
            upstream: record.upstream.as_deref(),
            route: record.route,
            backend: record.backend.as_deref(),
            retries: record.retries,
            bytes_received: record.bytes_received,
            bytes_sent: record.bytes_sent,
            queued: seconds(record.queued),
            connect: seconds(record.connect),
            first_byte: seconds(record.first_byte),
            duration: self::seconds(record.duration),
            tls: record.tls.map(|opening| opening.as_str()),
            sni: record.sni.as_deref(),
            reason: record.reason.as_str(),
            detail: record.detail.as_deref(),
            session: format!("{}.{}", record.worker, record.session),
        }
    }
}

/// Writes the line of a session that ended so long `ago`.
pub(super) fn write(lines: &mut Vec<u8>, record: &SessionRecord, ago: Duration, format: LogFormat) {
    write_fields(lines, &Line::new(record, ago), format);
}

/// Writes how many sessions have no line: those that were `skipped`, and those that were `dropped`.
pub(super) fn write_losses(lines: &mut Vec<u8>, (skipped, dropped): (u64, u64), format: LogFormat) {
    let losses = Losses {
        time: moment(Duration::ZERO),
        skipped,
        dropped,
    };
    write_fields(lines, &losses, format);
}

/// One line with all fields of `value`, which has no structure below them.
fn write_fields(lines: &mut Vec<u8>, value: &impl Serialize, format: LogFormat) {
    let json = serde_json::to_vec(value).expect("fields are words and numbers");
    match format {
        LogFormat::Json => lines.extend(json),
        LogFormat::Text => {
            let fields = serde_json::from_slice(&json).expect("an object of fields");
            lines.extend(text(&fields).into_bytes());
        }
    }
    lines.push(b'\n');
}

/// `time field=value …`, without what there is nothing of.
fn text(fields: &Fields) -> String {
    let mut line = String::new();
    for (name, value) in &fields.0 {
        let value = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::String(word) => escaped(word),
            value => value.to_string(),
        };
        let gap = if line.is_empty() { "" } else { " " };
        // Into a string, which takes everything.
        let _ = match name.as_str() {
            "time" => write!(line, "{value}"),
            name => write!(line, "{gap}{name}={value}"),
        };
    }
    line
}

/// Fields in their order.
struct Fields(Vec<(String, serde_json::Value)>);

impl<'de> serde::Deserialize<'de> for Fields {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Fields;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        from.deserialize_map(Visitor)
    }
}

/// As it is where it can't be taken for anything else, or else in quotes.
fn escaped(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".:-_/[]*@".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("\"{}\"", word.escape_default()),
    }
}

fn seconds(time: Duration) -> f64 {
    // To the microsecond: the clock is read once a turn.
    time.as_micros() as f64 / 1e6
}

fn moment(ago: Duration) -> String {
    humantime::format_rfc3339_millis(calendar::ago(ago)).to_string()
}

/// Tells the session in the log, at level debug.
pub(super) fn log(session: &SessionRecord) {
    let client = session
        .client
        .map_or_else(|| "unix".to_owned(), |client| client.to_string());
    tracing::debug!(
        listener = %session.listener,
        client,
        backend = session.backend.as_deref().unwrap_or("-"),
        reason = session.reason.as_str(),
        bytes_received = session.bytes_received,
        bytes_sent = session.bytes_sent,
        duration_ms = session.duration.as_millis() as u64,
        detail = session.detail.as_deref(),
        "session closed"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{Opening, Reason};
    use crate::time::Instant;

    fn record() -> SessionRecord {
        SessionRecord {
            at: Instant::default(),
            worker: 1,
            session: 77,
            listener: "web".into(),
            client: Some("203.0.113.9:4711".parse().expect("an address")),
            upstream: Some("app".into()),
            route: Some(0),
            backend: Some("10.0.0.1:80".into()),
            retries: 1,
            tls: Some(Opening::Tls13),
            sni: Some("a.example\" reason=idle\nb".into()),
            queued: None,
            connect: Some(Duration::from_micros(250)),
            first_byte: Some(Duration::from_millis(3)),
            duration: Duration::from_secs(61),
            bytes_received: 130,
            bytes_sent: 180,
            reason: Reason::ClientClosed,
            detail: None,
        }
    }

    fn written(format: LogFormat) -> String {
        let mut lines = Vec::new();
        write(&mut lines, &record(), Duration::ZERO, format);
        String::from_utf8(lines).expect("lines are UTF-8")
    }

    #[test]
    fn a_text_line_has_its_fields_in_order_and_none_of_a_clients_making() {
        let line = written(LogFormat::Text);
        let (time, fields) = line.split_once(' ').expect("fields follow the time");
        humantime::parse_rfc3339(time).expect("a time");
        assert_eq!(
            fields,
            "listener=web client=203.0.113.9:4711 upstream=app route=0 backend=10.0.0.1:80 retries=1 \
             bytes_received=130 bytes_sent=180 connect=0.00025 first_byte=0.003 duration=61.0 tls=tls1.3 \
             sni=\"a.example\\\" reason=idle\\nb\" reason=client-closed session=1.77\n"
        );
    }

    #[test]
    fn a_json_line_is_one_object() {
        let line = written(LogFormat::Json);
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(value["sni"], "a.example\" reason=idle\nb");
        assert_eq!(value["connect"], 0.000_25);
        assert_eq!(value["queued"], serde_json::Value::Null);
    }

    #[test]
    fn what_is_missing_stands_there_as_a_number() {
        let mut lines = Vec::new();
        write_losses(&mut lines, (400, 2), LogFormat::Text);
        let text = String::from_utf8(lines).expect("lines are UTF-8");
        assert!(text.ends_with(" skipped=400 dropped=2\n"), "{text}");
    }
}
