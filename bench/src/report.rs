//! What the comparison prints: a table per scenario, and what of it can be relied upon.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use crate::compare::{Comparison, Contender, Measured};
use crate::scenario::{Metric, Sample};
use crate::statistics::{Spread, Verdict};

/// Tells how far it is, on stderr.
pub(crate) fn say(text: &str) {
    // Who closed stderr does not want to know.
    let _ = writeln!(io::stderr(), "{text}");
}

/// The whole comparison in Markdown.
pub(crate) fn markdown(comparison: &Comparison) -> String {
    let machine = &comparison.machine;
    let mut text = format!(
        "Linux {}, {}, {} usable CPUs, {} MiB; load before the run {:.2}. Proxies on CPU {}, \
         generator and backends on CPU {}.\n\n",
        machine.kernel,
        machine.cpu,
        machine.usable_cpus,
        machine.memory_mib,
        machine.load_before,
        comparison.proxy_cpu,
        comparison.load_cpu,
    );
    for (name, version) in &comparison.versions {
        let _ = writeln!(text, "- {name}: {version}");
    }
    for measured in &comparison.scenarios {
        text.push('\n');
        text.push_str(&scenario(measured));
    }
    text
}

fn scenario(measured: &Measured) -> String {
    let mut text = format!("## {}: {}\n\n", measured.scenario.name(), measured.what);
    let _ = write!(text, "{} rounds", measured.rounds);
    if measured.seconds_per_round > 0.0 {
        let _ = write!(text, " of {} s", measured.seconds_per_round);
    }
    if let Some(rate) = measured.rate {
        let _ = write!(text, ", {rate} requests/s");
    }
    text.push_str("; median (min–max), then the ratio to the best peer\n\n");
    text.push_str(&table(measured));
    text.push('\n');
    for metric in measured.scenario.metrics() {
        if let Some(line) = verdict(measured, *metric) {
            let _ = writeln!(text, "- {line}");
        }
    }
    for remark in remarks(measured) {
        let _ = writeln!(text, "- {remark}");
    }
    text
}

fn table(measured: &Measured) -> String {
    let metrics = measured.scenario.metrics();
    let loaded = measured.seconds_per_round > 0.0;
    let mut text = String::from("| |");
    for metric in metrics {
        let _ = write!(text, " {} | × |", metric.label());
    }
    text.push_str(if loaded {
        " proxy busy | generator busy | errors |\n|---|"
    } else {
        "\n|---|"
    });
    text.push_str(&"---:|".repeat(2 * metrics.len() + if loaded { 3 } else { 0 }));
    text.push('\n');
    for contender in &measured.contenders {
        let _ = write!(text, "| {} |", contender.name);
        for &metric in metrics {
            let ratio = ratio_to_best(measured, contender, metric)
                .map_or_else(|| "–".to_owned(), |ratio| format!("{:.2}", ratio.median));
            let _ = write!(text, " {} | {ratio} |", cell(&contender.samples, metric));
        }
        text.push_str(&busy_cells(&contender.samples, loaded));
    }
    if !measured.ceiling.is_empty() {
        text.push_str("| no proxy |");
        for &metric in metrics {
            let is_the_proxys = matches!(metric, Metric::CpuPerRequest | Metric::CpuPerMb);
            let value = match is_the_proxys {
                true => "–".to_owned(),
                false => cell(&measured.ceiling, metric),
            };
            let _ = write!(text, " {value} | – |");
        }
        text.push_str(&busy_cells(&measured.ceiling, loaded));
    }
    text
}

fn busy_cells(samples: &[Sample], loaded: bool) -> String {
    if !loaded {
        return "\n".to_owned();
    }
    let percent = |values: Vec<f64>| {
        Spread::of(&values).map_or_else(
            || "–".to_owned(),
            |spread| format!("{:.0} %", spread.median * 100.0),
        )
    };
    let loads = || samples.iter().filter_map(|sample| sample.load.as_ref());
    format!(
        " {} | {} | {} |\n",
        percent(samples.iter().map(Sample::proxy_busy).collect()),
        percent(loads().map(|load| load.generator_busy).collect()),
        loads()
            .map(|load| load.errors + load.unanswered)
            .sum::<u64>(),
    )
}

fn cell(samples: &[Sample], metric: Metric) -> String {
    let values: Vec<f64> = samples.iter().map(|sample| sample.value(metric)).collect();
    let digits = metric.digits();
    Spread::of(&values).map_or_else(
        || "–".to_owned(),
        |Spread { median, min, max }| format!("{median:.digits$} ({min:.digits$}–{max:.digits$})"),
    )
}

/// The peer with the best median; ringress is none.
fn best_peer(measured: &Measured, metric: Metric) -> Option<&Contender> {
    let (peers, medians): (Vec<&Contender>, Vec<f64>) = measured
        .contenders
        .iter()
        .filter(|contender| !contender.is_ringress && contender.failure.is_none())
        .filter_map(|contender| Some((contender, Spread::of(&contender.values(metric))?.median)))
        .unzip();
    Some(peers[metric.better().best(&medians)?])
}

fn ratio_to_best(measured: &Measured, contender: &Contender, metric: Metric) -> Option<Spread> {
    let best = best_peer(measured, metric)?;
    Spread::of_ratios(&contender.values(metric), &best.values(metric))
}

/// How ringress stands to the best peer.
fn verdict(measured: &Measured, metric: Metric) -> Option<String> {
    let ringress = measured.contenders.iter().find(|c| c.is_ringress)?;
    let best = best_peer(measured, metric)?;
    let ratio = Spread::of_ratios(&ringress.values(metric), &best.values(metric))?;
    let verdict = Verdict::on(ratio, metric.better());
    Some(format!(
        "{}: {:.2} ({:.2}–{:.2}) × {}: **{}**",
        metric.label(),
        ratio.median,
        ratio.min,
        ratio.max,
        best.name,
        verdict.text(),
    ))
}

/// What a reader must know before believing the table.
fn remarks(measured: &Measured) -> Vec<String> {
    /// A core that is busier has no time left, and limits what is measured.
    const FULL: f64 = 0.97;
    let mut remarks = Vec::new();
    for contender in &measured.contenders {
        let name = contender.name;
        if let Some(failure) = &contender.failure {
            remarks.push(format!("{name} failed: {}", failure.trim()));
        }
        let samples = &contender.samples;
        let median = |value: fn(&Sample) -> f64| {
            let values: Vec<f64> = samples.iter().map(value).collect();
            Spread::of(&values).map_or(0.0, |spread| spread.median)
        };
        let generator = median(|s| s.load.as_ref().map_or(0.0, |load| load.generator_busy));
        if generator > FULL && median(Sample::proxy_busy) < FULL {
            remarks.push(format!(
                "with {name} the generator is the limit: its throughput is a lower bound, its \
                 latency an upper one"
            ));
        }
        let workers = samples.iter().map(|s| s.kernel_workers).max().unwrap_or(0);
        if workers > 0 {
            remarks.push(format!("{name} had {workers} kernel workers of io_uring"));
        }
    }
    if !measured.contenders.iter().any(|c| !c.is_ringress) {
        remarks.push("no peer took part: there is nothing to compare with".to_owned());
    }
    remarks
}
