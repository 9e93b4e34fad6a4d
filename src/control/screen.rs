//! What the log tells of a process as it starts: a screenful, whatever the size of the configuration.

use super::bindings::Binding;
use super::start::Ready;
use crate::config::Config;
use crate::proxy::Snapshot;
use crate::ring::limits;
use crate::ring::listen::Transport;
use crate::ring::probe::Feature;
use crate::time::Instant;

/// Names of a list that are told; of the others, how many there are.
pub(super) const SHOWN: usize = 10;

/// Of `names`, joined, as many as are told.
pub(super) fn some_of<T: AsRef<str>>(names: &[T]) -> String {
    let shown: Vec<_> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    let shown = shown.join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Says what this is and what it has: before anything is served.
pub(super) fn tell_machine(ready: &Ready) {
    let kernel = rustix::system::uname();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        kernel = %kernel.release().to_string_lossy(),
        pid = std::process::id(),
        configuration = ready.source.as_ref().map(|it| tracing::field::display(it.display())),
        "ringress"
    );
    let (obtained, missing) = optional(&ready.features);
    let without = super::features_left_out();
    let missing = (!missing.is_empty()).then_some(missing);
    tracing::info!(obtained, missing, without, "io_uring");
    let plan = ready.plan();
    let usable = limits::usable_cpus();
    let cpus = (0..plan.workers).map(|worker| usable[worker % usable.len()].to_string());
    let cpus = plan.pinned.then(|| some_of(&cpus.collect::<Vec<_>>()));
    tracing::info!(workers = plan.workers, cpus, "workers");
    tracing::info!(
        descriptors = limits::nofile_limit().0,
        memlock = memory(limits::memlock_limit()),
        max_connections = ready.max_connections(),
        buffer_memory_per_worker = memory(Some(plan.buffer_memory)),
        "limits"
    );
}

/// Says what is listened on from now on; where that is much, the rest of it at level debug.
pub(super) fn tell_listening<'a>(new: impl ExactSizeIterator<Item = &'a Binding>) {
    let more = new.len().saturating_sub(SHOWN);
    for (place, binding) in new.enumerate() {
        let (listener, address) = (&binding.listener, &binding.sockets.address);
        let transport = match (binding.sockets.transport, address.as_ip()) {
            (Transport::Datagrams, _) => "udp",
            (Transport::Stream, Some(_)) => "tcp",
            (Transport::Stream, None) => "unix",
        };
        match place < SHOWN {
            true => tracing::info!(%listener, %address, transport, "listening"),
            false => tracing::debug!(%listener, %address, transport, "listening"),
        }
    }
    if more > 0 {
        tracing::info!("and {more} more addresses");
    }
}

/// Says where sessions go, once everything is in place.
pub(super) fn tell_upstreams(config: &Config, snapshot: &Snapshot, now: Instant) {
    for (model, upstream) in config.upstreams.iter().zip(&snapshot.upstreams).take(SHOWN) {
        tracing::info!(
            upstream = %model.name,
            ready = upstream.ready(now),
            backends = model.backends.len(),
            balance = model.balance.name,
            "upstream"
        );
    }
    let more = config.upstreams.len().saturating_sub(SHOWN);
    if more > 0 {
        let ready = snapshot.upstreams.iter().skip(SHOWN);
        let ready = ready.filter(|upstream| upstream.ready(now) > 0).count();
        tracing::info!(ready, "and {more} more upstreams");
    }
}

/// What ringress can do without, as it is here, and as it isn't.
fn optional(features: &[Feature]) -> (String, String) {
    let names = |present: bool| {
        let some = features
            .iter()
            .filter(|it| !it.required && it.present == present);
        some.map(|it| it.name).collect::<Vec<_>>().join(", ")
    };
    (names(true), names(false))
}

fn memory(bytes: Option<u64>) -> String {
    match bytes {
        None => "unlimited".to_owned(),
        Some(bytes) if bytes < 1 << 20 => format!("{} KiB", bytes >> 10),
        Some(bytes) => format!("{} MiB", bytes >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_list_the_first_ones_are_told_and_how_many_there_are() {
        let names: Vec<_> = (0..12).map(|number| number.to_string()).collect();
        assert_eq!(some_of(&names[..3]), "0, 1, 2");
        assert_eq!(some_of(&names[..10]), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9");
        assert_eq!(some_of(&names), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more");
    }

    #[test]
    fn memory_is_told_in_a_unit_that_fits() {
        assert_eq!(memory(None), "unlimited");
        assert_eq!(memory(Some(64 << 10)), "64 KiB");
        assert_eq!(memory(Some(8 << 20)), "8 MiB");
    }
}
