//! A fixed run of a worker on the simulated driver, for counting instructions: the same ops, bytes
//! and completions each time, whatever the machine is doing. `bench/tests/instructions.rs` runs it
//! under callgrind. With the argument `policies` the worker does the same work with traffic policy
//! on, of which nothing refuses anybody; with `logged` every session is told to the access log. `plain MIB` and `passthrough MIB` echo so much on each of a few
//! connections behind a ClientHello: one takes the clients to the listener's upstream, the other where
//! the name leads.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use ringress::address::Address;
use ringress::config::{self, Config};
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

/// Nobody serves at `other`.
const BULK: &str = r#"
[listeners.web]
bind = "192.0.2.1:80"
upstream = "named"

[upstreams.named]
backends = ["192.0.2.10:80"]

[upstreams.other]
backends = ["192.0.2.11:80"]
"#;

/// The name that clients ask for in bulk.
const NAME: &str = "app.example.com";
/// Connections with bulk.
const BULKY: usize = 4;

/// Connections that stay, and what each exchanges.
const KEPT: usize = 64;
const EXCHANGES: usize = 200;
const BYTES: u64 = 128;
/// Connections for one exchange each.
const FRESH: usize = 400;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => exchanges(BARE, false),
        ["policies"] => exchanges(POLICIES, false),
        ["logged"] => exchanges(BARE, true),
        ["plain", mib] => bulk(mib.parse()?, false),
        ["passthrough", mib] => bulk(mib.parse()?, true),
        _ => Err(
            format!("not nothing, policies, logged, plain MIB or passthrough MIB: {words:?}")
                .into(),
        ),
    }
}

/// Kept connections with many exchanges, and fresh ones with one each. `logged`: the end of each is told.
fn exchanges(text: &str, logged: bool) -> Result<(), Box<dyn Error>> {
    let config = config::parse(text, "the script", &mut config::SystemResolver)?;
    let world = world();
    for backend in &config.upstreams[0].backends {
        world.backend(&backend.address, BackendScript::Echo);
    }
    for script in scripts() {
        world.client(Instant::default(), &front(), script);
    }
    let lines = serve(&world, &config, logged)?;
    if lines != if logged { KEPT + FRESH } else { 0 } {
        return Err(format!("{lines} sessions were told").into());
    }
    println!(
        "{} sessions, {} exchanges",
        KEPT + FRESH,
        KEPT * EXCHANGES + FRESH
    );
    Ok(())
}

/// An echo of so much, `mib`, behind a ClientHello that is passed on; `by_name` it is looked at for that.
fn bulk(mib: u64, by_name: bool) -> Result<(), Box<dyn Error>> {
    let mut config = config::parse(BULK, "the script", &mut config::SystemResolver)?;
    let place = |name: &str| config.upstreams.iter().position(|it| *it.name == *name);
    let (named, other) = place("named").zip(place("other")).expect("both are there");
    if by_name {
        let listener = &mut config.listeners[0];
        listener.upstream = other;
        listener.routes = vec![config::Route {
            sni: vec![NAME.into()],
            upstream: named,
        }];
    }
    let world = world();
    let (hello, backend) = (client_hello(NAME), &config.upstreams[named].backends[0]);
    world.backend(&backend.address, BackendScript::Echo);
    world.expect_opening(&backend.address, &hello);
    let bytes = hello.len() as u64 + (mib << 20);
    for _ in 0..BULKY {
        let script = ClientScript::exchange(bytes);
        world.client_with_opening(Instant::default(), &front(), script, &hello);
    }
    serve(&world, &config, false)?;
    // Each way.
    println!("{BULKY} sessions, {} bytes", BULKY as u64 * 2 * bytes);
    Ok(())
}

fn front() -> Address {
    std::net::SocketAddr::from(([192, 0, 2, 1], 80)).into()
}

fn world() -> World {
    let faults = Faults {
        backlog: 4096,
        ..Faults::none()
    };
    World::new(1, faults)
}

/// One worker, from its start until all clients have gone and it has drained. How many sessions were told.
fn serve(world: &World, config: &Config, logged: bool) -> Result<usize, Box<dyn Error>> {
    let (events, told) = Events::new();
    events.sessions.tell(logged);
    let shared = Shared::new(config, 1, 10_000, events, 1);
    let ring = Ring::new(Box::new(world.driver()), 64 << 20);
    let listener = ListenerSocket {
        transport: ringress::ring::listen::Transport::Stream,
        address: None,
        number: 0,
        waits: false,
        binding: BindingId(0),
        listener: shared.snapshot.load().listeners[0].clone(),
        fd: world.listen(&front(), 1)[0],
        shared: false,
        closed: Arc::new(()),
    };
    let (event, signal) = world.event();
    let mailbox = Mailbox::with_signal(Box::new(|| ()));
    let worker = Worker::new(ring, shared, 0, (mailbox.clone(), event));
    mailbox.post(Message::Listen(listener));
    signal.signal();
    run(world, &worker)?;
    mailbox.post(Message::Drain(Duration::ZERO));
    signal.signal();
    run(world, &worker)?;
    let whole = world
        .clients()
        .iter()
        .all(|client| client.intact && client.received == client.sent);
    let violations = world.violations();
    if !whole || !violations.is_empty() || !worker.is_done() {
        return Err(format!("the run went wrong: {violations:?}").into());
    }
    Ok(told.records.try_iter().count())
}

/// A ClientHello of TLS 1.3 for `name`, in one record (RFC 8446, 4.1.2; RFC 6066, 3), without what only
/// matters to who answers it.
fn client_hello(name: &str) -> Vec<u8> {
    let with_length = |body: &[u8]| {
        let length = body.len() as u16;
        [&length.to_be_bytes(), body].concat()
    };
    let server_name = with_length(&[&[0], &with_length(name.as_bytes())[..]].concat());
    let extensions = [
        &[0, 0],
        &with_length(&server_name)[..],
        // supported_versions: TLS 1.3
        &[0, 43, 0, 3, 2, 3, 4],
    ]
    .concat();
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[32],
        &[9; 32],
        &with_length(&[0x13, 0x01]),
        &[1, 0],
        &with_length(&extensions),
    ]
    .concat();
    let message = [&[1, 0], &with_length(&body)[..]].concat();
    [&[22, 3, 1], &with_length(&message)[..]].concat()
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
