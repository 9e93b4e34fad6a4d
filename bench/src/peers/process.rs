//! A started proxy.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use ringress::ring::{Ring, limits};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, pidfd_send_signal,
    waitid,
};

use super::{Peer, Place, Protocol};
use crate::error::Error;
use crate::{local, procstat};

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
    /// Those that took over from it one after another.
    heirs: Vec<Heir>,
}

/// A process that another one started to take over from it. It becomes a child of this process when the
/// other one ends ([`set_child_subreaper`](rustix::process::set_child_subreaper)).
pub(crate) struct Heir {
    pub(crate) id: u32,
    /// It alone, even after its number was given to another process.
    handle: OwnedFd,
}

impl Heir {
    /// The process of this number, which lives.
    pub(crate) fn new(id: u32) -> io::Result<Self> {
        let process = pid(id).ok_or(io::ErrorKind::InvalidInput)?;
        let handle = pidfd_open(process, PidfdFlags::empty())?;
        Ok(Self { id, handle })
    }
}

impl Running {
    /// Starts `peer` on `cpu`, and waits until it serves: until `ask` had an answer from its address.
    pub(crate) fn start(
        ring: &Ring,
        peer: &Peer,
        cpu: usize,
        place: &Place<'_>,
        ask: &mut dyn FnMut(SocketAddr) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let (folder, listen) = (place.folder, place.listen);
        let launch = peer.launch(place);
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
            heirs: Vec::new(),
        };
        running.wait_ready(ring, peer, folder, ask)?;
        running.processes = procstat::family(running.child.id());
        Ok(running)
    }

    /// The process that was started.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// It has been replaced, by the last of them.
    pub(crate) fn inherited_by(&mut self, heirs: Vec<Heir>) {
        self.heirs.extend(heirs);
    }

    fn wait_ready(
        &mut self,
        ring: &Ring,
        peer: &Peer,
        folder: &Path,
        ask: &mut dyn FnMut(SocketAddr) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for _ in 0..START_ATTEMPTS {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            if ask(self.listen).is_ok() {
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
        // The last one serves; those before it go on only as long as they have sessions.
        for heir in self.heirs.iter().rev() {
            let _ = pidfd_send_signal(&heir.handle, Signal::TERM);
            wait_for_end(&heir.handle, END_PATIENCE);
            let _ = pidfd_send_signal(&heir.handle, Signal::KILL);
        }
        self.end_child();
        for heir in &self.heirs {
            // One whose parent reaped it is no child of ours.
            let _ = waitid(WaitId::PidFd(heir.handle.as_fd()), WaitIdOptions::EXITED);
        }
    }
}

impl Running {
    fn end_child(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // It is our child and was not waited for, so the number is still its own.
        if let Some(id) = pid(self.child.id()) {
            let _ = kill_process(id, Signal::TERM);
            if let Ok(handle) = pidfd_open(id, PidfdFlags::empty()) {
                wait_for_end(&handle, END_PATIENCE);
            }
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
fn wait_for_end(process: &OwnedFd, patience: Duration) {
    let mut wanted = [PollFd::new(process, PollFlags::IN)];
    let patience = patience
        .try_into()
        .expect("seconds fit into the kernel's time");
    let _ = poll(&mut wanted, Some(&patience));
}

/// Starts `command` on one CPU: a process inherits the CPUs of the thread that starts it, so one that
/// is there for nothing else does.
fn spawn_on(cpu: usize, mut command: Command) -> io::Result<Child> {
    thread::scope(|scope| {
        let starter = scope.spawn(|| {
            limits::pin_to(cpu)?;
            command.spawn()
        });
        starter.join().expect("starting a process does not panic")
    })
}

/// An address that nobody listens on. Somebody may take it before the proxy does, who then says so.
pub(crate) fn free_address(protocol: Protocol) -> Result<SocketAddr, Error> {
    const ANY_PORT: (&str, u16) = ("127.0.0.1", 0);
    let address = match protocol {
        Protocol::Tcp | Protocol::Tls => {
            TcpListener::bind(ANY_PORT).and_then(|socket| socket.local_addr())
        }
        Protocol::Udp => UdpSocket::bind(ANY_PORT).and_then(|socket| socket.local_addr()),
    };
    address.map_err(Error::while_doing("looking for a free port"))
}

/// What a proxy prints.
pub(crate) const LOG: &str = "output.log";
