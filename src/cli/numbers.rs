//! Numbers as people read them. In columns: two digits and a unit in five characters, so that these keep their
//! width.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

/// So many a second, of `count` in `period_ms`.
pub(super) fn per_second(count: u64, period_ms: u64) -> f64 {
    count as f64 * 1000.0 / period_ms.max(1) as f64
}

/// `0`, `3.2`, `412`, `1.2k`, `35M`.
pub(super) fn short(value: f64) -> String {
    if value <= 0.0 {
        return "0".to_owned();
    }
    if value < 0.05 {
        return "<0.1".to_owned();
    }
    let mut scaled = value;
    for unit in ["", "k", "M", "G", "T"] {
        if scaled < 9.95 && !is_whole(scaled, unit) {
            return format!("{scaled:.1}{unit}");
        }
        if scaled < 999.5 {
            return format!("{scaled:.0}{unit}");
        }
        scaled /= 1000.0;
    }
    format!("{scaled:.0}P")
}

/// Only what has no unit is told exactly.
fn is_whole(value: f64, unit: &str) -> bool {
    unit.is_empty() && value.fract() == 0.0
}

/// `850µs`, `1.2ms`, `3.0s`, `12m`, `30h`; `-` where there is none.
pub(super) fn time(micros: Option<u64>) -> String {
    let Some(micros) = micros else {
        return "-".to_owned();
    };
    let value = micros as f64;
    match micros {
        0..1_000 => format!("{micros}µs"),
        1_000..9_950 => format!("{:.1}ms", value / 1e3),
        9_950..999_500 => format!("{:.0}ms", value / 1e3),
        999_500..9_950_000 => format!("{:.1}s", value / 1e6),
        9_950_000..600_000_000 => format!("{:.0}s", value / 1e6),
        600_000_000..36_000_000_000 => format!("{:.0}m", value / 6e7),
        _ => format!("{:.0}h", value / 3.6e9),
    }
}

/// `512B`, `1.5kB`, `35MB`.
pub(super) fn bytes(count: u64) -> String {
    format!("{}B", short(count as f64))
}

/// `1h 2m 5s`: whole seconds, and milliseconds below one.
pub(super) fn span(millis: u64) -> String {
    let shown = match millis {
        0..1000 => Duration::from_millis(millis),
        _ => Duration::from_secs(millis / 1000),
    };
    humantime::format_duration(shown).to_string()
}

/// The most frequent first; equals by name.
pub(super) fn by_count(counts: &BTreeMap<String, u64>) -> Vec<(&str, u64)> {
    let mut counts: Vec<_> = counts.iter().map(|(it, count)| (&**it, *count)).collect();
    counts.sort_by_key(|(_, count)| Reverse(*count));
    counts
}

/// `400 client-closed, 12 denied`.
pub(super) fn counted(counts: &BTreeMap<String, u64>) -> String {
    let counts = by_count(counts).into_iter();
    let words = counts.map(|(what, count)| format!("{count} {what}"));
    words.collect::<Vec<_>>().join(", ")
}

/// `35%` of 0.35.
pub(super) fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_keep_two_digits() {
        for (value, expected) in [
            (0.0, "0"),
            (0.01, "<0.1"),
            (0.5, "0.5"),
            (3.0, "3"),
            (9.94, "9.9"),
            (9.96, "10"),
            (999.4, "999"),
            (999.6, "1.0k"),
            (12_345.0, "12k"),
            (1_234_567.0, "1.2M"),
            (4.2e9, "4.2G"),
            (4.2e12, "4.2T"),
            (1e18, "1000P"),
        ] {
            assert_eq!(short(value), expected, "{value}");
        }
    }

    #[test]
    fn times_have_the_unit_that_fits() {
        for (micros, expected) in [
            (0, "0µs"),
            (850, "850µs"),
            (1_234, "1.2ms"),
            (25_400, "25ms"),
            (999_600, "1.0s"),
            (61_000_000, "61s"),
            (3_600_000_000, "60m"),
            (90_000_000_000, "25h"),
        ] {
            assert_eq!(time(Some(micros)), expected);
            assert!(expected.chars().count() <= 5);
        }
        assert_eq!(time(None), "-");
    }

    #[test]
    fn bytes_are_counted_by_thousands_as_everywhere() {
        let told = [0, 999, 1_536, 5_368_709_120].map(bytes);
        assert_eq!(told, ["0B", "999B", "1.5kB", "5.4GB"]);
    }

    #[test]
    fn spans_are_whole_seconds_unless_there_is_none() {
        let told = [0, 999, 1_999, 3_725_999].map(span);
        assert_eq!(told, ["0s", "999ms", "1s", "1h 2m 5s"]);
    }

    #[test]
    fn what_is_most_frequent_comes_first() {
        let counts = [("a", 1), ("b", 7), ("c", 7)];
        let counts = counts.map(|(what, count)| (what.to_owned(), count)).into();
        assert_eq!(counted(&counts), "7 b, 7 c, 1 a");
        assert_eq!(counted(&BTreeMap::new()), "");
    }

    #[test]
    fn rates_go_by_the_length_of_the_period() {
        assert_eq!(short(per_second(30, 1000)), "30");
        assert_eq!(short(per_second(30, 2000)), "15");
        assert_eq!(short(per_second(0, 0)), "0");
        assert_eq!(percent(0.347), "35%");
    }
}
