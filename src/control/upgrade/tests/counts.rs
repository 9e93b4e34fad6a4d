//! What a draining process tells while it ends, over any number of upgrades.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::{PLENTY, SHORT, ends, newcomer, no_state, offer};
use crate::control::upgrade::frame::encode;
use crate::control::upgrade::handover::{Gift, negotiate};
use crate::control::upgrade::{Error, FromOld, Link, Ready, Successor};

async fn successor() -> (Successor, Link) {
    let (ours, theirs) = ends();
    // A runtime that has not been asked yet doesn't know that there is room.
    ours.writable().await.unwrap();
    let ready = Ready {
        pid: 1,
        kept: Vec::new(),
    };
    let theirs = Link::new(theirs.into(), Vec::new()).unwrap();
    (Successor::new(&ready, ours), theirs)
}

/// Totals that take half of a socket's room, or more.
fn large(number: u32) -> Value {
    json!({ "number": number, "padding": "x".repeat(100 << 10) })
}

async fn numbers(mut link: Link) -> Vec<u64> {
    let mut numbers = Vec::new();
    while let Some(totals) = timeout(PLENTY, link.next_counted()).await.unwrap().unwrap() {
        numbers.push(totals["number"].as_u64().unwrap());
    }
    numbers
}

#[tokio::test]
async fn counts_arrive_in_order_and_the_last_one_always() {
    let (mut old, new) = successor().await;
    for number in 0..100 {
        old.counted(large(number)).unwrap();
    }
    let (finished, numbers) = tokio::join!(old.finish(large(100), PLENTY), numbers(new));
    finished.unwrap();
    assert!(numbers.is_sorted(), "{numbers:?}");
    assert!((2..50).contains(&numbers.len()), "{numbers:?}");
    assert_eq!(numbers.last(), Some(&100));
}

#[tokio::test]
async fn a_successor_that_does_not_read_holds_nobody_up() {
    let (mut old, new) = successor().await;
    for number in 0..100 {
        old.counted(large(number)).unwrap();
    }
    let finished = old.finish(large(100), SHORT).await;
    assert!(matches!(finished, Err(Error::Silent)), "{finished:?}");
    drop(new);
}

#[tokio::test]
async fn a_successor_that_is_gone_is_told_as_such() {
    let (mut old, new) = successor().await;
    drop(new);
    let told = old.counted(json!(1));
    assert!(matches!(told, Err(Error::Gone)), "{told:?}");
    let finished = old.finish(json!(2), PLENTY).await;
    assert!(matches!(finished, Err(Error::Gone)), "{finished:?}");
}

#[tokio::test]
async fn the_link_to_an_older_process_goes_on_within_a_frame() {
    let frame = encode(&FromOld::Counted {
        totals: json!("old"),
    })
    .unwrap();
    for cut in 0..frame.len() {
        let (mut older, mut oldest) = ends();
        oldest.write_all(&frame[..cut]).unwrap();
        assert!(timeout(SHORT / 40, older.next_counted()).await.is_err());

        let (mut link, theirs) = ends();
        let new = newcomer(theirs, |inheritance| inheritance.unwrap());
        let older = [older];
        let gift = Gift::new::<OwnedFd>(offer(&[]), &[], &older);
        // The thread is done when it has been given everything, and answers below.
        let (given, inheritance) = tokio::join!(
            timeout(SHORT / 4, negotiate(&mut link, &gift, no_state)),
            tokio::task::spawn_blocking(|| new.join().unwrap())
        );
        assert!(given.is_err());
        drop((link, older));
        let (_, committed) = inheritance.unwrap().predecessor.ready(Vec::new()).unwrap();
        let mut links = committed.serving().unwrap();
        oldest.write_all(&frame[cut..]).unwrap();
        let told = timeout(PLENTY, links[1].next_counted()).await.unwrap();
        assert_eq!(told.unwrap(), Some(json!("old")), "cut at {cut}");
        drop(oldest);
        assert_eq!(links[1].next_counted().await.unwrap(), None);
    }
}

#[tokio::test]
async fn what_was_told_outlives_the_one_who_told_it() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let ready = Ready {
        pid: 1,
        kept: Vec::new(),
    };
    let old = Successor::new(&ready, Link::new(ours.into(), Vec::new()).unwrap());
    old.finish(json!(5), PLENTY).await.unwrap();
    let mut told = Vec::new();
    theirs.read_to_end(&mut told).unwrap();
    assert_eq!(
        told,
        encode(&FromOld::Counted { totals: json!(5) }).unwrap()
    );
}
