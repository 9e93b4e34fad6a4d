//! What the two say to each other, and what happens when one of them falls silent or dies.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use serde_json::json;
use tokio::time::timeout;

use super::{PLENTY, SHORT, ends, inheritance, newcomer, no_state, offer, offer_nothing};
use crate::control::upgrade::frame::encode;
use crate::control::upgrade::handover::{Gift, negotiate};
use crate::control::upgrade::link::BlockingLink;
use crate::control::upgrade::{Error, Failure, FromOld, Inheritance, Opening, VERSION};

fn opening(bindings: &[usize]) -> Vec<u8> {
    encode(&Opening {
        version: VERSION,
        offer: offer(bindings),
        links: Vec::new(),
    })
    .unwrap()
}

#[tokio::test]
async fn what_is_offered_arrives_and_is_answered() {
    let (mut link, theirs) = ends();
    let new = newcomer(theirs, |inheritance| {
        let inheritance = inheritance.unwrap();
        let counts: Vec<usize> = inheritance.sockets.iter().map(Vec::len).collect();
        let (state, committed) = inheritance.predecessor.ready(vec![1]).unwrap();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        let serves = runtime.block_on(async { committed.serving() });
        assert_eq!(serves.unwrap().len(), 1);
        (inheritance.offer, counts, state)
    });
    let sockets: Vec<OwnedFd> = (0..3)
        .map(|_| UnixStream::pair().unwrap().0.into())
        .collect();
    let gift = Gift::new(offer(&[2, 0, 1]), &sockets, &[]);
    let ready = negotiate(&mut link, &gift, |ready| json!({ "kept": ready.kept }));
    let ready = ready.await.unwrap();
    assert_eq!((ready.pid, ready.kept), (std::process::id(), vec![1]));
    let (received, counts, state) = new.join().unwrap();
    assert_eq!(received, offer(&[2, 0, 1]));
    assert_eq!(counts, [2, 0, 1]);
    assert_eq!(state, Some(json!({ "kept": [1] })));
}

#[tokio::test]
async fn a_frame_may_be_cut_anywhere_and_its_receive_dropped() {
    let totals = json!({ "näme": [1, 2, 3] });
    let frame = encode(&FromOld::Counted {
        totals: totals.clone(),
    })
    .unwrap();
    let (mut link, mut other) = ends();
    for cut in 0..=frame.len() {
        other.write_all(&frame[..cut]).unwrap();
        if cut < frame.len() {
            let dropped = timeout(SHORT / 40, link.next_counted()).await;
            assert!(dropped.is_err(), "cut at {cut}");
        }
        other.write_all(&frame[cut..]).unwrap();
        let received = timeout(PLENTY, link.next_counted()).await.unwrap().unwrap();
        assert_eq!(received, Some(totals.clone()), "cut at {cut}");
    }
    drop(other);
    assert_eq!(link.next_counted().await.unwrap(), None);
}

#[test]
fn an_old_process_that_dies_before_all_is_given_is_gone() {
    let opening = opening(&[2]);
    for cut in 0..=opening.len() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&opening[..cut]).unwrap();
        drop(ours);
        assert!(matches!(inheritance(theirs), Err(Error::Gone)), "{cut}");
    }
}

#[tokio::test]
async fn the_new_process_serves_when_the_old_one_dies_with_everything_given() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (&ours).write_all(&opening(&[])).unwrap();
    let inheritance = inheritance(theirs).unwrap();
    drop(ours);
    let (state, committed) = inheritance.predecessor.ready(Vec::new()).unwrap();
    assert_eq!(state, None);
    let mut links = committed.serving().unwrap();
    assert_eq!(links[0].next_counted().await.unwrap(), None);
}

#[tokio::test]
async fn the_new_process_serves_when_the_old_one_dies_after_go() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (&ours).write_all(&opening(&[])).unwrap();
    (&ours)
        .write_all(&encode(&FromOld::Go { state: json!(1) }).unwrap())
        .unwrap();
    let inheritance = inheritance(theirs).unwrap();
    let (state, committed) = inheritance.predecessor.ready(Vec::new()).unwrap();
    drop(ours);
    assert_eq!(state, Some(json!(1)));
    let mut links = committed.serving().unwrap();
    assert_eq!(links[0].next_counted().await.unwrap(), None);
}

#[tokio::test]
async fn a_new_process_that_dies_is_gone_at_every_step() {
    for steps in 0..3 {
        let (mut link, theirs) = ends();
        let new = newcomer(theirs, move |inheritance| match steps {
            0 => drop(inheritance),
            1 => drop(inheritance.unwrap().predecessor.ready(Vec::new())),
            _ => {
                let (_, committed) = inheritance.unwrap().predecessor.ready(Vec::new()).unwrap();
                drop(committed);
            }
        });
        let failure = offer_nothing(&mut link, 1).await.unwrap_err();
        assert!(matches!(failure, Failure::Link(Error::Gone)), "{failure}");
        new.join().unwrap();
    }
}

