//! Descriptors on their way over a link.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::{FdFlags, fcntl_getfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::alone::alone;
use super::{ends, newcomer, no_state, offer};
use crate::control::upgrade::handover::{Gift, negotiate};
use crate::control::upgrade::link::BlockingLink;
use crate::control::upgrade::{Error, Failure};
use crate::ring::limits;

/// Three files, by which to tell descriptors apart.
fn files() -> [File; 3] {
    [0; 3].map(|_| tempfile::tempfile().unwrap())
}

fn inode(descriptor: impl AsFd) -> u64 {
    rustix::fs::fstat(descriptor).unwrap().st_ino
}

#[tokio::test]
async fn six_hundred_arrive_in_order_and_none_is_inherited_over_exec() {
    limits::raise_nofile().unwrap();
    let files = files();
    let sent: Vec<_> = (0..600)
        .map(|index| files[index * index % 3].as_fd())
        .collect();
    let expected: Vec<u64> = sent.iter().map(inode).collect();
    let (mut link, theirs) = ends();
    let new = newcomer(theirs, |inheritance| {
        let inheritance = inheritance.unwrap();
        let received: Vec<OwnedFd> = inheritance.sockets.into_iter().flatten().collect();
        let closed_on_exec = |fd: &OwnedFd| fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC);
        assert!(received.iter().all(closed_on_exec));
        inheritance.predecessor.refuse("enough");
        received.iter().map(inode).collect::<Vec<u64>>()
    });
    let gift = Gift::new(offer(&[251, 249, 100]), &sent, &[]);
    let failure = negotiate(&mut link, &gift, no_state).await.unwrap_err();
    assert!(matches!(failure, Failure::Refused { .. }), "{failure}");
    assert_eq!(new.join().unwrap(), expected);
}

#[test]
fn bytes_without_descriptors_are_an_error() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(b"d").unwrap();
    let mut link = BlockingLink::new(theirs, super::PLENTY).unwrap();
    let error = link.receive_descriptors(2).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Descriptors {
                expected: 2,
                came: 0
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn more_than_expected_are_an_error() {
    let files = files();
    let (mut link, theirs) = ends();
    let sent: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    link.send_descriptors(&sent).await.unwrap();
    let mut link = BlockingLink::new(theirs, super::PLENTY).unwrap();
    let error = link.receive_descriptors(2).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Descriptors {
                expected: 2,
                came: 3
            }
        ),
        "{error}"
    );
}

#[test]
fn a_limit_that_is_too_low_is_named() {
    alone("descriptors::a_limit_that_is_too_low_is_named", || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let files = files();
            let sent: Vec<_> = (0..100).map(|_| files[0].as_fd()).collect();
            let (mut link, theirs) = ends();
            link.send_descriptors(&sent).await.unwrap();
            let mut link = BlockingLink::new(theirs, super::PLENTY).unwrap();
            let before = getrlimit(Resource::Nofile);
            let low = Rlimit {
                current: Some(60),
                ..before
            };
            setrlimit(Resource::Nofile, low).unwrap();
            let error = link.receive_descriptors(100).unwrap_err();
            assert!(error.to_string().contains("RLIMIT_NOFILE"), "{error}");
        });
    });
}
