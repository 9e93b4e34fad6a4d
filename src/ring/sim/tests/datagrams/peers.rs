//! Clients and backends of datagrams. Most speak with each other directly: what a proxy makes of it is
//! not needed to see what they do.

use super::*;
use crate::ring::sim::DatagramClientRecord;

/// A client of `back()`, which has this script, and what became of it.
fn asks(backend: DatagramScript, client: DatagramClientScript) -> (World, DatagramClientRecord) {
    let mut rig = Rig::new(Faults::none());
    rig.world.datagram_backend(&back(), backend);
    rig.world.datagram_client(rig.world.now(), &back(), client);
    rig.settle();
    let world = rig.world.clone();
    assert_eq!(world.violations(), [""; 0]);
    assert_eq!(world.misdelivered(false), [""; 0]);
    assert!(world.traffic().adds_up());
    let record = world.datagram_clients().remove(0);
    (world, record)
}

fn every(count: u32, size: u32) -> DatagramClientScript {
    DatagramClientScript::new(count, size, Duration::from_millis(1))
}

#[test]
fn each_datagram_of_any_size_is_echoed_once() {
    let script = DatagramClientScript {
        sizes: vec![0, 1, 15, 16, 17, 1_200, 65_507],
        ..every(14, 0)
    };
    let (world, client) = asks(DatagramScript::Echo, script);
    assert_eq!((client.sent, client.replies, client.answered), (14, 14, 8));
    let record = world.datagram_record(&back());
    assert_eq!((record.received, record.sessions.len()), (14, 1));
    assert_eq!(record.sessions[0].replied, 14);
    assert_eq!(record.sessions[0].clients, [0]);
}

#[test]
fn replies_may_be_many_or_none() {
    let (_, client) = asks(DatagramScript::Replies(5), every(3, 100));
    assert_eq!((client.replies, client.answered), (15, 3));
    let (_, client) = asks(DatagramScript::JoinedReplies(70), every(3, 1_200));
    assert_eq!((client.replies, client.duplicates), (210, 0));
    let (world, client) = asks(DatagramScript::Silent, every(3, 100));
    assert_eq!((client.replies, world.traffic().heard), (0, 3));
    let (world, client) = asks(DatagramScript::Closed, every(3, 100));
    assert_eq!((client.replies, world.traffic().unheard), (0, 3));
    let (world, client) = asks(DatagramScript::Elsewhere, every(0, 100));
    assert_eq!((client.sent, world.traffic().sent), (0, 0));
}

#[test]
fn a_late_reply_takes_its_time() {
    let (_, client) = asks(DatagramScript::Late(Duration::from_secs(3)), every(1, 100));
    let then = Instant::default() + Duration::from_secs(3) + Duration::from_micros(20);
    assert_eq!(client.last_heard_at, Some(then));
}

#[test]
fn a_backend_may_speak_unasked() {
    let script = DatagramScript::Unsolicited {
        count: 4,
        interval: Duration::from_secs(1),
    };
    let (_, client) = asks(script, every(2, 100));
    assert_eq!((client.replies, client.unsolicited), (2, 4));
}

#[test]
fn joined_datagrams_are_heard_each_and_answered_joined() {
    let script = DatagramClientScript {
        joined: 64,
        sizes: vec![1_000, 1_000, 1_000, 500],
        ..every(8, 0)
    };
    let (world, client) = asks(DatagramScript::Echo, script);
    assert_eq!(client.replies, 8);
    assert_eq!(world.datagram_record(&back()).received, 8);
}

#[test]
fn a_client_that_moves_is_another_session() {
    let script = DatagramClientScript {
        moves_after: Some(2),
        ..every(5, 100)
    };
    let (world, client) = asks(DatagramScript::Echo, script);
    assert_eq!((client.replies, client.from.len()), (5, 2));
    let sessions = world.datagram_record(&back()).sessions;
    let received: Vec<_> = sessions.iter().map(|one| one.received).collect();
    assert_eq!(received, [2, 3]);
}

#[test]
fn a_killed_backend_says_no_more_until_it_is_back() {
    let mut rig = Rig::new(Faults::none());
    let late = DatagramScript::Late(Duration::from_secs(3));
    rig.world.datagram_backend(&back(), late);
    rig.client_says(&back(), &[100]);
    for _ in 0..2 {
        rig.world.advance();
    }
    rig.world.kill_datagram_backend(&back());
    rig.client_says(&back(), &[100]);
    rig.settle();
    rig.world.datagram_backend(&back(), DatagramScript::Echo);
    rig.client_says(&back(), &[100]);
    rig.settle();
    let replies = rig.world.datagram_clients();
    let replies: Vec<_> = replies.iter().map(|client| client.replies).collect();
    assert_eq!(replies, [0, 0, 1]);
    assert_eq!(rig.world.traffic().unheard, 1);
}

