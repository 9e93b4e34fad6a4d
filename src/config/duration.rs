//! Durations, each kind with what it may be.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::DeValue;

use super::diagnostics::Fault;
use super::value::{Read, wrong_type};

/// A duration of whole milliseconds up to ten years. Zero is accepted.
pub(super) fn duration(value: &DeValue<'_>) -> Read<Duration> {
    let text = match value {
        DeValue::String(text) => &**text,
        DeValue::Integer(number) => {
            return Err(wrong_type(value, DURATION_FORM)
                .hint(format!("with its unit: \"{number}s\" or \"{number}ms\"")));
        }
        other => return Err(wrong_type(other, DURATION_FORM)),
    };
    let malformed = || Fault::new(format!("{text:?} is not a duration")).expected(DURATION_FORM);
    // To humantime "M" is a month; whoever writes "10M" means minutes.
    if text.contains('M') {
        return Err(malformed().hint(format!("did you mean {:?}?", text.to_lowercase())));
    }
    let duration = humantime::parse_duration(text).map_err(|error| match error {
        humantime::DurationError::NumberOverflow => too_long(text),
        // humantime takes a lone "0"; the contract wants units everywhere.
        _ => malformed(),
    })?;
    if text.trim() == "0" {
        return Err(malformed());
    }
    if duration > LONGEST {
        return Err(too_long(text));
    }
    if !duration.subsec_nanos().is_multiple_of(1_000_000) {
        return Err(Fault::new(format!("{text:?} is too fine")).expected("whole milliseconds"));
    }
    Ok(duration)
}

const DURATION_FORM: &str = "a duration like \"250ms\", \"10s\", \"5m\" or \"1h30m\"";

/// Ten years. Longer ones are slips, and far from overflowing a deadline.
const LONGEST: Duration = Duration::from_hours(24 * 3653);

fn too_long(text: &str) -> Fault {
    Fault::new(format!("{text:?} is too long")).expected("at most 10 years")
}

/// A duration that is not zero.
pub(super) fn above_zero(value: &DeValue<'_>) -> Read<Duration> {
    match duration(value)? {
        Duration::ZERO => Err(Fault::new("zero is too short").expected("at least 1ms")),
        duration => Ok(duration),
    }
}

/// A duration in `range`.
pub(super) fn within(value: &DeValue<'_>, range: RangeInclusive<Duration>) -> Read<Duration> {
    let duration = duration(value)?;
    if range.contains(&duration) {
        return Ok(duration);
    }
    let (least, most) = (shown(*range.start()), shown(*range.end()));
    Err(Fault::new(format!("{} is out of range", shown(duration)))
        .expected(format!("a duration from {least} to {most}")))
}

/// As it would be written.
pub(super) fn shown(duration: Duration) -> String {
    humantime::format_duration(duration)
        .to_string()
        .replace(' ', "")
}

/// A duration that is not zero, for something to end in.
pub(super) fn timeout(value: &DeValue<'_>) -> Read<Duration> {
    match duration(value)? {
        Duration::ZERO => {
            Err(Fault::new("a timeout of zero would end everything at once")
                .expected("at least 1ms"))
        }
        duration => Ok(duration),
    }
}

/// `"off"` is `None`; else what setsockopt(2) takes for TCP_KEEPIDLE: 1 to 32767 whole seconds.
pub(super) fn keepalive(value: &DeValue<'_>) -> Read<Option<Duration>> {
    if matches!(value, DeValue::String(text) if text == "off") {
        return Ok(None);
    }
    let duration = duration(value)?;
    let range = Duration::from_secs(1)..=Duration::from_secs(32_767);
    if duration.subsec_nanos() == 0 && range.contains(&duration) {
        return Ok(Some(duration));
    }
    let fault = Fault::new("TCP keepalive can't wait this long")
        .expected("whole seconds from 1s to 32767s (about 9 hours), or \"off\"");
    Err(if duration.is_zero() {
        fault.hint("\"off\" disables it")
    } else {
        fault
    })
}

/// What setsockopt(2) takes for TCP_USER_TIMEOUT: an `int` of milliseconds, where 0 would mean the
/// system's default.
pub(super) fn user_timeout(value: &DeValue<'_>) -> Read<Duration> {
    let duration = timeout(value)?;
    if duration.as_millis() > i32::MAX as u128 {
        return Err(Fault::new("the kernel can't wait this long")
            .expected("at most 2147483647 milliseconds (about 24 days)"));
    }
    Ok(duration)
}
