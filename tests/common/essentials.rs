//! What must hold on every kernel, whichever of its features are used. Each function needs a fresh
//! proxy of its own making: `start` is handed the configuration.

use std::io::{Read, Write};
use std::sync::mpsc;
use std::thread;

use super::backend::{drain, echo, finish_and_wait};
use super::pattern::Pattern;
use super::socket::{connect_with_small_window, ending_of, finish};
use super::system::taken_by_the_other_end;
use super::{Backend, Ending, Proxy, ending, pass, plain, read_to_end, reset};

/// Starts the proxy in the way that is tested.
pub(crate) type Start<'a> = &'a dyn Fn(&str) -> Proxy;

pub(crate) const MIB: u64 = 1 << 20;

/// 20 clients at once, each with 1 MiB there and back.
pub(crate) fn echoes_at_once(start: Start<'_>) {
    let backend = Backend::echo();
    let mut proxy = start(&plain(&[&backend.address]));
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let reading = proxy.connect();
            thread::spawn(move || there_and_back(&reading, MIB))
        })
        .collect();
    for client in clients {
        client.join().expect("every byte is right");
    }
    for session in proxy.next_sessions(20) {
        assert_eq!(session.reason, "client-closed");
        assert_eq!((session.bytes_received, session.bytes_sent), (MIB, MIB));
    }
    proxy.end();
}

/// Sends `count` bytes of the pattern and FIN while the echo is read and compared.
pub(crate) fn there_and_back(socket: &socket2::Socket, count: u64) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut writing = socket.try_clone().expect("a descriptor");
            Pattern::new()
                .write(&mut writing, count)
                .expect("it is taken");
            finish(&writing);
        });
        let mut reading = socket.try_clone().expect("a descriptor");
        let mut pattern = Pattern::new();
        pattern
            .check_to_end(&mut reading)
            .expect("it ends with FIN");
        assert_eq!(pattern.place, count);
    });
}

/// A backend sends `count` bytes and resets; the client reads them all, then is reset. With
/// `slowly` the client has a small window and begins to read late.
pub(crate) fn reset_comes_after_every_byte(start: Start<'_>, count: u64, slowly: bool) {
    let (told, delivered) = mpsc::channel();
    let backend = Backend::start(move |mut connection| {
        let written = Pattern::new().write(&mut connection, count);
        // Once the proxy has taken all: RST would throw away what is still on its way to it.
        taken_by_the_other_end(&connection);
        reset(connection);
        told.send(written).expect("the test waits");
    });
    let mut proxy = start(&plain(&[&backend.address]));
    let mut client = if slowly {
        connect_with_small_window(&proxy.address("web"), 64 * 1024)
    } else {
        proxy.connect()
    };
    let mut pattern = Pattern::new();
    if slowly {
        pass(std::time::Duration::from_millis(200));
        pattern
            .check(&mut client, count / 2)
            .expect("half of it comes");
    }
    let end = pattern.check_to_end(&mut client);
    assert_eq!(pattern.place, count);
    let error = end.expect_err("a truncation must not look like an end");
    assert_eq!(ending_of(&error), Ending::Reset);
    super::told(&delivered).expect("the proxy takes it all");
    let session = proxy.next_session();
    assert_eq!(session.reason, "backend-reset");
    assert_eq!(session.bytes_sent, count);
    proxy.end();
}

/// The client sends FIN first, and a long reply follows.
pub(crate) fn client_fin_first(start: Start<'_>) {
    let backend = Backend::start(|mut connection| {
        let (received, end) = drain(&mut connection);
        end.expect("the client's FIN is passed on");
        assert_eq!(received, 11);
        Pattern::new()
            .write(&mut connection, 4 * MIB)
            .expect("the reply is taken");
    });
    let mut proxy = start(&plain(&[&backend.address]));
    let mut client = proxy.connect();
    client.write_all(b"a question?").expect("it is taken");
    finish(&client);
    let mut pattern = Pattern::new();
    pattern.check_to_end(&mut client).expect("FIN at the end");
    assert_eq!(pattern.place, 4 * MIB);
    let session = proxy.next_session();
    assert_eq!(session.reason, "client-closed");
    assert_eq!((session.bytes_received, session.bytes_sent), (11, 4 * MIB));
    proxy.end();
}

