//! The process, its workers, and what it has from files. Names that begin with `process_` are those that every
//! client library of Prometheus has.

use super::text::{Family, Kind, Labels, Text, Value};
use super::usage::Usage;
use super::{Owner, Reloads, Source};
use crate::proxy::Shared;
use crate::ring::Reading;
use crate::ring::limits::nofile_limit;

const BUILD: Family = Family {
    name: "ringress_build_info",
    kind: Kind::Info,
    help: "What runs.",
};
const START: Family = Family {
    name: "process_start_time_seconds",
    kind: Kind::Gauge,
    help: "When the process started, in seconds since 1970.",
};
const CPU: Family = Family {
    name: "process_cpu_seconds_total",
    kind: Kind::Counter,
    help: "Time on a CPU, in user space and in the kernel.",
};
const RESIDENT: Family = Family {
    name: "process_resident_memory_bytes",
    kind: Kind::Gauge,
    help: "Memory that is in RAM.",
};
const VIRTUAL: Family = Family {
    name: "process_virtual_memory_bytes",
    kind: Kind::Gauge,
    help: "Memory that is mapped.",
};
const OPEN_FDS: Family = Family {
    name: "process_open_fds",
    kind: Kind::Gauge,
    help: "Open file descriptors.",
};
const MAX_FDS: Family = Family {
    name: "process_max_fds",
    kind: Kind::Gauge,
    help: "File descriptors that may be open.",
};
const UPTIME: Family = Family {
    name: "ringress_uptime_seconds",
    kind: Kind::Gauge,
    help: "Since the process started.",
};
const GENERATION: Family = Family {
    name: "ringress_config_generation",
    kind: Kind::Gauge,
    help: "Number of the configuration in effect: 1 at start, one more with each reload.",
};
const RELOADS: Family = Family {
    name: "ringress_reloads_total",
    kind: Kind::Counter,
    help: "Reloads, by what came of them.",
};
const RESTARTS: Family = Family {
    name: "ringress_worker_restarts_total",
    kind: Kind::Counter,
    help: "Times that a worker began again after a panic.",
};
const DRAINING: Family = Family {
    name: "ringress_draining",
    kind: Kind::Gauge,
    help: "1 from the order to end on.",
};
const OLD: Family = Family {
    name: "ringress_old_processes",
    kind: Kind::Gauge,
    help: "Processes before this one that still have sessions.",
};
const SESSIONS: Family = Family {
    name: "ringress_active_sessions",
    kind: Kind::Gauge,
    help: "Sessions now.",
};
const MOST: Family = Family {
    name: "ringress_max_connections",
    kind: Kind::Gauge,
    help: "Sessions that there may be: runtime.max_connections.",
};
const LOST: Family = Family {
    name: "ringress_access_log_lost_total",
    kind: Kind::Counter,
    help: "Sessions without a line in the access log: refusals above the number for a second (skipped), those \
           that found the queue full (dropped), those that could not be written (unwritten).",
};
const CERTIFICATES: Family = Family {
    name: "ringress_certificate_not_after_timestamp_seconds",
    kind: Kind::Gauge,
    help: "When the certificate expires, in seconds since 1970.",
};

pub(super) fn write(text: &mut Text, source: &Source) {
    let shared = &source.shared;
    let build = Labels::of(&[("version", env!("CARGO_PKG_VERSION"))]);
    text.family(&BUILD);
    text.sample(&build, None, 1_u64);
    write_usage(text, source);
    text.single(&UPTIME, Value::Nanos(source.uptime.as_nanos() as u64));
    text.single(&GENERATION, source.generation);
    text.family(&RELOADS);
    let Reloads { done, refused } = source.reloads;
    for (result, count) in [("done", done), ("refused", refused)] {
        let more = Some(("result", result));
        text.sample(&Labels::default(), more, count);
    }
    text.single(&RESTARTS, source.worker_restarts);
    text.single(&DRAINING, source.draining);
    text.single(&OLD, source.old_processes);
    text.single(&SESSIONS, shared.active.now());
    text.single(&MOST, shared.most_connections());
    let losses = &shared.around.events.sessions.losses;
    text.family(&LOST);
    for (why, tally) in [
        ("skipped", &losses.skipped),
        ("dropped", &losses.dropped),
        ("unwritten", &losses.unwritten),
    ] {
        let more = Some(("reason", why));
        text.sample(&Labels::default(), more, tally.value());
    }
}