/// A worker that sends all that it hears to the backend, and all replies to one client.
fn careless_worker(sizes: [&[u32]; 2], backend: DatagramScript) -> World {
    let mut rig = Rig::new(Faults::none());
    rig.lend(0..16, 2048);
    rig.world.datagram_backend(&back(), backend);
    let (near, far) = (rig.hears_at(&front()), rig.towards(&back()));
    for sizes in sizes {
        rig.client_says(&front(), sizes);
    }
    let mut sender = None;
    for (header, payload) in rig.all(near) {
        sender = header.sender;
        assert_eq!(rig.say(far, &[plain(&payload)]), Ok(1));
    }
    for (_, payload) in rig.all(far) {
        let to = sender;
        let reply = Datagram {
            to,
            ..plain(&payload)
        };
        assert_eq!(rig.say(near, &[reply]), Ok(1));
    }
    rig.settle();
    rig.world.clone()
}

#[test]
fn a_session_with_data_of_two_clients_is_found() {
    for sizes in [
        [&[100][..], &[200]],
        [&[100], &[8]],
        [&[8], &[8]],
        [&[8], &[16]],
    ] {
        let world = careless_worker(sizes, DatagramScript::Silent);
        assert_eq!(world.violations(), [""; 0]);
        let found = world.misdelivered(false);
        assert_eq!(found.len(), 1, "{sizes:?}: {found:?}");
        assert!(found[0].contains("several sessions"), "{found:?}");
    }
    let world = careless_worker([&[0], &[0]], DatagramScript::Silent);
    assert_eq!(world.misdelivered(false), [""; 0], "they say nothing");
}

#[test]
fn a_reply_to_another_client_is_found() {
    for sizes in [[&[100][..], &[200]], [&[8], &[9]]] {
        let world = careless_worker(sizes, DatagramScript::Echo);
        let clients = world.datagram_clients();
        assert_eq!((clients[0].replies, clients[0].foreign), (0, 0));
        assert_eq!((clients[1].replies, clients[1].foreign), (1, 1));
        let found = world.misdelivered(false);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[1].contains("a reply to client 0"), "{found:?}");
        assert_eq!(
            world.misdelivered(true).len(),
            found.len() - usize::from(sizes[0] == [8])
        );
    }
}

#[test]
fn clients_of_one_address_are_as_one_where_sessions_are_by_source() {
    let mut rig = Rig::new(Faults::none());
    rig.lend(0..16, 2048);
    rig.world.datagram_backend(&back(), DatagramScript::Silent);
    let (near, far) = (rig.hears_at(&front()), rig.towards(&back()));
    for port in [1, 2] {
        let script = DatagramClientScript {
            from: Some(([10, 0, 0, 9], port).into()),
            ..every(1, 100)
        };
        rig.world.datagram_client(rig.world.now(), &front(), script);
    }
    for (_, payload) in rig.all(near) {
        assert_eq!(rig.say(far, &[plain(&payload)]), Ok(1));
    }
    rig.settle();
    assert_eq!(rig.world.misdelivered(true), [""; 0]);
    assert_eq!(rig.world.misdelivered(false).len(), 1);
}

#[test]
fn changed_datagrams_are_found_at_both_ends() {
    let mut rig = Rig::new(Faults::none());
    rig.lend(0..4, 2048);
    rig.world.datagram_backend(&back(), DatagramScript::Echo);
    let (near, far) = (rig.hears_at(&front()), rig.towards(&back()));
    rig.client_says(&front(), &[100]);
    let (header, mut payload) = rig.all(near).remove(0);
    payload[50] ^= 1;
    assert_eq!(rig.say(far, &[plain(&payload)]), Ok(1));
    let reply = Datagram {
        to: header.sender,
        ..plain(&payload[..99])
    };
    assert_eq!(rig.say(near, &[reply]), Ok(1));
    rig.settle();
    assert_eq!(rig.world.datagram_record(&back()).corrupt, 1);
    assert_eq!(rig.world.datagram_clients()[0].corrupt, 1);
    assert_eq!(rig.world.violations().len(), 2);
}
