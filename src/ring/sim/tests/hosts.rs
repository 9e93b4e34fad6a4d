//! Backends that change, die and come back; what the world counts of them and of its clients.

use std::collections::BTreeSet;

use super::*;

impl Rig {
    /// Connects to `back()`, or says with which errno that failed.
    fn connected(&mut self) -> Result<Fd, i32> {
        let fd = self.open();
        let connect = self.connect(fd, &back());
        match result_of(&self.settle(), connect)[..] {
            [0] => Ok(fd),
            [result] => Err(-result),
            ref other => panic!("{other:?}"),
        }
    }

    /// All that a receive to the end gives.
    fn heard(&mut self, fd: Fd) -> Vec<i32> {
        self.provide_more();
        let receive = self.receive(fd, None);
        result_of(&self.settle(), receive)
    }

    fn provide_more(&mut self) {
        for _ in 0..8 {
            let mut memory = vec![0; 4096].into_boxed_slice();
            let start = NonNull::new(memory.as_mut_ptr()).unwrap();
            self.memory.push(memory);
            let number = self.memory.len() as u16;
            // SAFETY: the memory stays in the rig, behind the driver, and nobody touches it.
            unsafe { self.driver.provide(Group::Stream, number, start, 4096) };
        }
    }
}

#[test]
fn a_new_script_is_for_later_connections() {
    let mut rig = Rig::new(Faults::none());
    rig.world.backend(&back(), BackendScript::Echo);
    let first = rig.connected().unwrap();
    rig.world.backend(&back(), BackendScript::Sink);
    let second = rig.connected().unwrap();
    for fd in [first, second] {
        rig.send(fd, &[0; 8]);
        rig.turn();
        rig.driver.shutdown(fd, Shutdown::Write);
    }
    assert_eq!(rig.heard(first), [8, 0]);
    assert_eq!(rig.heard(second), [0]);
    assert_eq!(rig.world.backend_sessions(&back()).len(), 2);
}

#[test]
fn a_killed_backend_finishes_what_it_has_read_and_refuses_until_it_is_back() {
    let mut rig = Rig::new(Faults::none());
    rig.world.backend(&back(), BackendScript::Echo);
    let (idle, busy) = (rig.connected().unwrap(), rig.connected().unwrap());
    rig.send(busy, &[1; 100]);
    rig.settle();
    rig.world.kill_backend(&back());
    assert_eq!(rig.heard(idle), [0]);
    assert_eq!(rig.heard(busy), [100, 0]);
    rig.send(busy, &[1; 100]);
    rig.settle();
    assert!(rig.driver.is_gone(busy), "what it still hears it resets");
    assert!(!rig.driver.is_gone(idle));
    let sessions = rig.world.backend_sessions(&back());
    assert!(sessions.iter().all(|one| one.ending == Ending::Closed));

    assert_eq!(rig.connected(), Err(libc::ECONNREFUSED));
    rig.world.backend(&back(), BackendScript::Echo);
    assert!(rig.connected().is_ok());
    assert_eq!(rig.world.backend_sessions(&back()).len(), 3);
}

#[test]
fn a_killed_backend_resets_what_it_has_not_read() {
    let mut rig = Rig::new(Faults::none());
    rig.world.backend(&back(), BackendScript::NeverReads);
    let (idle, unread) = (rig.connected().unwrap(), rig.connected().unwrap());
    rig.send(unread, &[1; 100]);
    rig.settle();
    rig.world.kill_backend(&back());
    assert_eq!(rig.heard(idle), [0]);
    assert_eq!(rig.heard(unread), [-libc::ECONNRESET]);
}

#[test]
fn a_killed_backend_still_delivers_what_it_had_said() {
    let faults = Faults {
        receive_buffer: 1000,
        send_buffer: 4000,
        ..Faults::none()
    };
    let mut rig = Rig::new(faults);
    let script = vec![Step::Greet(4000), Step::ReadToEnd];
    rig.world.backend(&back(), BackendScript::Steps(script));
    let fd = rig.connected().unwrap();
    rig.world.kill_backend(&back());
    let heard = rig.heard(fd);
    assert_eq!((heard.iter().sum::<i32>(), heard.last()), (4000, Some(&0)));
}

#[test]
fn a_killed_backend_resets_what_it_has_not_accepted() {
    let mut rig = Rig::new(Faults::none());
    let script = BackendScript::NeverAccepts { backlog: 1 };
    rig.world.backend(&back(), script);
    let queued = rig.connected().unwrap();
    let fd = rig.open();
    let waits = rig.connect(fd, &back());
    rig.turn();
    rig.world.advance(); // its SYN was dropped and comes again
    rig.world.kill_backend(&back());
    rig.provide_more();
    let receive = rig.receive(queued, None);
    let completions = rig.settle();
    assert_eq!(result_of(&completions, receive), [-libc::ECONNRESET]);
    assert_eq!(result_of(&completions, waits), [-libc::ECONNREFUSED]);
    assert_eq!(rig.world.attempts(&back()), 2);
}

