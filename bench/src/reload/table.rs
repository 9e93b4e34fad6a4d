//! What [`super::measure`] has found, in Markdown.

use std::fmt::Write as _;

use super::{Footprint, Measured, Phase, Report};
use crate::load::Summary;

/// The whole report.
pub(crate) fn markdown(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "Linux {}, {}, {} usable CPUs, {}; load before the run {:.2}. Proxies on CPU {}, generator and \
         backends on CPU {}.\n\n",
        machine.kernel,
        machine.cpu,
        machine.usable_cpus,
        machine.congestion_control,
        machine.load_before,
        report.proxy_cpu,
        report.load_cpu,
    );
    for (name, version) in &report.versions {
        let _ = writeln!(text, "- {name}: {version}");
    }
    let _ = write!(
        text,
        "\n## {} at {} new connections a second",
        report.orders, report.rate
    );
    if let Some((kept, per_second)) = report.kept {
        let _ = write!(text, " and {per_second} exchanges on {kept} kept ones");
    }
    text.push_str("\n\n");
    text.push_str(&load_table(report));
    text.push('\n');
    text.push_str(&footprint_table(report));
    text.push('\n');
    for remark in remarks(report) {
        let _ = writeln!(text, "- {remark}");
    }
    text
}

/// Of all proxies that were measured.
fn measured(report: &Report) -> impl Iterator<Item = (&'static str, &Measured)> {
    let all = report.contenders.iter();
    all.filter_map(|contender| Some((contender.name, contender.measured.as_ref()?)))
}

fn load_table(report: &Report) -> String {
    let mut text = String::from(
        "| | due | lost | p50 µs | p99 µs | p99.9 µs | max µs | CPU µs each | proxy busy | \
         generator busy | late p99 µs |\n|---|",
    );
    text.push_str(&"---:|".repeat(10));
    text.push('\n');
    let orders = report.orders.to_string();
    for (name, measured) in measured(report) {
        for (when, phase) in [("quiet", &measured.quiet), (&orders, &measured.orders)] {
            let share = phase.proxy_cpu_us / 1e6 / phase.fresh.seconds;
            let each = phase.proxy_cpu_us / phase.fresh.due.max(1) as f64;
            let own = [format!("{each:.1}"), format!("{:.0} %", share * 100.0)];
            text.push_str(&load_row(&format!("{name}, {when}"), &phase.fresh, &own));
            if let Some(kept) = &phase.kept {
                let none = ["–".to_owned(), "–".to_owned()];
                text.push_str(&load_row(&format!("{name}, {when}, kept"), kept, &none));
            }
        }
    }
    text
}

fn load_row(name: &str, load: &Summary, [each, share]: &[String; 2]) -> String {
    format!(
        "| {name} | {} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {each} | {share} | {:.0} % | {:.0} |\n",
        load.due,
        load.errors + load.unanswered,
        load.p50_us,
        load.p99_us,
        load.p999_us,
        load.max_us,
        load.generator_busy * 100.0,
        load.late_p99_us,
    )
}

fn footprint_table(report: &Report) -> String {
    let mut text = String::from(
        "| | anonymous MiB before | at most | after | processes before | at most | after | \
         descriptors before | after | orders | took effect |\n|---|",
    );
    text.push_str(&"---:|".repeat(10));
    text.push('\n');
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    for (name, measured) in measured(report) {
        let (before, after) = (measured.before, measured.after);
        let _ = writeln!(
            text,
            "| {name} | {:.2} | {:.2} | {:.2} | {} | {} | {} | {} | {} | {} | {} |",
            mib(before.memory),
            mib(measured.most_memory),
            mib(after.memory),
            before.processes,
            measured.most_processes,
            after.processes,
            before.descriptors,
            after.descriptors,
            measured.given,
            measured.took_effect,
        );
    }
    text
}

/// What a reader must know before believing the tables.
fn remarks(report: &Report) -> Vec<String> {
    let mut remarks = Vec::new();
    for contender in &report.contenders {
        let name = contender.name;
        if let Some(failure) = &contender.failure {
            remarks.push(format!("{name} failed: {}", failure.trim()));
        }
        let Some(measured) = &contender.measured else {
            continue;
        };
        for (when, phase) in [
            ("quiet", &measured.quiet),
            ("with orders", &measured.orders),
        ] {
            let of_phase = phase_remarks(phase).into_iter();
            remarks.extend(of_phase.map(|remark| format!("{name}, {when}: {remark}")));
        }
        if let Some(grown) = growth(measured.before, measured.after) {
            remarks.push(format!("{name} {grown}"));
        }
        let complaints = measured.complaints.iter();
        remarks.extend(complaints.map(|what| format!("{name}: {}", what.trim())));
    }
    remarks
}

fn phase_remarks(phase: &Phase) -> Vec<String> {
    let loads = [("new", Some(&phase.fresh)), ("kept", phase.kept.as_ref())];
    let mut remarks = Vec::new();
    for (what, load) in loads {
        let Some(load) = load else {
            continue;
        };
        let kinds = load.losses.kinds().into_iter();
        let kinds = kinds.chain([("unanswered", load.unanswered)]);
        let lost: Vec<String> = kinds
            .filter(|(_, count)| *count > 0)
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        if !lost.is_empty() {
            remarks.push(format!("{what} connections lost: {}", lost.join(", ")));
        }
        if load.late_p99_us > load.p99_us / 2.0 {
            remarks.push(format!(
                "the generator itself was late with {what} connections, by {:.0} µs at p99: most of \
                 the p99 is its own",
                load.late_p99_us
            ));
        }
    }
    remarks
}

/// What has come to stay, in words.
fn growth(before: Footprint, after: Footprint) -> Option<String> {
    /// A share of the memory that may come and go.
    const TOLERANCE: f64 = 0.05;
    let more = after.memory as f64 / before.memory.max(1) as f64 - 1.0;
    let mut grown = Vec::new();
    if more > TOLERANCE {
        grown.push(format!("{:.0} % more memory", more * 100.0));
    }
    for (what, before, after) in [
        ("descriptors", before.descriptors, after.descriptors),
        ("processes", before.processes, after.processes),
    ] {
        if after > before {
            grown.push(format!("{} more {what}", after - before));
        }
    }
    (!grown.is_empty()).then(|| format!("has {} than before", grown.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_come_to_stay_is_said() {
        let before = Footprint {
            memory: 100 << 20,
            processes: 1,
            descriptors: 20,
        };
        assert_eq!(growth(before, before), None);
        let after = Footprint {
            memory: 104 << 20,
            descriptors: 19,
            ..before
        };
        assert_eq!(growth(before, after), None);
        let after = Footprint {
            memory: 107 << 20,
            processes: 3,
            descriptors: 21,
        };
        let expected = "has 7 % more memory, 1 more descriptors, 2 more processes than before";
        assert_eq!(growth(before, after).as_deref(), Some(expected));
    }
}