/// The backend sends FIN first, and a long upload follows.
pub(crate) fn backend_fin_first(start: Start<'_>) {
    let (told, uploaded) = mpsc::channel();
    let backend = Backend::start(move |mut connection| {
        connection.write_all(b"go on").expect("it is taken");
        finish(&connection);
        let mut pattern = Pattern::new();
        pattern
            .check_to_end(&mut connection)
            .expect("FIN at the end");
        told.send(pattern.place).expect("the test waits");
    });
    let mut proxy = start(&plain(&[&backend.address]));
    let mut client = proxy.connect();
    assert_eq!(read_to_end(&mut client), b"go on");
    Pattern::new()
        .write(&mut client, 4 * MIB)
        .expect("the upload is taken");
    finish(&client);
    assert_eq!(super::told(&uploaded), 4 * MIB);
    let session = proxy.next_session();
    assert_eq!(session.reason, "backend-closed");
    assert_eq!((session.bytes_received, session.bytes_sent), (4 * MIB, 5));
    proxy.end();
}

/// A client that reads nothing holds its backend up and nobody else, costs a bounded amount of
/// memory, and gets every byte once it reads.
pub(crate) fn slow_reader(start: Start<'_>, count: u64) {
    let flood = Backend::start(move |mut connection| {
        if connection.read(&mut [0]).is_ok_and(|read| read == 1) {
            super::socket::set_patience(&connection, std::time::Duration::from_mins(1));
            Pattern::new()
                .write(&mut connection, count)
                .expect("all is taken in the end");
            finish_and_wait(connection);
        } else {
            echo(connection);
        }
    });
    let quick = Backend::echo();
    let tables = format!(
        "[listeners.quick]\nbind = \"127.0.0.1:0\"\nupstream = \"quick\"\n\
         [upstreams.quick]\nbackends = [{:?}]\n[runtime]\nworkers = 1\n",
        quick.address
    );
    let mut proxy = start(&super::config(&[&flood.address], "", "", &tables));
    let before = super::system::anonymous_kib(proxy.pid());
    let mut slow = connect_with_small_window(&proxy.address("web"), 64 * 1024);
    slow.write_all(b"!").expect("it is taken");
    // Let the flood come to its stop, then see that others are served at the usual pace.
    pass(std::time::Duration::from_millis(300));
    let began = super::now();
    there_and_back(&super::connect(&proxy.address("quick")), MIB);
    let took = began.elapsed();
    assert!(took < std::time::Duration::from_secs(3), "{took:?}");
    let grown = super::system::anonymous_kib(proxy.pid()).saturating_sub(before);
    assert!(grown < 2048, "{grown} KiB for one stalled session");
    let mut pattern = Pattern::new();
    pattern.check_to_end(&mut slow).expect("FIN at the end");
    assert_eq!(pattern.place, count);
    drop(slow);
    let mut reasons: Vec<_> = proxy
        .next_sessions(2)
        .into_iter()
        .map(|session| (session.listener, session.reason, session.bytes_sent))
        .collect();
    reasons.sort();
    let expected = [
        ("quick".to_owned(), "client-closed".to_owned(), MIB),
        ("web".to_owned(), "backend-closed".to_owned(), count),
    ];
    assert_eq!(reasons, expected);
    proxy.end();
}

/// A client resets; the backend gets every byte from before, then is reset.
pub(crate) fn client_reset_reaches_the_backend(start: Start<'_>, count: u64) {
    let (told, seen) = mpsc::channel();
    let backend = Backend::start(move |mut connection| {
        let mut pattern = Pattern::new();
        let end = pattern.check_to_end(&mut connection);
        told.send((pattern.place, end)).expect("the test waits");
    });
    let mut proxy = start(&plain(&[&backend.address]));
    let mut client = proxy.connect();
    Pattern::new()
        .write(&mut client, count)
        .expect("the upload is taken");
    taken_by_the_other_end(&client);
    reset(client);
    let (received, end) = super::told(&seen);
    assert_eq!(received, count);
    let error = end.expect_err("a truncation must not look like an end");
    assert_eq!(ending_of(&error), Ending::Reset);
    let session = proxy.next_session();
    assert_eq!(session.reason, "client-reset");
    assert_eq!(session.bytes_received, count);
    proxy.end();
}

/// The end of a stream without any bytes, both ways.
pub(crate) fn ends_without_bytes(start: Start<'_>) {
    let closing = Backend::start(drop);
    let mut proxy = start(&plain(&[&closing.address]));
    let mut client = proxy.connect();
    assert_eq!(ending(&mut client), Ending::Fin);
    drop(client);
    let session = proxy.next_session();
    assert_eq!(session.reason, "backend-closed");
    assert_eq!((session.bytes_received, session.bytes_sent), (0, 0));
    proxy.end();
}
