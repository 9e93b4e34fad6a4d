//! What goes wrong with datagrams when it is asked for.

use super::*;

const ALWAYS: u16 = 10_000;

fn with(change: impl FnOnce(&mut Faults)) -> Rig {
    let mut faults = Faults::none();
    change(&mut faults);
    Rig::new(faults)
}

#[test]
fn datagrams_get_lost_and_come_twice() {
    let mut rig = with(|faults| faults.datagram_lost = ALWAYS);
    rig.client_says(&back(), &[20; 5]);
    rig.settle();
    assert_eq!(rig.world.traffic().lost, 5);

    let mut rig = with(|faults| faults.datagram_doubled = ALWAYS);
    rig.world.datagram_backend(&back(), DatagramScript::Echo);
    rig.client_says(&back(), &[20; 5]);
    rig.settle();
    let client = &rig.world.datagram_clients()[0];
    assert_eq!((client.replies, client.duplicates), (5, 15));
    assert_eq!(rig.world.datagram_record(&back()).duplicates, 5);
    assert!(rig.world.traffic().adds_up());
}

#[test]
fn datagrams_overtake_each_other() {
    let mut rig = with(|faults| faults.datagram_late = ALWAYS);
    rig.lend(0..32, 512);
    let fd = rig.hears_at(&front());
    let sizes: Vec<u32> = (20..40).collect();
    rig.client_says(&front(), &sizes);
    let came: Vec<u32> = rig
        .all(fd)
        .iter()
        .map(|(_, bytes)| bytes.len() as u32)
        .collect();
    assert_ne!(came, sizes);
    assert_eq!(came.len(), sizes.len());
}

#[test]
fn joined_datagrams_may_come_each_for_itself() {
    let mut rig = with(|faults| faults.split = ALWAYS);
    rig.lend(0..8, 2048);
    let fd = rig.hears_at(&front());
    let script = DatagramClientScript {
        joined: 5,
        ..DatagramClientScript::new(5, 1_200, Duration::ZERO)
    };
    rig.world.datagram_client(rig.world.now(), &front(), script);
    let all = rig.all(fd);
    assert_eq!(all.len(), 5);
    assert!(all.iter().all(|(header, _)| header.segment.is_none()));
}

#[test]
fn the_icmp_error_may_get_lost() {
    let mut rig = with(|faults| faults.unreachable_lost = ALWAYS);
    let fd = rig.towards(&back());
    for _ in 0..3 {
        assert_eq!(rig.say(fd, &[plain(&[1; 20])]), Ok(1));
        rig.settle();
    }
}

#[test]
fn a_send_may_find_no_room() {
    let mut rig = with(|faults| faults.send_full = ALWAYS);
    let fd = rig.towards(&back());
    assert_eq!(rig.say(fd, &[plain(&[1])]), Err(libc::EAGAIN));
    let mut rig = with(|faults| faults.send_fails = ALWAYS);
    let fd = rig.towards(&back());
    assert_eq!(rig.say(fd, &[plain(&[1])]), Err(libc::ENOBUFS));
    let mut rig = with(|faults| faults.send_full = ALWAYS / 2);
    let fd = rig.towards(&back());
    let sent: Vec<_> = (0..50).map(|_| rig.say(fd, &[plain(&[1]); 3])).collect();
    for count in [Ok(1), Ok(2), Ok(3), Err(libc::EAGAIN)] {
        assert!(sent.contains(&count), "{count:?}");
    }
}

#[test]
fn a_pair_without_offload_stays_without() {
    let mut rig = with(|faults| faults.no_offload = ALWAYS / 2);
    let mut met = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let fd = rig.towards(&back());
        let joined = Datagram {
            segment: Some(100),
            ..plain(&[0; 300])
        };
        let first = rig.say(fd, &[joined]);
        assert!((0..10).all(|_| rig.say(fd, &[joined]) == first));
        assert_eq!(rig.say(fd, &[plain(&[0; 300])]), Ok(1));
        met.insert(first);
    }
    assert_eq!(met.into_iter().collect::<Vec<_>>(), [Ok(1), Err(libc::EIO)]);
}

#[test]
fn there_may_be_no_descriptor_and_no_port() {
    let to = back().as_ip().unwrap();
    let mut rig = with(|faults| faults.exhausted = ALWAYS);
    let error = rig.driver.open_datagrams(to, None).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
    let mut rig = with(|faults| faults.no_port = ALWAYS);
    let met: std::collections::BTreeSet<_> = (0..20)
        .map(|_| rig.driver.open_datagrams(to, None).unwrap_err())
        .map(|error| error.raw_os_error().unwrap())
        .collect();
    assert_eq!(met, [libc::EAGAIN, libc::EADDRNOTAVAIL].into());
    assert_eq!(
        (rig.world.local_ports(), rig.world.open_fds().len()),
        (0, 0)
    );
}

#[test]
fn receives_fail_as_those_of_streams_do() {
    for (errno, rig) in [
        (libc::ENOBUFS, with(|faults| faults.no_buffers = ALWAYS)),
        (
            libc::ECANCELED,
            with(|faults| faults.receive_cancelled = ALWAYS),
        ),
    ] {
        let mut rig = rig;
        rig.lend(0..4, 512);
        let fd = rig.hears_at(&front());
        let token = rig.receive_datagrams(fd, Layout::ANYBODY);
        assert_eq!(result_of(&rig.turn(), token), [-errno]);
    }
    let mut rig = with(|faults| faults.receive_ends = ALWAYS);
    rig.lend(0..4, 512);
    let fd = rig.hears_at(&front());
    rig.client_says(&front(), &[20, 20]);
    rig.settle();
    let token = rig.receive_datagrams(fd, Layout::ANYBODY);
    let completions = rig.turn();
    assert_eq!(result_of(&completions, token), [overhead() + 20]);
    assert!(!completions[0].more);
}

#[test]
fn what_nobody_received_is_gone_with_the_socket() {
    let mut rig = Rig::new(Faults::none());
    let fd = rig.hears_at(&front());
    rig.client_says(&front(), &[20; 3]);
    rig.settle();
    rig.driver.close(fd);
    rig.client_says(&front(), &[20; 2]);
    rig.settle();
    let traffic = rig.world.traffic();
    assert_eq!((traffic.forgotten, traffic.unheard), (3, 2));
    assert!(traffic.adds_up());
}

#[test]
fn a_distance_is_kept_both_ways() {
    let mut rig = Rig::new(Faults::none());
    rig.world.set_distance(&back(), Duration::from_millis(7));
    rig.world.datagram_backend(&back(), DatagramScript::Echo);
    rig.client_says(&back(), &[20]);
    rig.settle();
    let heard = rig.world.datagram_clients()[0].last_heard_at;
    assert_eq!(heard, Some(Instant::default() + Duration::from_millis(14)));
}