#[tokio::test]
async fn a_refusal_is_heard_with_its_reason() {
    let (mut link, theirs) = ends();
    let new = newcomer(theirs, |inheritance| {
        inheritance.unwrap().predecessor.refuse("no such port");
    });
    let failure = offer_nothing(&mut link, 1).await.unwrap_err();
    assert_eq!(failure.to_string(), "the new process refused: no such port");
    new.join().unwrap();
}

#[tokio::test]
async fn another_version_is_refused_though_the_offer_does_not_fit_the_socket() {
    let (mut link, theirs) = ends();
    let new = std::thread::spawn(move || {
        let link = BlockingLink::new(theirs, PLENTY).unwrap();
        Inheritance::receive(link, OsStr::new("2")).map(drop)
    });
    let mut long = offer(&[]);
    long.drained = vec!["x".repeat(4 << 20)];
    let gift = Gift::new::<OwnedFd>(long, &[], &[]);
    let failure = negotiate(&mut link, &gift, no_state).await.unwrap_err();
    let text = "the new process refused: the old process upgrades by version 2 of the protocol and the \
                new binary by version 1: restart instead";
    assert_eq!(failure.to_string(), text);
    assert!(matches!(new.join().unwrap(), Err(Error::Version { .. })));
}

#[tokio::test]
async fn a_long_offer_arrives_whole() {
    let (mut link, theirs) = ends();
    let new = newcomer(theirs, |inheritance| {
        let inheritance = inheritance.unwrap();
        inheritance.predecessor.refuse("enough");
        inheritance.offer.drained[0].len()
    });
    let mut long = offer(&[]);
    long.drained = vec!["x".repeat(4 << 20)];
    let gift = Gift::new::<OwnedFd>(long, &[], &[]);
    let failure = negotiate(&mut link, &gift, no_state).await.unwrap_err();
    assert_eq!(failure.to_string(), "the new process refused: enough");
    assert_eq!(new.join().unwrap(), 4 << 20);
}

#[test]
fn an_old_process_that_is_silent_is_not_waited_for_for_ever() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let silent = |stream| {
        let link = BlockingLink::new(stream, SHORT).unwrap();
        Inheritance::receive(link, OsStr::new("1"))
    };
    assert!(matches!(silent(theirs), Err(Error::Silent)));
    drop(ours);

    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(&opening(&[])).unwrap();
    let predecessor = silent(theirs).unwrap().predecessor;
    let error = predecessor.ready(Vec::new()).map(drop).unwrap_err();
    assert!(matches!(error, Error::Silent), "{error}");
    let mut said = String::new();
    ours.read_to_string(&mut said).unwrap();
    assert!(said.contains("refused"), "{said}");
}

#[tokio::test]
async fn a_binding_that_was_not_offered_can_not_be_kept() {
    let (mut link, theirs) = ends();
    let new = newcomer(theirs, |inheritance| {
        inheritance.unwrap().predecessor.ready(vec![0, 2]).map(drop)
    });
    let failure = offer_nothing(&mut link, 2).await.unwrap_err();
    assert!(
        failure.to_string().ends_with("keeps binding 2 of 2"),
        "{failure}"
    );
    drop(link);
    new.join().unwrap().unwrap();
}

#[test]
fn nonsense_is_told_from_silence() {
    let receive = |bytes: &[u8]| {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(bytes).unwrap();
        ours.set_nonblocking(true).unwrap();
        (inheritance(theirs).map(drop).unwrap_err(), ours)
    };
    let (error, _) = receive(&[0xff; 4]);
    assert!(
        matches!(error, Error::TooLong { bytes: 0xffff_ffff }),
        "{error}"
    );
    for malformed in [&b"\0\0\0\0"[..], b"\0\0\0\x02{}", b"\0\0\0\x03{\"\xff"] {
        let (error, mut old) = receive(malformed);
        assert!(matches!(error, Error::Malformed(_)), "{error}");
        let mut said = [0; 256];
        let length = old.read(&mut said).unwrap();
        assert!(String::from_utf8_lossy(&said[..length]).contains("refused"));
    }
    let overflowing = opening(&[usize::MAX, 1]);
    assert!(matches!(receive(&overflowing).0, Error::Malformed(_)));
}

#[tokio::test]
async fn a_message_that_is_not_its_turn_is_an_error() {
    let (mut link, other) = ends();
    let go = encode(&FromOld::Go { state: json!(1) }).unwrap();
    (&other).write_all(&go).unwrap();
    assert!(matches!(
        link.next_counted().await,
        Err(Error::Malformed(_))
    ));
}
