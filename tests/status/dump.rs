//! What the workers did last, as `ringress dump` prints it.

use std::time::Duration;

use serde_json::Value;

use crate::common::backend::free_address;
use crate::common::socket::exchange;
use crate::common::{Backend, Proxy, eventually};

fn dumped(proxy: &Proxy, words: &str) -> Vec<Value> {
    let said = proxy.done(&format!("dump {words}"));
    let lines = said.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("it is JSON"))
        .collect()
}

/// The same moments. The time of day may differ a little: each dump looks at the calendar anew.
fn assert_same(one: &[Value], other: &[Value]) {
    let times = |moments: &[Value]| {
        let times = words(moments, "at");
        let times = times.into_iter().map(humantime::parse_rfc3339);
        times
            .collect::<Result<Vec<_>, _>>()
            .expect("they are times")
    };
    let without = |moments: &[Value]| {
        let mut moments = moments.to_vec();
        for moment in &mut moments {
            moment.as_object_mut().expect("an object").remove("at");
        }
        moments
    };
    assert_eq!(without(one), without(other));
    for (one, other) in times(one).into_iter().zip(times(other)) {
        let apart = one.max(other).duration_since(one.min(other));
        let apart = apart.expect("the later one is later");
        assert!(apart <= Duration::from_millis(1), "{apart:?}");
    }
}

/// The same once there are moments for which `pick` holds.
fn dumped_with(proxy: &Proxy, what: &str, pick: impl Fn(&Value) -> bool) -> Vec<Value> {
    eventually(what, || {
        let moments = dumped(proxy, "");
        moments.iter().any(&pick).then_some(moments)
    })
}

fn words<'a>(moments: &'a [Value], field: &str) -> Vec<&'a str> {
    let fields = moments.iter().map(|moment| &moment[field]);
    fields.map(|it| it.as_str().unwrap_or("-")).collect()
}

/// Of one worker, with a listener `web` and one, `dead`, whose backend is not there.
fn start(backend: &Backend) -> (Proxy, String) {
    let gone = free_address();
    let config = format!(
        "[listeners.web]\nbind = \"127.0.0.1:0\"\nupstream = \"app\"\n\
         [listeners.dead]\nbind = \"127.0.0.1:0\"\nupstream = \"gone\"\n\
         [upstreams.app]\nbackends = [{:?}]\n\
         [upstreams.gone]\nbackends = [{gone:?}]\n\
         [runtime]\nworkers = 1\n",
        backend.address
    );
    (Proxy::start(&config), gone)
}

#[test]
fn a_session_is_told_from_its_accept_to_its_close_with_its_names() {
    let backend = Backend::echo();
    let (proxy, gone) = start(&backend);
    assert_eq!(dumped(&proxy, ""), Vec::<Value>::new());
    drop(exchange(None, &proxy.address("web")).expect("it is served"));
    let moments = dumped_with(&proxy, "its close", |moment| moment["what"] == "close");
    let whats = ["accept", "pick", "connect", "first-byte", "close"];
    assert_eq!(words(&moments, "what"), whats);
    let name = format!("app/{}", backend.address);
    assert_eq!(words(&moments, "listener"), ["web", "-", "-", "-", "-"]);
    assert_eq!(
        words(&moments, "backend"),
        ["-", &name, &name, &name, &name]
    );
    assert_eq!(words(&moments, "reason")[4], "client-closed");
    assert!(moments[2]["connect_us"].is_u64() && moments[3]["first_byte_us"].is_u64());
    assert_eq!(moments[4]["bytes"], 2);
    let whole = words(&moments, "at");
    assert!(whole.is_sorted() && whole[0].len() == "2026-03-01T12:00:00.123456Z".len());
    let nanos = moments.iter().map(|it| it["monotonic_ns"].as_u64());
    assert!(nanos.is_sorted());
    // Another one that is refused by its only backend.
    assert!(exchange(None, &proxy.address("dead")).is_none());
    let failed = |moment: &Value| moment["reason"] == "no-backend";
    let moments = dumped_with(&proxy, "the other's close", failed);
    let session = moments.last().expect("there are some")["session"].clone();
    let own = dumped(&proxy, &format!("--session 0:{session}"));
    assert_same(&own, &moments[5..]);
    let what = words(&own, "what");
    assert_eq!(what[..3], ["accept", "pick", "connect-failed"]);
    assert_eq!(own[2]["backend"], format!("gone/{gone}"));
    assert!(own[2]["connect_us"].is_u64());
    assert_same(&dumped(&proxy, "--last 2"), &own[own.len() - 2..]);
    assert_eq!(dumped(&proxy, "--worker 0").len(), moments.len());
    proxy.end();
}

#[test]
fn more_than_a_recorder_holds_comes_out_as_its_last_moments() {
    const MOMENTS: usize = 4096;
    let backend = Backend::echo();
    let (proxy, _) = start(&backend);
    // Each of them has five moments.
    let sessions = MOMENTS / 5 + 20;
    for _ in 0..sessions {
        drop(exchange(None, &proxy.address("web")).expect("it is served"));
    }
    let moments = eventually("all to end", || {
        let status = proxy.status();
        let closed = &status["listeners"][0]["closed"]["client-closed"];
        (*closed == sessions).then(|| dumped(&proxy, ""))
    });
    assert_eq!(moments.len(), MOMENTS);
    assert_eq!(moments[MOMENTS - 1]["what"], "close");
    proxy.end();
}

#[test]
fn a_worker_that_is_not_there_is_said_to_be() {
    let backend = Backend::echo();
    let (proxy, _) = start(&backend);
    let said = proxy.refused("dump --worker 1");
    assert_eq!(
        said,
        "there is no worker 1: they are numbered from 0 to 0\n"
    );
    proxy.end();
}
