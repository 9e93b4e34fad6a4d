//! The listening sockets of one address as the control thread holds them: bound here or inherited, handed
//! to the workers and to a new process. They are duplicates of what the workers accept from.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::activation::{self, Activated};
use super::upgrade::OfferedBinding;
use crate::address::Address;
use crate::config::{Listener, Protocol};
use crate::ring::listen::{self, Identity, ListenOptions, Transport};

/// One per worker where workers can have one each, which unix sockets can't; dropping the last handle of
/// a unix socket removes its path if that is still its own.
pub(super) struct Sockets {
    pub(super) transport: Transport,
    /// With the port that the kernel chose.
    pub(super) address: Address,
    /// Before the sockets: another file may have its number once they are closed.
    path: Option<OwnPath>,
    handles: Vec<OwnedFd>,
    /// They are another process's, too, until this one serves.
    foreign: bool,
    /// Somebody else keeps them open: closing them here resets nobody, and they may be wanted again.
    pub(super) held: bool,
}

/// The path of a unix socket.
struct OwnPath {
    path: PathBuf,
    identity: Identity,
    /// Somebody else goes on with it.
    left: bool,
}

impl Drop for OwnPath {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        if let Err(error) = listen::remove_path(&self.path, self.identity) {
            let path = self.path.display();
            tracing::warn!(%path, %error, "the file of a unix socket can't be removed");
        }
    }
}

impl Sockets {
    /// Binds an address that nobody else may have.
    pub(super) fn bind(
        address: &Address,
        workers: usize,
        options: &ListenOptions<'_>,
    ) -> io::Result<Self> {
        if let Address::Unix(path) = address {
            let (handles, identity) = listen::listen_unix(path, 1, options)?;
            let own = OwnPath {
                path: path.to_path_buf(),
                identity,
                left: false,
            };
            return Ok(Self {
                path: Some(own),
                ..Self::new(address.clone(), handles, options)
            });
        }
        let (handles, address) = listen::listen(address, workers, options)?;
        Ok(Self::new(address, handles, options))
    }

    /// Of our own, without a path.
    fn new(address: Address, handles: Vec<OwnedFd>, options: &ListenOptions<'_>) -> Self {
        Self {
            transport: options.transport,
            address,
            path: None,
            handles,
            foreign: false,
            held: false,
        }
    }

    /// For an address of which this process has a part already.
    pub(super) fn beside(
        address: &Address,
        workers: usize,
        options: &ListenOptions<'_>,
    ) -> io::Result<Self> {
        let Some(ip) = address.as_ip() else {
            return Err(io::Error::from(io::ErrorKind::AddrInUse));
        };
        let handles = listen::listen_beside(ip, workers, options)?;
        Ok(Self::new(address.clone(), handles, options))
    }

    /// Makes them what `workers` workers need, once this process serves; before, they were not touched, so
    /// that whoever handed them over could go on as if nothing had happened. With fewer workers than
    /// sockets, new connections go to as many sockets as there are workers, and none of the others is
    /// closed: somebody may be in its queue.
    pub(super) fn settle(&mut self, workers: usize, options: &ListenOptions<'_>) {
        if !std::mem::take(&mut self.foreign) {
            return;
        }
        if let Some(own) = &mut self.path {
            own.left = self.held;
        }
        for socket in &self.handles {
            if let Err(error) = listen::adjust(socket.as_fd(), options) {
                tracing::warn!(address = %self.address, %error, "a socket that was handed over");
            }
        }
        if self.transport == Transport::Datagrams {
            // Each is received from: another number of them would send sessions elsewhere.
            return;
        }
        let fewer = u32::try_from(workers)
            .ok()
            .filter(|_| self.count() > workers);
        let first = self.handles[0].as_fd();
        // It fails where nothing was steered, or can be.
        let _ = fewer.map_or_else(
            || listen::unsteer(first),
            |count| listen::steer(first, count),
        );
    }

    /// Lets a client's datagrams stay with a worker whatever its port, or not.
    pub(super) fn steer_by_source(&self, by_source: bool) {
        let first = self.handles[0].as_fd();
        // ENOENT where nothing was steered; a socket alone, which is in no group, gets all.
        let _ = match by_source {
            true => listen::steer_by_source(first, self.handles.len() as u32),
            false => listen::unsteer(first),
        };
    }

    /// A descriptor of each socket; for connections one for each worker at least. By worker.
    pub(super) fn for_workers(&self, workers: usize) -> io::Result<Vec<(usize, OwnedFd)>> {
        let count = match self.transport {
            Transport::Stream => self.handles.len().max(workers),
            // Datagrams that two workers receive from one socket go to either of them.
            Transport::Datagrams => self.handles.len(),
        };
        let sockets = self.handles.iter().cycle().take(count).enumerate();
        sockets
            .map(|(number, socket)| Ok((number % workers, socket.try_clone()?)))
            .collect()
    }

    /// Lets another user add sockets to the group, and have the path.
    pub(super) fn give_to(&self, (uid, gid): (u32, u32)) -> io::Result<()> {
        for socket in &self.handles {
            listen::give_to(socket.as_fd(), uid, gid)?;
        }
        match &self.path {
            Some(own) => listen::own_path(&own.path, Some(uid), Some(gid)),
            None => Ok(()),
        }
    }

