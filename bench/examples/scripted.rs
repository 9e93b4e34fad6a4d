//! A fixed run of a worker on the simulated driver, for counting instructions: the same ops, bytes
//! and completions each time, whatever the machine is doing. `bench/tests/instructions.rs` runs it
//! under callgrind. With the argument `policies` the worker does the same work with traffic policy
//! on, of which nothing refuses anybody.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use ringress::address::Address;
use ringress::config;
use ringress::proxy::{BindingId, ListenerSocket, Message, Shared, Worker};
use ringress::ring::sim::{Advance, BackendScript, ClientScript, Faults, Step, World};
use ringress::ring::{Mailbox, Ring};
use ringress::telemetry::events::Events;
use ringress::time::Instant;

const BARE: &str = r#"
[listeners.web]
bind = "192.0.2.1:80"
upstream = "app"

[upstreams.app]
backends = ["192.0.2.10:80", "192.0.2.11:80"]
"#;

/// Nothing probes here, so that health is what it was at first. Every client has an address of its own.
const POLICIES: &str = r#"
[listeners.web]
bind = "192.0.2.1:80"
upstream = "app"
rate_limit = { connections_per_ip = { rate = 100, burst = 1000 } }

[upstreams.app]
backends = ["192.0.2.10:80", "192.0.2.11:80"]
balance = "least-connections"
health_check = {}
outlier = {}
circuit_breaker = {}
"#;

/// Connections that stay, and what each exchanges.
const KEPT: usize = 64;
const EXCHANGES: usize = 200;
const BYTES: u64 = 128;
/// Connections for one exchange each.
const FRESH: usize = 400;

fn main() -> Result<(), Box<dyn Error>> {
    let text = match std::env::args().nth(1).as_deref() {
        None => BARE,
        Some("policies") => POLICIES,
        Some(other) => return Err(format!("neither nothing nor \"policies\": {other}").into()),
    };
    let config = config::parse(text, "the script", &mut config::SystemResolver)?;
    let front: Address = "192.0.2.1:80".parse::<std::net::SocketAddr>()?.into();
    let world = World::new(
        1,
        Faults {
            backlog: 4096,
            ..Faults::none()
        },
    );
    for backend in &config.upstreams[0].backends {
        world.backend(&backend.address, BackendScript::Echo);
    }
    for script in scripts() {
        world.client(Instant::default(), &front, script);
    }
    let (events, _) = Events::new();
    let shared = Shared::new(&config, 1, 10_000, events, 1);
    let ring = Ring::new(Box::new(world.driver()), 64 << 20);
    let listener = ListenerSocket {
        transport: ringress::ring::listen::Transport::Stream,
        address: None,
        number: 0,
        waits: false,
        binding: BindingId(0),
        listener: shared.snapshot.load().listeners[0].clone(),
        fd: world.listen(&front, 1)[0],
        shared: false,
        closed: Arc::new(()),
    };
    let (event, signal) = world.event();
    let mailbox = Mailbox::with_signal(Box::new(|| ()));
    let worker = Worker::new(ring, shared, 0, (mailbox.clone(), event));
    mailbox.post(Message::Listen(listener));
    signal.signal();
    run(&world, &worker)?;
    mailbox.post(Message::Drain(Duration::ZERO));
    signal.signal();
    run(&world, &worker)?;
    let whole = world
        .clients()
        .iter()
        .all(|client| client.intact && client.received == client.sent);
    let violations = world.violations();
    if !whole || !violations.is_empty() || !worker.is_done() {
        return Err(format!("the run went wrong: {violations:?}").into());
    }
    println!(
        "{} sessions, {} exchanges",
        KEPT + FRESH,
        KEPT * EXCHANGES + FRESH
    );
    Ok(())
}

fn scripts() -> impl Iterator<Item = ClientScript> {
    let exchange = [Step::send(BYTES), Step::Expect(BYTES)];
    let script = move |exchanges: usize| {
        let steps = std::iter::repeat_n(exchange.clone(), exchanges).flatten();
        ClientScript::new(steps.chain([Step::Finish, Step::ReadToEnd]).collect())
    };
    let kept = std::iter::repeat_n(script(EXCHANGES), KEPT);
    kept.chain(std::iter::repeat_n(script(1), FRESH))
}

/// Turns until nothing will happen any more.
fn run(world: &World, worker: &Worker) -> Result<(), Box<dyn Error>> {
    loop {
        turn(worker)?;
        if !world.progressed() && world.advance() == Advance::Quiet {
            return Ok(());
        }
    }
}

/// A name of its own, so that a worker's cost can be told from the simulated world's.
#[inline(never)]
fn turn(worker: &Worker) -> std::io::Result<()> {
    worker.turn()
}