fn write_usage(text: &mut Text, source: &Source) {
    let usage = Usage::now();
    text.single(&START, Value::Nanos(source.started.as_nanos() as u64));
    text.single(&CPU, Value::Nanos(usage.cpu.as_nanos() as u64));
    if let Some((resident, mapped)) = usage.memory {
        text.single(&RESIDENT, resident);
        text.single(&VIRTUAL, mapped);
    }
    if let Some(descriptors) = usage.descriptors {
        text.single(&OPEN_FDS, descriptors);
    }
    if let (Some(most), _) = nofile_limit() {
        text.single(&MAX_FDS, most);
    }
}

/// A number of a worker's ring.
type Read = fn(&Reading) -> Value;

const WORKERS: [(Family, Read); 10] = [
    (
        Family {
            name: "ringress_worker_turns_total",
            kind: Kind::Counter,
            help: "Turns of the worker's ring.",
        },
        |reading| reading.turns.into(),
    ),
    (
        Family {
            name: "ringress_worker_completions_total",
            kind: Kind::Counter,
            help: "Completions that the kernel has handed out.",
        },
        |reading| reading.completions.into(),
    ),
    (
        Family {
            name: "ringress_worker_busy_seconds_total",
            kind: Kind::Counter,
            help: "Time that the worker was on a CPU, in user space and in the kernel.",
        },
        |reading| Value::Nanos(reading.busy_nanos),
    ),
    (
        Family {
            name: "ringress_worker_receive_shortages_total",
            kind: Kind::Counter,
            help: "Receives that found no buffer (ENOBUFS), and waited for one.",
        },
        |reading| reading.shortages.into(),
    ),
    (
        Family {
            name: "ringress_worker_completion_overflows_total",
            kind: Kind::Counter,
            help: "Completions for which the queue had no room, and which the kernel kept elsewhere.",
        },
        |reading| reading.overflows.into(),
    ),
    (
        Family {
            name: "ringress_worker_buffers",
            kind: Kind::Gauge,
            help: "Receive buffers that sessions hold.",
        },
        |reading| reading.buffers.into(),
    ),
    (
        Family {
            name: "ringress_worker_starved_receives",
            kind: Kind::Gauge,
            help: "Receives that wait for a buffer.",
        },
        |reading| reading.starved.into(),
    ),
    (
        Family {
            name: "ringress_worker_tasks",
            kind: Kind::Gauge,
            help: "Tasks that have not ended.",
        },
        |reading| reading.tasks.into(),
    ),
    (
        Family {
            name: "ringress_worker_descriptors",
            kind: Kind::Gauge,
            help: "Descriptors that the worker works on.",
        },
        |reading| reading.descriptors.into(),
    ),
    (
        Family {
            name: "ringress_worker_timers",
            kind: Kind::Gauge,
            help: "Timers that are set.",
        },
        |reading| reading.timers.into(),
    ),
];

pub(super) fn write_workers(text: &mut Text, shared: &Shared) {
    let meters = shared.meters.iter().enumerate();
    let readings: Vec<_> = meters
        .map(|(worker, meter)| {
            let labels = Labels::of(&[("worker", &worker.to_string())]);
            (labels, meter.reading())
        })
        .collect();
    for (family, read) in &WORKERS {
        text.family(family);
        for (labels, reading) in &readings {
            text.sample(labels, None, read(reading));
        }
    }
}

pub(super) fn write_certificates(text: &mut Text, source: &Source) {
    text.family(&CERTIFICATES);
    for certificate in &source.certificates {
        let owner = match &certificate.owner {
            Owner::Listener(name) => ("listener", &**name),
            Owner::Upstream(name) => ("upstream", &**name),
        };
        let labels = Labels::of(&[owner, ("file", &certificate.file)]);
        let at = Value::Number(certificate.not_after as f64);
        text.sample(&labels, None, at);
    }
}