    /// Takes no connection that is begun from now on; false where that can't be had.
    pub(super) fn refuse_new(&self) -> bool {
        let mut handles = self.handles.iter();
        self.transport == Transport::Stream
            && self.path.is_none()
            && !self.held
            && handles.all(|socket| listen::refuse_new(socket.as_fd()).is_ok())
    }

    /// Others that are the same.
    pub(super) fn duplicate(&self) -> io::Result<Self> {
        let handles = self.handles.iter().map(OwnedFd::try_clone);
        Ok(Self {
            transport: self.transport,
            address: self.address.clone(),
            path: None,
            handles: handles.collect::<io::Result<_>>()?,
            foreign: false,
            held: self.held,
        })
    }

    /// They are what the configuration means with this address of `listener`.
    pub(super) fn serves(&self, listener: &Listener, address: &Address) -> bool {
        let fits = |it: &OwnedFd| {
            let found = listen::describe(it.as_fd());
            found.is_ok_and(|it| !is_any_ipv6(address) || it.ipv6_only == listener.ipv6_only)
        };
        self.transport == transport(listener)
            && self.address == *address
            && self.handles.iter().all(fits)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.handles.len()
    }

    pub(super) fn handles(&self) -> &[OwnedFd] {
        &self.handles
    }

    /// What they take.
    pub(super) fn extent(&self) -> Extent<'_> {
        Extent::of(&self.address, &self.handles, self.transport)
    }

    /// Which file its path is, if that is its own.
    pub(super) fn identity(&self) -> Option<Identity> {
        let own = self.path.as_ref().filter(|own| !own.left)?;
        Some(own.identity)
    }

    /// What is left when they are not used any more: those that somebody else keeps open.
    pub(super) fn leave(self, listener: Arc<str>, wanted: Address) -> Option<Inherited> {
        self.held.then(|| Inherited {
            number: None,
            transport: self.transport,
            listener: Some(listener),
            wanted,
            address: self.address,
            sockets: self.handles,
            identity: None,
            held: true,
        })
    }

    /// Another process goes on with the path.
    pub(super) fn leave_path(&mut self) {
        if let Some(own) = &mut self.path {
            own.left = true;
        }
    }
}

/// Listening sockets that were there before the process.
pub(super) struct Inherited {
    /// In the order of whoever handed them over, if that was a process before this one.
    pub(super) number: Option<usize>,
    pub(super) transport: Transport,
    /// Whose they were, or are to be.
    pub(super) listener: Option<Arc<str>>,
    /// What the configuration had for them.
    pub(super) wanted: Address,
    pub(super) address: Address,
    pub(super) sockets: Vec<OwnedFd>,
    /// Of a unix socket's path, where that is known to be ours.
    pub(super) identity: Option<Identity>,
    /// Somebody else keeps them open.
    pub(super) held: bool,
}

impl Inherited {
    /// What another process offers with these sockets.
    pub(super) fn offered(
        number: usize,
        offered: &OfferedBinding,
        sockets: Vec<OwnedFd>,
    ) -> io::Result<Self> {
        if sockets.is_empty() {
            return Err(io::Error::other("an address was offered without a socket"));
        }
        let unix = offered.unix;
        Ok(Self {
            number: Some(number),
            transport: match offered.datagrams {
                true => Transport::Datagrams,
                false => Transport::Stream,
            },
            listener: Some(Arc::from(offered.listener.as_str())),
            wanted: address(&offered.configured)?,
            address: address(&offered.address)?,
            sockets,
            identity: unix.map(|(device, inode)| Identity { device, inode }),
            held: offered.held,
        })
    }

    /// What [`Inherited::offered`] makes this of.
    pub(super) fn to_offer(&self) -> OfferedBinding {
        OfferedBinding {
            listener: self.listener.as_deref().unwrap_or_default().to_owned(),
            configured: self.wanted.to_string(),
            address: self.address.to_string(),
            sockets: self.sockets.len(),
            unix: None,
            held: self.held,
            datagrams: self.transport == Transport::Datagrams,
            admin: false,
        }
    }

    /// The service manager's, for the listeners that they are meant for.
    pub(super) fn activated(
        activated: Vec<Activated>,
        listeners: &[Listener],
    ) -> Result<Vec<Self>, activation::Error> {
        let mut all: Vec<Self> = Vec::new();
        for socket in activated {
            let place = socket.place(listeners)?;
            let address = socket.address()?;
            let listener = &listeners[place.listener];
            let transport = transport(listener);
            let same = |known: &&mut Self| known.address == address && known.transport == transport;
            match all.iter_mut().find(same) {
                Some(known) => known.sockets.push(socket.fd),
                None => all.push(Self {
                    number: None,
                    transport,
                    listener: Some(listener.name.clone()),
                    wanted: listener.bind[place.bind].clone(),
                    address,
                    sockets: vec![socket.fd],
                    identity: None,
                    held: true,
                }),
            }
        }
        Ok(all)
    }

