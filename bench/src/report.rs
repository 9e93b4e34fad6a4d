//! What the comparison prints: a table per scenario, and what of it can be relied upon.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use crate::compare::{Comparison, Contender, Measured};
use crate::load::Summary;
use crate::scenario::{Metric, Sample, Scenario};
use crate::statistics::{Better, Spread, Verdict};
use crate::udp::Faults;

/// Tells how far it is, on stderr.
pub(crate) fn say(text: &str) {
    // Who closed stderr does not want to know.
    let _ = writeln!(io::stderr(), "{text}");
}

/// The whole comparison in Markdown.
pub(crate) fn markdown(comparison: &Comparison) -> String {
    let machine = &comparison.machine;
    let mut text = format!(
        "Linux {}, {}, {} usable CPUs, {} MiB, {}; load before the run {:.2}. Proxies on CPU {}, \
         generator and backends on CPU {}.\n\n",
        machine.kernel,
        machine.cpu,
        machine.usable_cpus,
        machine.memory_mib,
        machine.congestion_control,
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
        for line in verdicts(measured, *metric) {
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
            let is_the_proxys = matches!(
                metric,
                Metric::CpuPerRequest | Metric::CpuPerConnection | Metric::CpuPerMb
            );
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

/// How ringress stands to the best peer, and how it stands with policies to itself without them.
fn verdicts(measured: &Measured, metric: Metric) -> impl Iterator<Item = String> {
    let mut of_ringress = measured.contenders.iter().filter(|c| c.is_ringress);
    let first = of_ringress.next();
    let to_peer = first.and_then(|first| {
        let line = verdict(first, best_peer(measured, metric)?, metric)?;
        Some(format!("{}: {line}", metric.label()))
    });
    let to_itself = first.zip(of_ringress.next()).and_then(|(first, second)| {
        let line = verdict(second, first, metric)?;
        Some(format!("{} of {}: {line}", metric.label(), second.name))
    });
    to_peer.into_iter().chain(to_itself)
}

fn verdict(one: &Contender, other: &Contender, metric: Metric) -> Option<String> {
    let ratio = Spread::of_ratios(&one.values(metric), &other.values(metric))?;
    let verdict = match metric.better() {
        Better::Higher if generator_limits(one) => "not told, the generator is the limit",
        better => Verdict::on(ratio, better).text(),
    };
    Some(format!(
        "{:.2} ({:.2}–{:.2}) × {}: **{verdict}**",
        ratio.median, ratio.min, ratio.max, other.name,
    ))
}

/// The generator had no time left and the proxy had some: the throughput is not the proxy's.
fn generator_limits(contender: &Contender) -> bool {
    /// A core that is busier has no time left.
    const FULL: f64 = 0.97;
    let proxy = median(contender.samples.iter().map(Sample::proxy_busy));
    let generator = median_of_loads(contender, |load| load.generator_busy);
    generator > FULL && proxy < FULL
}

/// 0 where there is nothing.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    Spread::of(&values.collect::<Vec<_>>()).map_or(0.0, |spread| spread.median)
}

fn median_of_loads(contender: &Contender, value: fn(&Summary) -> f64) -> f64 {
    let samples = contender.samples.iter();
    median(samples.filter_map(|sample| sample.load.as_ref()).map(value))
}

/// What a reader must know before believing the table.
fn remarks(measured: &Measured) -> Vec<String> {
    /// A share of the rate that is still called kept: what is due at the edges is answered behind them.
    const RATE_KEPT: f64 = 0.99;
    let mut remarks = Vec::new();
    for contender in &measured.contenders {
        let name = contender.name;
        if let Some(failure) = &contender.failure {
            remarks.push(format!("{name} failed: {}", failure.trim()));
        }
        let samples = &contender.samples;
        let load = |value| median_of_loads(contender, value);
        if let Some(rate) = measured.rate {
            let reached = load(|load| load.requests_per_second);
            if reached < rate as f64 * RATE_KEPT {
                remarks.push(format!(
                    "{name} did not keep the rate: {reached:.0} of {rate} requests/s"
                ));
            }
            let late = load(|load| load.late_p99_us);
            if late > load(|load| load.p99_us) / 2.0 {
                remarks.push(format!(
                    "with {name} the generator itself was late, by {late:.0} µs at p99: most of \
                     the p99 is its own"
                ));
            }
        } else if generator_limits(contender) {
            remarks.push(format!(
                "with {name} the generator is the limit: its throughput is a lower bound, its \
                 latency an upper one"
            ));
        }
        remarks.extend(of_datagrams(measured.scenario, contender));
        let workers = samples.iter().map(|s| s.kernel_workers).max().unwrap_or(0);
        if workers > 0 {
            remarks.push(format!("{name} had {workers} kernel workers of io_uring"));
        }
    }
    if measured.contenders.len() < 2 && measured.scenario != Scenario::UdpLoss {
        remarks.push("no peer took part: there is nothing to compare with".to_owned());
    }
    remarks
}

/// What became of the datagrams of all rounds, when not all of them came back as they were.
fn of_datagrams(scenario: Scenario, contender: &Contender) -> Option<String> {
    /// What a receive buffer of the usual size does not hold any more at these rates, or nearly.
    const LATE_US: f64 = 1_000.0;
    let rounds = || {
        contender
            .samples
            .iter()
            .filter_map(|it| it.datagrams.as_ref())
    };
    let sent: u64 = rounds().map(|round| round.sent).sum();
    let name = contender.name;
    let sums = rounds().fold([("", 0); Faults::KINDS], |sums, round| {
        let mut kinds = round.kinds();
        for (kind, sum) in kinds.iter_mut().zip(sums) {
            kind.1 += sum.1;
        }
        kinds
    });
    let said: Vec<String> = sums
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    // After a stall of the machine what was due meanwhile goes out at once.
    let loads = contender.samples.iter().filter_map(|it| it.load.as_ref());
    let late = loads.map(|load| load.late_p99_us).fold(0.0, f64::max);
    let in_a_rush = match late > LATE_US {
        true => {
            format!("; the generator was late, by up to {late:.0} µs at p99, and caught up at once")
        }
        false => String::new(),
    };
    match said.as_slice() {
        [] if scenario == Scenario::UdpLoss && sent > 0 => {
            Some(format!("{name}: **nothing lost** of {sent} datagrams"))
        }
        [] => None,
        _ => {
            let said = said.join(", ");
            Some(format!("{name}, of {sent} datagrams: {said}{in_a_rush}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::{Latency, Losses, Outcome};

    /// A round of a second with so many requests, of which each took the proxy so long.
    fn sample(requests: u64, cpu_us: f64) -> Sample {
        let mut latency = Latency::default();
        latency.record(Duration::from_micros(100));
        let outcome = Outcome {
            completed: requests,
            errors: 0,
            losses: Losses::default(),
            unanswered: 0,
            bytes: requests * 128,
            elapsed: Duration::from_secs(1),
            own_cpu: Duration::from_millis(990),
            latency,
            lateness: Latency::default(),
        };
        Sample {
            proxy_cpu_us: cpu_us * requests as f64,
            kernel_workers: 0,
            memory_before: 0,
            memory_after: 0,
            connections: 64,
            load: Some(outcome.summary()),
            datagrams: None,
        }
    }

    fn contender(name: &'static str, cpu_us: [f64; 2]) -> Contender {
        Contender {
            name,
            is_ringress: name.starts_with("ringress"),
            samples: cpu_us.map(|cpu_us| sample(50_000, cpu_us)).to_vec(),
            failure: None,
        }
    }

    fn measured(scenario: Scenario, contenders: Vec<Contender>) -> Measured {
        Measured {
            scenario,
            what: scenario.what(),
            rounds: 2,
            seconds_per_round: 1.0,
            rate: scenario.half_of().map(|_| 60_000),
            contenders,
            ceiling: vec![sample(100_000, 0.0)],
        }
    }

    #[test]
    fn ringress_is_judged_against_the_best_peer_of_each_column() {
        let measured = measured(
            Scenario::Echo64,
            vec![
                contender("ringress", [8.0, 16.0]),
                contender("slow", [20.0, 40.0]),
                contender("fast", [10.0, 20.0]),
            ],
        );
        let text = scenario(&measured);
        assert!(
            text.contains("CPU µs per request: 0.80 (0.80–0.80) × fast: **better**"),
            "{text}"
        );
        assert!(text.contains("requests/s: 1.00 (1.00–1.00) ×"), "{text}");
        assert!(text.contains("**not told, the generator"), "{text}");
        assert!(text.contains("**within the noise**"), "{text}");
        let limits = text.matches("the generator is the limit:").count();
        assert_eq!(limits, 2, "the slow one is its own limit: {text}");
    }

    #[test]
    fn policies_are_judged_against_ringress_without_them() {
        let mut contenders = vec![
            contender("ringress", [8.0, 16.0]),
            contender("ringress-policies", [8.4, 16.0]),
        ];
        let text = scenario(&measured(Scenario::Echo64, contenders.clone()));
        let line = "CPU µs per request of ringress-policies: 1.02 (1.00–1.05) × ringress: **within";
        assert!(text.contains(line), "{text}");
        assert!(!text.contains("no peer took part"), "{text}");
        contenders.push(contender("peer", [10.0, 10.0]));
        let text = scenario(&measured(Scenario::Echo64, contenders));
        assert!(text.contains(line), "{text}");
        assert!(text.contains("request: 1.20 (0.80–1.60) × peer"), "{text}");
    }

    #[test]
    fn all_rows_of_a_table_have_as_many_cells_as_its_head() {
        let (tcp, udp) = (Scenario::WITH_TCP.as_slice(), &Scenario::WITH_UDP);
        for which in [tcp, udp, &Scenario::WITH_TLS].concat() {
            let peers = vec![
                contender("ringress", [1.0, 1.0]),
                contender("a", [2.0, 2.0]),
            ];
            let mut measured = measured(which, peers);
            if which.is_idle() {
                measured.seconds_per_round = 0.0;
                measured.ceiling.clear();
            }
            let text = table(&measured);
            let cells: Vec<usize> = text.lines().map(|row| row.matches('|').count()).collect();
            assert!(cells.iter().all(|count| *count == cells[0]), "{text}");
        }
    }

    #[test]
    fn what_became_of_datagrams_is_said_of_all_rounds() {
        let mut one = contender("ringress", [1.0, 1.0]);
        let faults = Faults {
            sent: 100,
            lost: 3,
            dropped_at_generator: 1,
            ..Faults::default()
        };
        for sample in &mut one.samples {
            sample.datagrams = Some(faults);
        }
        let text = scenario(&measured(Scenario::UdpBulk, vec![one.clone()]));
        let line = "ringress, of 200 datagrams: 6 lost, 2 dropped at the generator's sockets";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("| 30000.0 (30000.0–30000.0) |"), "{text}");
        for sample in &mut one.samples {
            sample.datagrams = Some(Faults {
                sent: 100,
                ..Faults::default()
            });
        }
        let text = scenario(&measured(Scenario::UdpLoss, vec![one]));
        assert!(text.contains("**nothing lost** of 200 datagrams"), "{text}");
        assert!(!text.contains("no peer took part"), "{text}");
    }

    #[test]
    fn a_missed_rate_a_failure_and_no_peer_are_said() {
        let mut alone = measured(Scenario::Rate, vec![contender("ringress", [1.0, 1.0])]);
        alone.contenders[0].failure = Some("it fell over\n".to_owned());
        let text = scenario(&alone);
        assert!(text.contains("50000 of 60000 requests/s"), "{text}");
        assert!(text.contains("ringress failed: it fell over\n"), "{text}");
        assert!(text.contains("no peer took part"), "{text}");
    }
}
