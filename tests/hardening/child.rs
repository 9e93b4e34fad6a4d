//! The child: goes through the steps in its environment, on its only thread, and says in a line what
//! comes of each.

use std::fmt::Display;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::thread;

use ringress::control::activation;
use ringress::control::privileges::{self, Identity};
use socket2::{Domain, Socket, Type};

/// The variable with the steps; `;` stands between them, `:` between the words of one.
pub(crate) const STEPS: &str = "HARDENING_STEPS";

/// What comes of a step: `Err` is as good a line as `Ok`.
type Outcome = Result<String, String>;

pub(crate) fn run(steps: &str) -> ExitCode {
    let mut shared = None;
    let mut left = steps;
    while !left.is_empty() {
        let (step, rest) = left.split_once(';').unwrap_or((left, ""));
        left = rest;
        let words: Vec<&str> = step.split(':').collect();
        let outcome = match words[..] {
            ["drop", user, group, keep] => drop_to(user, group, keep == "keep"),
            ["resolve", user, group] => resolve(user, group),
            ["myself"] => myself(),
            ["nnp"] => plain(privileges::no_new_privileges()),
            ["read", path] => plain(privileges::can_read([path])),
            ["port"] => low_port(),
            ["share"] => plain(share().map(|socket| shared = Some(socket))),
            ["join"] => plain(join(shared.as_ref().expect("shared before"))),
            ["sockets"] => sockets(),
            ["thread"] => {
                thread::spawn(thread::park);
                continue;
            }
            ["pause"] => pause(),
            ["exec"] => replace("/proc/self/exe", left),
            ["exec", program] => replace(program, left),
            _ => panic!("no such step: {step}"),
        };
        println!("{}", outcome.unwrap_or_else(|refusal| refusal));
    }
    ExitCode::SUCCESS
}

fn plain<T>(outcome: Result<T, impl Display>) -> Outcome {
    said(outcome.map(|_| "ok"))
}

fn said(outcome: Result<impl Display, impl Display>) -> Outcome {
    outcome
        .map(|done| done.to_string())
        .map_err(|refusal| refusal.to_string())
}

fn drop_to(user: &str, group: &str, keep_bind: bool) -> Outcome {
    let group = Some(group).filter(|group| !group.is_empty());
    let identity = Identity::resolve(Some(user), group).map_err(|refusal| refusal.to_string())?;
    let identity = identity.expect("it is somebody else");
    plain(privileges::drop_to(&identity, keep_bind))
}

fn resolve(user: &str, group: &str) -> Outcome {
    let found = Identity::resolve(Some(user), Some(group));
    said(found.map(|found| match found {
        Some(identity) => identity.to_string(),
        None => "nothing to do".to_owned(),
    }))
}

fn myself() -> Outcome {
    let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
    resolve(&user.to_string(), &group.to_string())
}

fn pause() -> Outcome {
    println!("paused");
    let _ = io::stdin().read_line(&mut String::new());
    Ok("went on".to_owned())
}

fn replace(program: &str, steps: &str) -> Outcome {
    let error = Command::new(program).env(STEPS, steps).exec();
    Err(format!("exec: {error}"))
}

/// The first port from 1023 down that nobody uses.
fn low_port() -> Outcome {
    let ports = (512..1024).rev();
    let mut tries = ports.map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
    let in_use = |tried: &io::Result<TcpListener>| {
        let error = tried.as_ref().err();
        error.is_some_and(|error| error.kind() == ErrorKind::AddrInUse)
    };
    said(
        tries
            .find(|tried| !in_use(tried))
            .expect("a port is free")
            .map(|_| "bound"),
    )
}

/// Whether anybody may bind the ports of [`low_port`].
pub(crate) fn low_ports_are_free() -> bool {
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let first: u16 = first.expect("Linux 4.11").trim().parse().expect("a number");
    first <= 512
}

/// A listening socket whose port others may share.
fn share() -> io::Result<Socket> {
    listen((Ipv4Addr::LOCALHOST, 0).into())
}

fn join(shared: &Socket) -> io::Result<Socket> {
    listen(shared.local_addr()?.as_socket().expect("an IP address"))
}

fn listen(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(1)?;
    Ok(socket)
}

/// A line for each socket, and one for a second try.
fn sockets() -> Outcome {
    let taken = activation::from_environment().map_err(|error| error.to_string())?;
    for socket in &taken {
        let address = socket.address().map_err(|error| error.to_string())?;
        println!("{} {address}", socket.name.as_deref().unwrap_or("-"));
    }
    said(activation::from_environment().map(|_| "taken twice"))
}