#[test]
fn a_handshake_that_a_killed_backend_left_is_reset() {
    let mut rig = Rig::new(Faults::none());
    rig.world.set_distance(&back(), Duration::from_millis(20));
    rig.world.backend(&back(), BackendScript::Echo);
    let fd = rig.open();
    let connect = rig.connect(fd, &back());
    rig.turn();
    rig.world.advance(); // the SYN has come
    rig.world.kill_backend(&back());
    assert_eq!(result_of(&rig.settle(), connect), [0]);
    assert_eq!(rig.heard(fd), [-libc::ECONNRESET]);
    assert_eq!(rig.world.backend_sessions(&back())[0].began_at, None);
}

#[test]
fn the_most_connections_at_once_are_remembered() {
    let mut rig = Rig::new(Faults::none());
    assert_eq!(rig.world.most_connections(&back()), 0);
    rig.world.backend(&back(), BackendScript::Echo);
    let first = rig.connected().unwrap();
    rig.connected().unwrap();
    rig.driver.close(first);
    rig.settle();
    rig.connected().unwrap();
    assert_eq!(rig.world.most_connections(&back()), 2);
    rig.connected().unwrap();
    assert_eq!(rig.world.most_connections(&back()), 3);
    rig.world.backend(&back(), BackendScript::Sink);
    rig.world.kill_backend(&back());
    rig.settle();
    rig.world.backend(&back(), BackendScript::Echo);
    rig.connected().unwrap();
    assert_eq!(rig.world.most_connections(&back()), 3);
}

#[test]
fn a_connection_that_follows_the_end_of_another_is_not_at_once_with_it() {
    let mut rig = Rig::new(Faults::none());
    rig.world.set_distance(&back(), Duration::from_millis(20));
    rig.world.backend(&back(), BackendScript::Echo);
    let mut fd = rig.connected().unwrap();
    for _ in 0..10 {
        rig.driver.close(fd);
        fd = rig.connected().unwrap();
    }
    assert_eq!(rig.world.most_connections(&back()), 1);
    assert_eq!(rig.world.attempts(&back()), 11);
}

#[test]
fn every_attempt_counts_whatever_it_meets() {
    let mut rig = Rig::new(Faults::none());
    assert!(rig.connected().is_err());
    rig.world.backend(&back(), BackendScript::Refuse);
    assert!(rig.connected().is_err());
    rig.world.backend(&back(), BackendScript::BlackHole);
    let fd = rig.open();
    rig.connect(fd, &back());
    rig.settle();
    rig.world.backend(&back(), BackendScript::Echo);
    assert!(rig.connected().is_ok());
    assert_eq!(rig.world.attempts(&back()), 4);
    assert_eq!(rig.world.most_connections(&back()), 1);
    assert_eq!(rig.world.attempts(&front()), 0);

    let path = Address::Unix(std::path::Path::new("/run/back.sock").into());
    let fd = rig.open();
    assert!(rig.driver.connect_unix(fd, &path).is_err());
    rig.world.backend(&path, BackendScript::Echo);
    rig.driver.connect_unix(fd, &path).unwrap();
    assert_eq!(rig.world.attempts(&path), 2);
    assert_eq!(rig.world.most_connections(&path), 1);
}

#[test]
fn a_record_says_when_it_began_and_when_it_first_heard() {
    let mut rig = Rig::new(Faults::none());
    let late = vec![Step::Stall(Some(Duration::from_secs(1))), Step::Echo];
    rig.world.backend(&back(), BackendScript::Steps(late));
    let fd = rig.open();
    rig.connect(fd, &back());
    rig.turn();
    rig.world.advance();
    let session = &rig.world.backend_sessions(&back())[0];
    let syn = Instant::default() + Duration::from_micros(10);
    let times = (session.began_at, session.first_heard_at);
    assert_eq!(times, (Some(syn), None));
    while rig.turn().is_empty() {
        rig.world.advance();
    }
    rig.send(fd, &[1; 8]);
    rig.settle();
    rig.send(fd, &[1; 8]);
    rig.settle();
    let session = &rig.world.backend_sessions(&back())[0];
    let read = syn + Duration::from_secs(1);
    assert_eq!(
        (session.began_at, session.first_heard_at, session.received),
        (Some(syn), Some(read), 16)
    );

    let refused = Address::Ip(SocketAddr::from(([127, 0, 0, 1], 9)));
    let start = rig.world.now();
    rig.world.client(start, &refused, ClientScript::exchange(8));
    rig.settle();
    let client = &rig.world.clients()[0];
    assert_eq!((client.began_at, client.first_heard_at), (None, None));
}

#[test]
fn many_clients_come_from_one_address_with_a_port_each() {
    let mut rig = Rig::new(Faults::none());
    let listener = rig.world.listen(&front(), 1)[0];
    let from = "198.51.100.7".parse().unwrap();
    for _ in 0..500 {
        let script = ClientScript {
            from: Some(from),
            ..ClientScript::new(vec![Step::ReadToEnd])
        };
        rig.world.client(Instant::default(), &front(), script);
    }
    rig.push(Lane::Read, Op::AcceptMulti { fd: listener });
    let accepted = rig.settle();
    let seen: BTreeSet<_> = accepted
        .iter()
        .map(|one| rig.driver.peer(Fd(one.result)).unwrap().unwrap())
        .collect();
    let said = rig.world.clients().into_iter();
    let said: BTreeSet<_> = said.filter_map(|client| client.local).collect();
    assert_eq!(seen.len(), 500);
    assert_eq!(seen, said);
    assert!(seen.iter().all(|one| one.ip() == from));
}
