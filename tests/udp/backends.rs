//! Backends that are not there, go away or come back.

use crate::common::datagrams::{
    DatagramBackend, ask, ask_text, client, closed_address, hears_nothing, udp_config,
};
use crate::common::{Proxy, eventually};
use crate::{closed, dropped, listener, wait_sessions};

#[test]
fn a_closed_port_is_counted_and_the_next_backend_is_tried() {
    let backend = DatagramBackend::named("alive");
    let nobody = closed_address();
    let proxy = Proxy::start(&udp_config(&[&nobody, &backend.address], "", "", ""));
    let address = proxy.address("web");
    for _ in 0..10 {
        let client = client();
        assert_eq!(ask_text(&client, &address), "alive");
        assert_eq!(ask_text(&client, &address), "alive");
    }
    let line = proxy.wait_message(0, "a backend can't be connected to");
    assert!(line["error"].to_string().contains("refused"), "{line}");
    assert_eq!(backend.received(), 20);
    assert_eq!(
        listener(&proxy)["datagrams"]["dropped"],
        serde_json::json!({})
    );
    proxy.end_now();
}

#[test]
fn a_client_hears_nothing_of_a_backend_that_is_not_there() {
    for backends in [
        vec![closed_address()],
        vec![closed_address(), closed_address()],
    ] {
        let backends: Vec<_> = backends.iter().map(String::as_str).collect();
        let proxy = Proxy::start(&udp_config(&backends, "", "", ""));
        let client = client();
        client.send_to(b"x", proxy.address("web")).expect("sent");
        hears_nothing(&client);
        wait_sessions(&proxy, 0);
        assert_eq!(closed(&proxy, "backend-refused"), 1);
        assert_eq!(dropped(&proxy, "no-backend"), 1);
        proxy.end();
    }
}

#[test]
fn a_session_goes_on_with_another_backend_when_its_own_goes_away() {
    let (a, b) = (DatagramBackend::named("a"), DatagramBackend::named("b"));
    let backends = [a.address.as_str(), b.address.as_str()];
    let proxy = Proxy::start(&udp_config(&backends, "", "", ""));
    let address = proxy.address("web");
    let clients = [client(), client()];
    let names: Vec<_> = clients.iter().map(|it| ask_text(it, &address)).collect();
    let at_a = &clients[usize::from(names[0] != "a")];
    drop(a);
    // The datagram that meets the closed port is not lost.
    assert_eq!(ask_text(at_a, &address), "b");
    assert_eq!(ask_text(at_a, &address), "b");
    let said = listener(&proxy);
    assert_eq!(
        (&said["sessions"], &said["accepted"]),
        (&2.into(), &2.into())
    );
    proxy.end_now();
}

#[test]
fn refusals_eject_a_backend() {
    let backend = DatagramBackend::echo();
    let nobody = closed_address();
    let tables = "[upstreams.app.outlier]\nconsecutive_failures = 2\n";
    let proxy = Proxy::start(&udp_config(&[&nobody, &backend.address], "", "", tables));
    let address = proxy.address("web");
    for _ in 0..20 {
        assert_eq!(ask(&client(), &address, b"x"), b"x");
    }
    let upstreams = proxy.status()["upstreams"][0]["backends"].clone();
    assert_eq!(upstreams[0]["ejected"], true, "{upstreams}");
    proxy.end_now();
}

/// A server that has hung does not say so: health checks do, and sessions leave it.
#[test]
fn sessions_leave_a_backend_that_is_found_to_be_down() {
    let mute = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_mute = mute.clone();
    let a =
        DatagramBackend::start(
            move |_| match is_mute.load(std::sync::atomic::Ordering::Relaxed) {
                true => Vec::new(),
                false => vec![b"a".to_vec()],
            },
        );
    let b = DatagramBackend::named("b");
    let tables = "[upstreams.app.health_check]\ntype = \"udp\"\nsend = \"?\"\ninterval = \"100ms\"\n\
                  timeout = \"100ms\"\nfall = 2\n";
    let backends = [a.address.as_str(), b.address.as_str()];
    let proxy = Proxy::start(&udp_config(&backends, "", "", tables));
    let address = proxy.address("web");
    let clients = [client(), client()];
    let names: Vec<_> = clients.iter().map(|it| ask_text(it, &address)).collect();
    let at_a = &clients[usize::from(names[0] != "a")];
    mute.store(true, std::sync::atomic::Ordering::Relaxed);
    eventually("the backend to be down", || {
        let backends = proxy.status()["upstreams"][0]["backends"].clone();
        (backends[0]["healthy"] == false).then_some(())
    });
    assert_eq!(ask_text(at_a, &address), "b");
    proxy.end_now();
}
