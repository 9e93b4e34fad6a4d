//! What takes how long between a worker and an address with a distance.

use super::*;

const WAY: Duration = Duration::from_millis(20);

/// A world in which `back()` is one way off and all else as far as chance will have it.
fn far_rig(faults: Faults) -> Rig {
    let latency = (Duration::from_millis(1), Duration::from_millis(90));
    let rig = Rig::new(Faults { latency, ..faults });
    rig.world.set_distance(&back(), WAY);
    rig
}

fn ways(count: u32) -> Option<Instant> {
    Some(Instant::default() + count * WAY)
}

impl Rig {
    /// When the op's first completion comes.
    fn when(&mut self, token: Token) -> Option<Instant> {
        self.first(token).map(|(when, _)| when)
    }

    /// The time and the result of the op's first completion.
    fn first(&mut self, token: Token) -> Option<(Instant, i32)> {
        loop {
            if let Some(result) = result_of(&self.turn(), token).first() {
                return Some((self.world.now(), *result));
            }
            if self.world.advance() == Advance::Quiet {
                return None;
            }
        }
    }

    /// Turns until it is so many ways after the start.
    fn pass(&mut self, count: u32) {
        let end = Instant::default() + count * WAY;
        while self.world.now() < end {
            self.driver.turn(None, 64, &mut Vec::new()).unwrap();
            let wait = Some(end - self.world.now());
            self.driver.turn(wait, 64, &mut Vec::new()).unwrap();
            self.world.advance();
        }
        assert_eq!(self.world.now(), end);
    }
}

#[test]
fn a_connect_and_a_reply_take_exactly_one_round_trip() {
    let mut rig = far_rig(Faults::none());
    rig.provide(1, 4096);
    rig.world.backend(&back(), BackendScript::Echo);
    let fd = rig.open();
    let connect = rig.connect(fd, &back());
    assert_eq!(rig.when(connect), ways(2));
    rig.send(fd, &[1; 100]);
    let receive = rig.receive(fd, None);
    assert_eq!(rig.when(receive), ways(4));
}

#[test]
fn a_refusal_takes_one_round_trip_and_other_addresses_their_latency() {
    let mut rig = far_rig(Faults::none());
    let fd = rig.open();
    let refused = rig.connect(fd, &back());
    assert_eq!(rig.when(refused), ways(2));
    let start = rig.world.now();
    let fd = rig.open();
    let refused = rig.connect(fd, &front());
    assert_ne!(rig.when(refused), Some(start + 2 * WAY));
}

#[test]
fn a_reset_and_a_fin_take_one_way() {
    for (step, result) in [(Step::Close, 0), (Step::Reset, -libc::ECONNRESET)] {
        let mut rig = far_rig(Faults::none());
        rig.provide(1, 64);
        let steps = vec![Step::Pause(WAY), step];
        rig.world.backend(&back(), BackendScript::Steps(steps));
        let fd = rig.open();
        rig.connect(fd, &back());
        rig.pass(2);
        let receive = rig.receive(fd, None);
        // It begins after three ways and ends after four.
        let end = ways(5).map(|when| (when, result));
        assert_eq!(rig.first(receive), end);
    }
}

#[test]
fn a_sender_hears_one_round_trip_later_that_its_bytes_and_its_fin_arrived() {
    let mut rig = far_rig(Faults::none());
    rig.world.backend(&back(), BackendScript::NeverReads);
    let fd = rig.open();
    rig.connect(fd, &back());
    rig.pass(2);
    rig.send(fd, &[1; 100]);
    rig.turn();
    rig.driver.shutdown(fd, Shutdown::Write);
    rig.pass(3);
    assert_eq!(rig.driver.unacknowledged(fd), 101);
    assert_eq!(rig.driver.progress(fd), 0);
    rig.pass(4);
    assert_eq!(rig.driver.unacknowledged(fd), 0);
    assert_eq!(rig.driver.progress(fd), 100);
}

/// A window of 4 KiB, established: what a sink has heard is asked with [`heard`].
fn narrow_rig() -> (Rig, Fd) {
    let mut rig = far_rig(Faults {
        receive_buffer: 4096,
        send_buffer: 8192,
        ..Faults::none()
    });
    rig.world.backend(&back(), BackendScript::Sink);
    let fd = rig.open();
    rig.connect(fd, &back());
    rig.pass(2);
    (rig, fd)
}

fn heard(rig: &Rig) -> u64 {
    rig.world.backend_sessions(&back())[0].received
}

