//! Servers and clients that others have made, through the proxy.

use std::time::{Duration, Instant};

use crate::closed;
use crate::common::backend::free_address;
use crate::common::tools::{Server, printed};
use crate::common::{Proxy, eventually, now};
use crate::questions::{Question, Questions};

/// Listener and upstream of name servers, as in conf/udp.toml, with faster checks.
fn resolvers(servers: &[&str]) -> String {
    format!(
        "[listeners.web]\nbind = \"127.0.0.1:0\"\nprotocol = \"udp\"\nupstream = \"resolvers\"\n\
         [listeners.web.udp]\nsession_timeout = \"5s\"\nresponses = 1\n\
         [upstreams.resolvers]\nbackends = {servers:?}\n\
         [upstreams.resolvers.health_check]\ntype = \"udp\"\ninterval = \"200ms\"\nfall = 2\nrise = 1\n\
         send = \"\\u0012\\u0034\\u0001\\u0000\\u0000\\u0001\\u0000\\u0000\\u0000\\u0000\\u0000\\u0000\
         \\u0000\\u0000\\u0002\\u0000\\u0001\"\n\
         expect = \"\\u0012\\u0034\"\n\
         [upstreams.resolvers.outlier]\nconsecutive_failures = 1\neject_for = \"500ms\"\n\
         [runtime]\nworkers = 2\n[log]\nlevel = \"info\"\nformat = \"json\"\n"
    )
}

/// A name server that gives the address 192.0.2.`number` for every name below `test`.
fn name_server(address: &str, number: u8) -> Server {
    let port = address.rsplit_once(':').expect("a port").1;
    Server::start(
        "dnsmasq",
        &format!(
            "--no-daemon --conf-file=/dev/null --no-resolv --no-hosts --listen-address=127.0.0.1 \
             --bind-interfaces --port={port} --address=/test/192.0.2.{number} --dns-forward-max=10000"
        ),
    )
}

/// What `dig` is told of this name.
fn dig(address: &str, words: &str) -> Option<String> {
    let port = address.rsplit_once(':').expect("a port").1;
    printed(
        "dig",
        &format!("@127.0.0.1 -p {port} +tries=1 +timeout=2 +short {words}"),
    )
}

fn wait_answers(questions: &Questions, server: u8, more: usize) {
    let before = questions.answered_by(server);
    eventually("answers", || {
        (questions.answered_by(server) >= before + more).then_some(())
    });
}

#[test]
fn of_a_name_server_that_dies_only_the_questions_in_its_hands_are_lost() {
    let addresses = [free_address(), free_address()];
    let [one, two] = [1, 2].map(|number| {
        let address = &addresses[usize::from(number) - 1];
        let server = name_server(address, number);
        let expected = Some(format!("192.0.2.{number}\n"));
        eventually("the name server", || {
            (dig(address, "a.test A") == expected).then_some(())
        });
        server
    });
    let proxy = Proxy::start(&resolvers(&addresses.each_ref().map(String::as_str)));
    let address = proxy.address("web");
    let mut told: Vec<_> = (0..4).filter_map(|_| dig(&address, "b.test A")).collect();
    told.sort();
    assert_eq!(
        told.concat(),
        "192.0.2.1\n192.0.2.1\n192.0.2.2\n192.0.2.2\n"
    );
    assert_eq!(dig(&address, "b.test AAAA").as_deref(), Some(""));

    let questions = Questions::to(&address);
    wait_answers(&questions, 1, 200);
    let killed = now();
    two.kill();
    let gone = now();
    wait_answers(&questions, 1, 1_500);
    let again = name_server(&addresses[1], 2);
    wait_answers(&questions, 2, 200);
    let all = questions.stop();
    only_these_are_lost(&all, killed, gone);
    assert!(all.len() > 1_900, "{}", all.len());
    let answered = all.iter().filter(|it| it.answered.is_some()).count() as u64;
    eventually("the sessions to end", || {
        (closed(&proxy, "answered") == answered + 5).then_some(())
    });
    drop((one, again));
    proxy.end_now();
}

/// What is on its way to a server, or waits in its queue, when it dies: on loopback that takes less.
const ON_ITS_WAY: Duration = Duration::from_millis(1);

/// A question that had been handed over before the server's socket was closed is lost, as nobody can know
/// that it was not answered. Every other one met a closed port, which answers.
fn only_these_are_lost(all: &[Question], killed: Instant, gone: Instant) {
    let lost: Vec<_> = all.iter().filter(|it| it.answered.is_none()).collect();
    let window = killed - ON_ITS_WAY..gone;
    let in_its_hands = all.iter().filter(|it| window.contains(&it.asked)).count();
    println!(
        "{} questions, {} lost, {in_its_hands} in the {:?} in which the server died",
        all.len(),
        lost.len(),
        gone - killed
    );
    for question in lost {
        assert!(
            window.contains(&question.asked),
            "lost, though asked {:?} before and {:?} after it died",
            gone.saturating_duration_since(question.asked),
            question.asked.saturating_duration_since(gone),
        );
    }
}
