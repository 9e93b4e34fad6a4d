//! A started proxy.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use ringress::ring::{Ring, limits};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use super::{Peer, Place};
use crate::backend::Service;
use crate::error::Error;
use crate::{load, local, procstat};

/// How long a proxy may take until it forwards a first exchange.
const START_ATTEMPTS: u32 = 200;
const START_PAUSE: Duration = Duration::from_millis(25);
/// How long it may take to end before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// A process that was started here. Dropped, it ends.
pub(crate) struct Running {
    child: Child,
    /// The process and its descendants, once it serves.
    pub(crate) processes: Vec<u32>,
    pub(crate) listen: SocketAddr,
}

impl Running {
    /// Starts `peer` on `cpu` with its files below `folder`, and waits until it serves.
    pub(crate) fn start(
        ring: &Ring,
        peer: &Peer,
        cpu: usize,
        folder: &Path,
        backends: &[SocketAddr],
        service: Service,
    ) -> Result<Self, Error> {
        let listen = free_address()?;
        let launch = peer.launch(&Place {
            folder,
            listen,
            backends,
        });
        let writing = || Error::while_doing(format!("writing below {}", folder.display()));
        fs::create_dir_all(folder).map_err(writing())?;
        fs::write(folder.join(launch.file), &launch.text).map_err(writing())?;
        let log = File::create(folder.join(LOG)).map_err(writing())?;
        let both = log.try_clone().map_err(writing())?;
        let mut command = Command::new(&peer.program);
        command
            .args(&launch.arguments)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(both);
        let child = spawn_on(cpu, command)
            .map_err(Error::while_doing(format!("starting {}", peer.name)))?;
        let mut running = Self {
            processes: vec![child.id()],
            child,
            listen,
        };
        running.wait_ready(ring, peer, folder, service)?;
        running.processes = procstat::family(running.child.id());
        Ok(running)
    }

    fn wait_ready(
        &mut self,
        ring: &Ring,
        peer: &Peer,
        folder: &Path,
        service: Service,
    ) -> Result<(), Error> {
        for _ in 0..START_ATTEMPTS {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            if load::ask_once(ring, self.listen, service).is_ok() {
                return Ok(());
            }
            local::pass(ring, START_PAUSE)?;
        }
        let said = fs::read_to_string(folder.join(LOG)).unwrap_or_default();
        let name = peer.name;
        Err(Error::Failed(format!(
            "{name} did not serve; it said:\n{said}"
        )))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // It is our child and was not waited for, so the number is still its own.
        if let Some(id) = pid(self.child.id()) {
            let _ = kill_process(id, Signal::TERM);
            wait_for_end(id, END_PATIENCE);
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            // A master that is killed can't end its workers.
            for descendant in procstat::family(self.child.id())
                .into_iter()
                .filter_map(pid)
            {
                let _ = kill_process(descendant, Signal::KILL);
            }
        }
        let _ = self.child.wait();
    }
}

fn pid(number: u32) -> Option<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw)
}

/// Waits until the process has ended, `patience` at most.
fn wait_for_end(id: Pid, patience: Duration) {
    let Ok(process) = pidfd_open(id, PidfdFlags::empty()) else {
        return;
    };
    let mut wanted = [PollFd::new(&process, PollFlags::IN)];
    let patience = patience
        .try_into()
        .expect("seconds fit into the kernel's time");
    let _ = poll(&mut wanted, Some(&patience));
}

/// Starts `command` on one CPU: a process inherits the CPUs of the thread that starts it, so one that
/// is there for nothing else does.
fn spawn_on(cpu: usize, mut command: Command) -> std::io::Result<Child> {
    thread::scope(|scope| {
        let starter = scope.spawn(|| {
            limits::pin_to(cpu)?;
            command.spawn()
        });
        starter.join().expect("starting a process does not panic")
    })
}

/// An address that nobody listens on. Somebody may take it before the proxy does, who then says so.
fn free_address() -> Result<SocketAddr, Error> {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|socket| socket.local_addr())
        .map_err(Error::while_doing("looking for a free port"))
}

/// What a proxy prints.
const LOG: &str = "output.log";
