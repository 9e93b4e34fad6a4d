use std::time::Duration;

use super::*;

fn at(hours: u64) -> Instant {
    Instant::default() + Duration::from_hours(hours)
}

fn ticketer(tickets: &Arc<Tickets>) -> Ticketer {
    Ticketer {
        tickets: tickets.clone(),
        policy: b"web".to_vec(),
    }
}

#[test]
fn a_ticket_is_good_for_as_long_again_as_its_key_issues_some() {
    let tickets = Arc::new(Tickets::new(at(0)));
    let ticketer = ticketer(&tickets);
    let ticket = ticketer.encrypt(b"state").unwrap();
    let opened = || ticketer.decrypt(&ticket);
    tickets.tend(at(11));
    assert_eq!(opened().as_deref(), Some(&b"state"[..]));
    tickets.tend(at(12));
    assert_eq!(opened().as_deref(), Some(&b"state"[..]));
    let later = ticketer.encrypt(b"later").unwrap();
    assert_ne!(later[..NAME_BYTES], ticket[..NAME_BYTES]);
    tickets.tend(at(23));
    assert_eq!(opened().as_deref(), Some(&b"state"[..]));
    tickets.tend(at(24));
    assert_eq!(opened(), None);
    assert_eq!(ticketer.decrypt(&later).as_deref(), Some(&b"later"[..]));
}

#[test]
fn a_key_is_renewed_once_when_it_is_time() {
    let tickets = Tickets::new(at(0));
    tickets.tend(at(12));
    let image = tickets.image();
    tickets.tend(at(12));
    tickets.tend(at(13));
    assert_eq!(tickets.image(), image);
    assert_eq!(image.keys.len(), 2);
}

#[test]
fn tickets_that_were_tampered_with_are_refused() {
    let ticketer = ticketer(&Arc::default());
    let ticket = ticketer.encrypt(b"state").unwrap();
    for at in 0..ticket.len() {
        for bit in [1, 0x80] {
            let mut other = ticket.clone();
            other[at] ^= bit;
            assert_eq!(ticketer.decrypt(&other), None, "byte {at}");
        }
        assert_eq!(ticketer.decrypt(&ticket[..at]), None, "{at} bytes of it");
    }
    let longer = [&ticket[..], &[0]].concat();
    assert_eq!(ticketer.decrypt(&longer), None);
}

#[test]
fn tickets_of_another_policy_or_of_other_keys_are_refused() {
    let tickets = Arc::default();
    let ticketer = ticketer(&tickets);
    let ticket = ticketer.encrypt(b"state").unwrap();
    let other = Ticketer {
        tickets,
        policy: b"other".to_vec(),
    };
    assert_eq!(other.decrypt(&ticket), None);
    let foreign = Ticketer {
        tickets: Arc::default(),
        policy: b"web".to_vec(),
    };
    assert_eq!(foreign.decrypt(&ticket), None);
}

#[test]
fn another_process_goes_on_with_the_keys_of_an_image() {
    let tickets = Arc::new(Tickets::new(at(0)));
    let first = ticketer(&tickets).encrypt(b"first").unwrap();
    tickets.tend(at(12));
    let second = ticketer(&tickets).encrypt(b"second").unwrap();
    let after = Arc::new(Tickets::new(at(13)));
    after.restore(&tickets.image(), at(13));
    assert_eq!(after.image(), tickets.image());
    let there = ticketer(&after);
    assert_eq!(there.decrypt(&first).as_deref(), Some(&b"first"[..]));
    assert_eq!(there.decrypt(&second).as_deref(), Some(&b"second"[..]));
    // They get no older by it.
    after.tend(at(24));
    assert_eq!(there.decrypt(&first), None);
    assert_eq!(there.decrypt(&second).as_deref(), Some(&b"second"[..]));
}

#[test]
fn what_is_no_image_is_left_alone() {
    let tickets = Tickets::new(at(0));
    let before = tickets.image();
    for keys in [vec![], vec![vec![0; 47]], vec![vec![], vec![0; 48]]] {
        tickets.restore(&Image { since: 0, keys }, at(1));
        assert_eq!(tickets.image(), before);
    }
    let keys = vec![vec![1; 48], vec![2; 3]];
    let future = at(1000).as_nanos();
    tickets.restore(
        &Image {
            since: future,
            keys,
        },
        at(1),
    );
    let restored = tickets.image();
    assert_eq!((restored.since, restored.keys.len()), (at(1).as_nanos(), 1));
}

#[test]
fn secrets_are_not_for_logs() {
    let tickets = Tickets::new(at(0));
    assert_eq!(
        format!("{tickets:?}"),
        "Tickets { keys: ArcSwapAny(Keys { since: 0ns }) }"
    );
}
