//! What machine the numbers are from.

use std::fs;

use ringress::ring::limits;
use serde::Serialize;

/// The machine, as far as it matters to whoever compares numbers.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) usable_cpus: usize,
    pub(crate) memory_mib: u64,
    /// Runnable processes of the last minute before the run: others at work disturb.
    pub(crate) load_before: f64,
}

impl Machine {
    pub(crate) fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: cpu_model(&read("/proc/cpuinfo")),
            usable_cpus: limits::usable_cpus().len(),
            memory_mib: limits::total_memory() >> 20,
            load_before: load_average(&read("/proc/loadavg")),
        }
    }
}

/// Not all architectures name it.
fn cpu_model(cpuinfo: &str) -> String {
    let named = cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    named.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

fn load_average(text: &str) -> f64 {
    let first = text.split(' ').next();
    first.and_then(|text| text.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cpu_names_the_model() {
        let text = "processor\t: 0\nmodel name\t: A: B\n\nmodel name\t: C\n";
        assert_eq!(cpu_model(text), "A: B");
        assert_eq!(cpu_model("CPU part : 0xd0c\n"), std::env::consts::ARCH);
        assert!((load_average("1.25 0.9 0.8 1/2 3\n") - 1.25).abs() < 1e-9);
    }
}
