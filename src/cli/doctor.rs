//! `ringress doctor`: what this machine gives, what is missing and what that costs.

use std::fmt::Write;

use super::{Error, print};
use crate::control::capacity::{self, Demand};
use crate::ring::limits;
use crate::ring::probe::{self, Feature, SetupError};

pub(super) fn run() -> Result<(), Error> {
    let findings = Findings {
        features: probe::probe(),
        descriptors: limits::nofile_limit(),
        memlock: limits::memlock_limit(),
        cpus: limits::usable_cpus(),
        quota: limits::cpu_quota(),
        workers: limits::worker_count(),
        memory: limits::total_memory(),
        ports: limits::local_ports(),
    };
    print(&findings.report())?;
    if findings.can_run() {
        Ok(())
    } else {
        Err(Error::CannotRun)
    }
}

struct Findings {
    features: Result<Vec<Feature>, SetupError>,
    /// Soft and hard; `None` = no limit.
    descriptors: (Option<u64>, Option<u64>),
    memlock: Option<u64>,
    cpus: Vec<usize>,
    quota: Option<usize>,
    workers: usize,
    memory: u64,
    /// Local ports of an address.
    ports: usize,
}

impl Findings {
    fn can_run(&self) -> bool {
        let sufficient = self.features.as_deref().is_ok_and(probe::is_sufficient);
        sufficient && self.max_connections() > 0
    }

    /// The soft limit is raised to the hard one at start.
    fn max_connections(&self) -> usize {
        self.max_of(false)
    }

    fn max_of(&self, datagrams_only: bool) -> usize {
        let demand = Demand {
            workers: self.workers,
            addresses: 1,
            ahead: 0,
            datagrams_only,
            admin: false,
        };
        capacity::max_connections(self.descriptors.1.unwrap_or(u64::MAX), demand)
    }

    /// What holds a listener of datagrams.
    fn max_sessions(&self) -> String {
        format!(
            "{} with \"auto\" and UDP only; {} per `source` address by its local ports",
            self.max_of(true).min(self.ports),
            self.ports
        )
    }

    fn report(&self) -> String {
        let mut out = String::new();
        match &self.features {
            Ok(features) => write_features(&mut out, features),
            Err(error) => line(&mut out, &error.to_string()),
        }
        line(&mut out, "");
        let (soft, hard) = self.descriptors;
        let descriptors = format!("{} soft, {} hard", limit(soft), limit(hard));
        let quota = self.quota.map_or_else(
            || "no quota".to_owned(),
            |cpus| format!("cgroup quota {cpus}"),
        );
        let facts = [
            ("descriptors", descriptors),
            (
                "max_connections",
                format!("{} with \"auto\" and one address", self.max_connections()),
            ),
            ("max_sessions", self.max_sessions()),
            (
                "locked memory",
                self.memlock.map_or_else(|| limit(None), mebibytes),
            ),
            ("memory", mebibytes(self.memory)),
            ("CPUs", format!("{} usable, {quota}", self.cpus.len())),
            ("workers", format!("{} with \"auto\"", self.workers)),
        ];
        for (name, value) in facts {
            line(&mut out, &format!("{name:<18}{value}"));
        }
        line(&mut out, "");
        line(&mut out, self.verdict());
        out
    }

    fn verdict(&self) -> &'static str {
        match &self.features {
            Err(_) => "ringress can't run: io_uring can't be set up.",
            Ok(features) if !probe::is_sufficient(features) => {
                "ringress can't run: a required feature is missing."
            }
            Ok(_) if self.max_connections() == 0 => {
                "ringress can't run: the limit of open descriptors leaves no connection."
            }
            Ok(features) if features.iter().all(|f| f.present) => {
                "ringress runs here, with everything it can make use of."
            }
            Ok(_) => "ringress runs here; what is missing costs what the table says.",
        }
    }
}

fn write_features(out: &mut String, features: &[Feature]) {
    line(
        out,
        &format!("{:<22}{:<7}{:<6}{}", "io_uring", "Linux", "here", "for"),
    );
    for feature in features {
        let here = if feature.present { "yes" } else { "NO" };
        let Feature {
            name,
            since,
            wanted_for,
            ..
        } = feature;
        line(out, &format!("{name:<22}{since:<7}{here:<6}{wanted_for}"));
        if !feature.present {
            line(
                out,
                &format!("{:<35}without it: {}", "", feature.cost_of_absence),
            );
        }
    }
}

fn line(out: &mut String, text: &str) {
    // Writing to a String can't fail.
    let _ = writeln!(out, "{text}");
}

fn limit(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string())
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feature(present: bool, required: bool) -> Feature {
        Feature {
            name: "thing",
            since: "6.1",
            wanted_for: "speed",
            present,
            cost_of_absence: "slower",
            required,
        }
    }

    fn findings(features: Result<Vec<Feature>, SetupError>) -> Findings {
        Findings {
            features,
            descriptors: (Some(1024), Some(20_000)),
            memlock: Some(8 << 20),
            cpus: vec![0, 1],
            quota: Some(1),
            workers: 1,
            memory: 4 << 30,
            ports: 1_000,
        }
    }

    #[test]
    fn a_missing_wish_is_reported_with_its_cost_and_is_no_failure() {
        let findings = findings(Ok(vec![feature(true, true), feature(false, false)]));
        assert!(findings.can_run());
        let report = findings.report();
        assert!(
            report.contains("NO") && report.contains("without it: slower"),
            "{report}"
        );
    }

    #[test]
    fn a_missing_requirement_or_no_ring_at_all_is_a_failure() {
        assert!(!findings(Ok(vec![feature(false, true)])).can_run());
        let forbidden = findings(Err(SetupError::Forbidden));
        assert!(!forbidden.can_run());
        assert!(forbidden.report().contains("seccomp"));
    }

    #[test]
    fn no_descriptor_for_a_connection_is_a_failure() {
        let mut findings = findings(Ok(vec![feature(true, true)]));
        findings.descriptors = (Some(32), Some(32));
        assert!(!findings.can_run());
        assert!(findings.report().contains("open descriptors"));
    }

    #[test]
    fn connections_follow_from_the_hard_limit() {
        let findings = findings(Ok(Vec::new()));
        let report = findings.report();
        let expected = |max: usize| format!("{max} with \"auto\"");
        assert!(report.contains(&expected(findings.max_of(false))));
        // There are more descriptors than local ports.
        assert!(report.contains(&expected(1_000)), "{report}");
    }
}
