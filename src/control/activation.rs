//! Sockets that the service manager has bound and hands over at the start (sd_listen_fds(3)): what they
//! are, and which address of which listener each one is for. It accepts nothing and closes nothing that
//! has found its place.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use super::sockets;
use crate::address::Address;
use crate::config::Listener;
use crate::ring::listen::{self, Transport, inherit};

/// Variables that speak to one process only: whoever starts another one, as an upgrade does, takes them
/// out of its environment.
pub const FOR_THIS_PROCESS: [&str; 4] = [
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
];

/// A descriptor that was handed over.
#[derive(Debug)]
pub struct Activated {
    /// FileDescriptorName=, which is the socket unit's name if there is none.
    pub name: Option<String>,
    /// Closed on exec.
    pub fd: OwnedFd,
}

/// A place for a socket: a listener of the configuration, and which of its addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Index into the listeners.
    pub listener: usize,
    /// Index into [`Listener::bind`].
    pub bind: usize,
}

/// Takes what LISTEN_FDS announces to this process, in its order. Called a second time it fails: the
/// descriptors are taken.
///
/// # Errors
/// The variables are wrong, or a descriptor that they announce isn't there.
pub fn from_environment() -> Result<Vec<Activated>, Error> {
    let variable = |name: &str| {
        let value = std::env::var_os(name)?;
        Some(value.to_string_lossy().into_owned())
    };
    let announced = announced(variable, std::process::id())?;
    let taken = announced.into_iter().map(|(number, name)| {
        let fd = inherit(number).map_err(|error| Error::Missing { number, error })?;
        Ok(Activated { name, fd })
    });
    taken.collect()
}

/// SD_LISTEN_FDS_START
const FIRST: RawFd = 3;

fn announced(
    variable: impl Fn(&str) -> Option<String>,
    pid: u32,
) -> Result<Vec<(RawFd, Option<String>)>, Error> {
    let (Some(process), Some(count)) = (variable("LISTEN_PID"), variable("LISTEN_FDS")) else {
        return Ok(Vec::new());
    };
    let wrong = |variable, value: &str| Error::Variable {
        variable,
        value: value.to_owned(),
    };
    let meant: u32 = process.parse().map_err(|_| wrong("LISTEN_PID", &process))?;
    if meant != pid {
        return Ok(Vec::new());
    }
    let descriptors: u16 = count.parse().map_err(|_| wrong("LISTEN_FDS", &count))?;
    let names = variable("LISTEN_FDNAMES");
    let names: Vec<Option<String>> = match &names {
        Some(names) => names.split(':').map(named).collect(),
        None => vec![None; usize::from(descriptors)],
    };
    if names.len() != usize::from(descriptors) {
        let names = variable("LISTEN_FDNAMES").unwrap_or_default();
        return Err(wrong("LISTEN_FDNAMES", &names));
    }
    Ok((FIRST..).zip(names).collect())
}

fn named(name: &str) -> Option<String> {
    // What systemd says for descriptors without a name.
    (!name.is_empty() && name != "unknown").then(|| name.to_owned())
}

impl Activated {
    /// The address that it listens on.
    ///
    /// # Errors
    /// It isn't a socket that takes connections or datagrams at an address which a configuration can name.
    pub fn address(&self) -> Result<Address, Error> {
        self.found().map(|(address, _)| address)
    }

    fn found(&self) -> Result<(Address, Transport), Error> {
        let found = found(&self.fd);
        found.map_err(|error| Error::NotListening {
            name: self.shown(),
            error,
        })
    }

    /// The place that it is for: the listener of its name, or if no listener has that name the one that
    /// binds its address.
    ///
    /// # Errors
    /// As [`Activated::address`] and [`place`].
    pub fn place(&self, listeners: &[Listener]) -> Result<Place, Error> {
        let (address, transport) = self.found()?;
        place(self.name.as_deref(), (&address, transport), listeners)
    }

    fn shown(&self) -> String {
        self.name
            .clone()
            .unwrap_or_else(|| "without a name".to_owned())
    }
}