#[test]
fn room_and_window_come_one_round_trip_after_the_bytes_were_sent() {
    let (mut rig, fd) = narrow_rig();
    rig.send(fd, &[1; 8192]);
    rig.turn();
    let room = rig.push(Lane::Write, Op::WaitForRoom { fd });
    assert_eq!(rig.when(room), ways(4));
    assert_eq!(heard(&rig), 4096);
    let send = rig.send(fd, &[1; 8192]);
    assert_eq!(result_of(&rig.turn(), send), [4096]);
    rig.pass(5);
    assert_eq!(heard(&rig), 8192);
    rig.pass(6);
    assert_eq!(heard(&rig), 8192);
    rig.pass(7);
    assert_eq!(heard(&rig), 12_288);
}

#[test]
fn a_window_stays_shut_until_the_sender_hears_that_it_opened() {
    let (mut rig, fd) = narrow_rig();
    rig.send(fd, &[1; 4096]);
    rig.pass(3);
    rig.send(fd, &[1; 4096]);
    rig.pass(4);
    assert_eq!(heard(&rig), 4096);
    rig.pass(5);
    assert_eq!(heard(&rig), 8192);
}

#[test]
fn a_backend_begins_with_the_last_packet_of_the_handshake() {
    let mut rig = far_rig(Faults::none());
    rig.provide(1, 64);
    let greeting = BackendScript::Greeting { bytes: 10 };
    rig.world.backend(&back(), greeting);
    let fd = rig.open();
    rig.connect(fd, &back());
    rig.pass(2);
    let receive = rig.receive(fd, None);
    assert_eq!(rig.when(receive), ways(4));
    assert_eq!(rig.world.backend_sessions(&back())[0].began_at, ways(3));
}

#[test]
fn a_client_far_away_is_accepted_when_its_handshake_is_over() {
    let mut rig = far_rig(Faults::none());
    rig.provide(1, 64);
    let listener = rig.world.listen(&back(), 1)[0];
    let script = ClientScript::exchange(20);
    rig.world.client(Instant::default(), &back(), script);
    let accept = rig.push(Lane::Read, Op::Accept { fd: listener });
    assert_eq!(rig.when(accept), ways(3));
    rig.settle();
    let client = &rig.world.clients()[0];
    assert_eq!((client.began_at, client.sent), (ways(2), 20));
}

#[test]
fn a_listener_closed_during_its_handshakes_resets_them() {
    let mut rig = far_rig(Faults::none());
    let members = rig.world.listen(&back(), 2);
    for _ in 0..20 {
        let script = ClientScript::exchange(20);
        rig.world.client(Instant::default(), &back(), script);
    }
    rig.pass(2);
    rig.driver.close(members[0]);
    rig.settle();
    let clients = rig.world.clients();
    let (reset, waiting): (Vec<_>, Vec<_>) = clients
        .iter()
        .partition(|client| client.ending == Ending::Reset);
    assert!(!reset.is_empty() && !waiting.is_empty());
    assert!(reset.iter().all(|client| client.ended_at == ways(4)));
}

#[test]
fn a_connect_that_was_given_up_is_never_established() {
    let mut rig = far_rig(Faults::none());
    rig.world.backend(&back(), BackendScript::Echo);
    let fd = rig.open();
    let connect = rig.connect(fd, &back());
    rig.pass(1);
    rig.cancel(connect);
    rig.turn();
    rig.driver.close(fd);
    rig.settle();
    let session = &rig.world.backend_sessions(&back())[0];
    assert_eq!(
        (session.began_at, session.ending, session.ended_at),
        (None, Ending::Reset, ways(3))
    );
    assert_eq!(rig.world.most_connections(&back()), 0);
    assert_eq!(rig.world.attempts(&back()), 1);
}

#[test]
fn a_distance_holds_for_connections_that_start_later() {
    let mut rig = far_rig(Faults::none());
    rig.provide(2, 4096);
    rig.world.backend(&back(), BackendScript::Echo);
    let fd = rig.open();
    rig.connect(fd, &back());
    rig.pass(2);
    rig.world.set_distance(&back(), 3 * WAY);
    rig.send(fd, &[1; 100]);
    let receive = rig.receive(fd, None);
    assert_eq!(rig.when(receive), ways(4));
    let next = rig.open();
    let connect = rig.connect(next, &back());
    assert_eq!(rig.when(connect), ways(10));
}