    /// It is what the configuration means with this address of `listener`.
    pub(super) fn serves(&self, listener: &Listener, address: &Address) -> bool {
        if self.transport != transport(listener) {
            return false;
        }
        match address.as_ip() {
            Some(ip) if ip.port() == 0 => {
                self.wanted == *address && self.listener.as_ref() == Some(&listener.name)
            }
            Some(_) if is_any_ipv6(address) => {
                self.address == *address && self.fits(listener.ipv6_only)
            }
            _ => self.address == *address,
        }
    }

    /// The sockets take IPv6 only, or not, as they should.
    fn fits(&self, ipv6_only: bool) -> bool {
        let mut sockets = self.sockets.iter();
        sockets.all(|it| listen::describe(it.as_fd()).is_ok_and(|it| it.ipv6_only == ipv6_only))
    }

    /// What they take.
    pub(super) fn extent(&self) -> Extent<'_> {
        Extent::of(&self.address, &self.sockets, self.transport)
    }

    /// What so many workers need, with duplicates of these. They are as they were before
    /// [`Sockets::settle`].
    pub(super) fn sockets(
        &self,
        workers: usize,
        options: &ListenOptions<'_>,
    ) -> io::Result<Sockets> {
        // A socket of our own shows whether the options can be had.
        listen::bind_more((Ipv4Addr::LOCALHOST, 0).into(), 1, options)?;
        let handles = self.sockets.iter().map(OwnedFd::try_clone);
        let mut handles = handles.collect::<io::Result<Vec<_>>>()?;
        let path = match &self.address {
            Address::Unix(path) => Some(OwnPath {
                path: path.to_path_buf(),
                identity: self.identity.map_or_else(|| Identity::of(path), Ok)?,
                // Not before it is settled.
                left: true,
            }),
            Address::Ip(address) => {
                let in_group = listen::describe(handles[0].as_fd())?.reuse_port;
                let missing = match self.transport {
                    Transport::Stream => workers.saturating_sub(handles.len()),
                    // Another number of sockets would send sessions elsewhere.
                    Transport::Datagrams => 0,
                };
                match listen::bind_more(*address, if in_group { missing } else { 0 }, options) {
                    Ok(more) => handles.extend(more),
                    // The service manager's are another user's. Workers can share them.
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                    Err(error) => return Err(error),
                }
                None
            }
        };
        Ok(Sockets {
            transport: self.transport,
            address: self.address.clone(),
            path,
            handles,
            foreign: true,
            held: self.held,
        })
    }
}

/// What the sockets of an address take.
pub(super) struct Extent<'a> {
    pub(super) address: &'a Address,
    /// They are at `[::]` and take IPv4, too.
    pub(super) both_families: bool,
    pub(super) transport: Transport,
}

impl<'a> Extent<'a> {
    fn of(address: &'a Address, sockets: &[OwnedFd], transport: Transport) -> Self {
        let takes_ipv4 = |it: &OwnedFd| listen::describe(it.as_fd()).is_ok_and(|it| !it.ipv6_only);
        Self {
            address,
            both_families: is_any_ipv6(address) && sockets.iter().any(takes_ipv4),
            transport,
        }
    }

    /// There are connections or datagrams that both take.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let (Some(one), Some(two)) = (self.address.as_ip(), other.address.as_ip()) else {
            return false;
        };
        let (ours, theirs) = (one.ip(), two.ip());
        self.transport == other.transport
            && one.port() == two.port()
            && match one.is_ipv6() == two.is_ipv6() {
                true => ours == theirs || ours.is_unspecified() || theirs.is_unspecified(),
                false => self.both_families || other.both_families,
            }
    }
}

/// What the sockets of a listener take.
pub(super) fn transport(listener: &Listener) -> Transport {
    match listener.protocol {
        Protocol::Tcp => Transport::Stream,
        Protocol::Udp(_) => Transport::Datagrams,
    }
}

/// `ipv6_only` makes a difference.
pub(super) fn is_any_ipv6(address: &Address) -> bool {
    let address = address.as_ip();
    address.is_some_and(|address| address.is_ipv6() && address.ip().is_unspecified())
}

/// An address as `Address` writes it.
fn address(written: &str) -> io::Result<Address> {
    if let Some(path) = written.strip_prefix("unix:") {
        return Ok(Address::Unix(Path::new(path).into()));
    }
    let parsed = written.parse::<SocketAddr>();
    parsed.map(Address::Ip).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_offered_has_a_socket() {
        let offered = OfferedBinding {
            listener: "web".to_owned(),
            configured: "127.0.0.1:80".to_owned(),
            address: "127.0.0.1:80".to_owned(),
            sockets: 0,
            unix: None,
            held: false,
            datagrams: false,
            admin: false,
        };
        let error = Inherited::offered(0, &offered, Vec::new()).err();
        assert!(error.unwrap().to_string().contains("without a socket"));
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let inherited = Inherited::offered(0, &offered, vec![socket.into()]).unwrap();
        assert_eq!(inherited.address, inherited.wanted);
    }
}