fn found(fd: &OwnedFd) -> io::Result<(Address, Transport)> {
    let other = |what: &str| Err(io::Error::other(what.to_owned()));
    let found = listen::describe(fd.as_fd())?;
    match (found.stream, found.listening) {
        (false, _) if found.address.as_ip().is_none() => {
            other("it is neither a stream socket nor one of UDP")
        }
        (false, _) => Ok((found.address, Transport::Datagrams)),
        (true, false) => other("it does not listen"),
        (true, true) => Ok((found.address, Transport::Stream)),
    }
}

/// The place of a socket with this name and address that takes this. Several sockets may have the same one.
///
/// # Errors
/// There is none; it says what the configuration has.
pub fn place(
    name: Option<&str>,
    (address, transport): (&Address, Transport),
    listeners: &[Listener],
) -> Result<Place, Error> {
    let bind = |listener: &Listener| {
        let fits = sockets::transport(listener) == transport;
        let found = listener.bind.iter().position(|bound| bound == address);
        found.filter(|_| fits)
    };
    let by_name = listeners
        .iter()
        .position(|listener| name == Some(&*listener.name));
    if let Some(listener) = by_name {
        let bind = bind(&listeners[listener]).ok_or_else(|| Error::OtherAddress {
            listener: listeners[listener].name.to_string(),
            address: address.clone(),
            binds: listed(&listeners[listener].bind),
        })?;
        return Ok(Place { listener, bind });
    }
    let mut by_address = listeners.iter().enumerate();
    by_address
        .find_map(|(listener, found)| {
            let bind = bind(found)?;
            Some(Place { listener, bind })
        })
        .ok_or_else(|| Error::NoListener {
            name: name.unwrap_or("without a name").to_owned(),
            address: address.clone(),
            listeners: listeners
                .iter()
                .map(|listener| format!("{} ({})", listener.name, listed(&listener.bind)))
                .collect::<Vec<_>>()
                .join(", "),
        })
}

fn listed(addresses: &[Address]) -> String {
    let shown: Vec<_> = addresses.iter().map(Address::to_string).collect();
    shown.join(", ")
}

/// Why what was handed over can't be used.
#[derive(Debug)]
pub enum Error {
    /// The manager's variables contradict themselves.
    Variable {
        /// Its name.
        variable: &'static str,
        /// What it says.
        value: String,
    },
    /// A descriptor that was announced isn't there, or was taken already.
    Missing {
        /// Its number.
        number: RawFd,
        /// As fcntl(2).
        error: io::Error,
    },
    /// It isn't a socket to accept connections from.
    NotListening {
        /// Its name.
        name: String,
        /// What is wrong with it.
        error: io::Error,
    },
    /// The listener of its name binds other addresses.
    OtherAddress {
        /// The listener, and the descriptor's name.
        listener: String,
        /// Where the socket listens.
        address: Address,
        /// What the listener binds.
        binds: String,
    },
    /// No listener has its name or its address.
    NoListener {
        /// Its name.
        name: String,
        /// Where the socket listens.
        address: Address,
        /// The listeners there are, and what they bind.
        listeners: String,
    },
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable { variable, value } => write!(
                f,
                "socket activation: {variable}={value:?} can't be; it is set by the service manager, \
                 and a number of descriptors or a name for each is expected"
            ),
            Self::Missing { number, error } => write!(
                f,
                "socket activation: descriptor {number} is announced by LISTEN_FDS and can't be taken: {error}"
            ),
            Self::NotListening { name, error } => write!(
                f,
                "socket activation: socket \"{name}\": {error}; ringress takes sockets of \
                 ListenStream= with Accept=no, or ListenDatagram="
            ),
            Self::OtherAddress {
                listener,
                address,
                binds,
            } => write!(
                f,
                "socket activation: socket \"{listener}\" listens on {address}, and the listener of that \
                 name binds {binds}: let ListenStream= or ListenDatagram= and bind say the same"
            ),
            Self::NoListener {
                name,
                address,
                listeners,
            } => write!(
                f,
                "socket activation: socket \"{name}\" listens on {address}, which is for no listener; there \
                 are {listeners}: set FileDescriptorName= to a listener's name, or bind that address"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use std::path::Path;

    use super::*;

    fn ip(text: &str) -> Address {
        Address::Ip(text.parse().unwrap())
    }

    fn listeners() -> [Listener; 2] {
        let unix = Address::Unix(Path::new("/run/app.sock").into());
        [
            Listener::new("web".into(), vec![ip("0.0.0.0:80"), ip("[::]:80")], 0),
            Listener::new("app".into(), vec![ip("127.0.0.1:81"), unix], 0),
        ]
    }

    fn at(listener: usize, bind: usize) -> Place {
        Place { listener, bind }
    }

    #[test]
    fn a_name_and_an_address_find_their_place() {
        let stream = Transport::Stream;
        let place =
            |name, address: &str| place(name, (&ip(address), stream), &listeners()).unwrap();
        assert_eq!(place(Some("web"), "[::]:80"), at(0, 1));
        assert_eq!(place(Some("ringress.socket"), "127.0.0.1:81"), at(1, 0));
        assert_eq!(place(None, "0.0.0.0:80"), at(0, 0));
    }

    #[test]
    fn a_socket_without_a_place_says_what_there_is() {
        let said = |name, address: &str| {
            let address = ip(address);
            let refused = place(name, (&address, Transport::Stream), &listeners());
            refused.expect_err("no place").to_string()
        };
        // By its name it is for one listener, by its address for another.
        let other = said(Some("web"), "127.0.0.1:81");
        for part in ["\"web\"", "127.0.0.1:81", "0.0.0.0:80, [::]:80"] {
            assert!(other.contains(part), "{other}");
        }
        let none = said(Some("wbe"), "127.0.0.1:82");
        for part in [
            "\"wbe\"",
            "127.0.0.1:82",
            "app (127.0.0.1:81, unix:/run/app.sock)",
        ] {
            assert!(none.contains(part), "{none}");
        }
        assert!(said(None, "127.0.0.1:80").contains("without a name"));
    }

    fn announce(variables: &[(&str, &str)]) -> Result<Vec<(RawFd, Option<String>)>, Error> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        announced(variable, 7)
    }

