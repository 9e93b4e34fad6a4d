//! Connections that had one exchange and are held: what an idle connection costs the other side.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use ringress::ring::Ring;

use super::fresh;
use super::link::{Caller, Link, Target};
use crate::backend::Service;
use crate::error::Error;
use crate::{local, pattern};

/// Connections that are opened at once: no accept queue overflows, and a proxy does not get more
/// buffers than it needs for that.
const AT_ONCE: usize = 64;

/// Open connections. Dropped, they close.
pub struct Held(#[expect(dead_code, reason = "held, not used")] Vec<Link>);

/// Opens `count` connections to `target`, has one exchange of `size` bytes on each, and keeps them.
///
/// # Errors
/// One could not be had, or got a wrong answer.
pub fn open(ring: &Ring, target: &Target, count: usize, size: usize) -> Result<Held, Error> {
    let request = pattern::bytes(size.max(1));
    let links = Rc::new(RefCell::new(Vec::with_capacity(count)));
    let begun = Rc::new(Cell::new(0));
    let failure = Rc::new(Cell::new(None));
    let alive = Rc::new(Cell::new(AT_ONCE));
    for _ in 0..AT_ONCE {
        let caller = Caller::new(ring, target);
        let (own, request, links) = (ring.clone(), Rc::clone(&request), Rc::clone(&links));
        let (begun, failure, alive) = (Rc::clone(&begun), Rc::clone(&failure), Rc::clone(&alive));
        ring.spawn(async move {
            while begun.get() < count {
                let number = begun.replace(begun.get() + 1);
                match one(&own, &caller, number as u64, &request).await {
                    Ok(link) => links.borrow_mut().push(link),
                    Err(error) => {
                        begun.set(count);
                        failure.set(Some((number, error)));
                    }
                }
            }
            alive.set(alive.get() - 1);
        });
    }
    while alive.get() > 0 {
        local::turn(ring)?;
    }
    match failure.take() {
        Some((number, error)) => Err(Error::System {
            doing: format!("connection {number} of {count} to {}", target.address),
            error,
        }),
        None => Ok(Held(links.take())),
    }
}

/// Asks `target` once for what `service` answers: does it serve?
///
/// # Errors
/// It does not.
pub fn ask_once(ring: &Ring, target: &Target, service: Service) -> Result<(), Error> {
    const BYTES: u8 = 8;
    let answer = pattern::bytes(BYTES.into());
    let request: Rc<[u8]> = match service {
        Service::Download => Rc::from(u64::from(BYTES).to_be_bytes()),
        Service::Echo | Service::Stall(..) => Rc::clone(&answer),
    };
    let (own, caller) = (ring.clone(), Caller::new(ring, target));
    let asked = local::run(ring, async move {
        let link = caller.connect(0).await?;
        fresh::exchange(&own, &link, &request, &answer).await
    })?;
    asked.map_err(Error::while_doing(format!("asking {}", target.address)))
}

async fn one(ring: &Ring, caller: &Caller, number: u64, request: &Rc<[u8]>) -> io::Result<Link> {
    let link = caller.connect(number).await?;
    fresh::exchange(ring, &link, request, request).await?;
    Ok(link)
}