    const OURS: (&str, &str) = ("LISTEN_PID", "7");

    #[test]
    fn descriptors_are_numbered_from_3_and_named() {
        let names = ("LISTEN_FDNAMES", "web:unknown:");
        let found = announce(&[OURS, ("LISTEN_FDS", "3"), names]).unwrap();
        assert_eq!(found, [(3, Some("web".to_owned())), (4, None), (5, None)]);
        let found = announce(&[OURS, ("LISTEN_FDS", "1")]).unwrap();
        assert_eq!(found, [(3, None)]);
    }

    #[test]
    fn what_is_for_another_process_or_nobody_is_left_alone() {
        let others = ("LISTEN_PID", "8");
        for variables in [
            &[("LISTEN_FDS", "1")][..],
            &[OURS],
            &[others, ("LISTEN_FDS", "1")],
        ] {
            assert_eq!(announce(variables).unwrap(), []);
        }
    }

    #[test]
    fn contradictions_are_errors() {
        for variables in [
            &[("LISTEN_PID", "me"), ("LISTEN_FDS", "1")][..],
            &[OURS, ("LISTEN_FDS", "-1")],
            &[OURS, ("LISTEN_FDS", "4000000000")],
            &[OURS, ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "web")],
            &[OURS, ("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "a:b")],
        ] {
            assert!(announce(variables).is_err(), "{variables:?}");
        }
    }

    fn activated(fd: impl Into<OwnedFd>) -> Activated {
        Activated {
            name: None,
            fd: fd.into(),
        }
    }

    #[test]
    fn listening_sockets_tell_their_address() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let bound = Address::Ip(tcp.local_addr().unwrap());
        assert_eq!(activated(tcp).address().unwrap(), bound);
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let bound = Address::Ip(udp.local_addr().unwrap());
        let found = activated(udp).found().unwrap();
        assert_eq!(found, (bound, Transport::Datagrams));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let unix = UnixListener::bind(&path).unwrap();
        let address = activated(unix).address().unwrap();
        assert_eq!(address, Address::Unix(path.as_path().into()));
    }

    #[test]
    fn what_does_not_listen_is_refused() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let (datagrams, _) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        for (fd, part) in [
            (activated(client), "does not listen"),
            (activated(file), "socket"),
            (activated(datagrams), "neither"),
        ] {
            let said = fd.address().expect_err("refused").to_string();
            assert!(
                said.contains(part) && said.contains("ListenStream="),
                "{said}"
            );
        }
    }
}
