//! What an order is for: the part of that name, for as long as the configuration has it.

use crate::common::commands::named;
use crate::common::proxy::text;
use crate::common::{Backend, Proxy, config};
use crate::{ends_well, session};

/// Backends with these names at these addresses, round-robin on one worker.
fn with(backends: &[(&str, &Backend)]) -> String {
    let entry = |(name, backend): &(&str, &Backend)| {
        format!("{{ address = {:?}, name = {name:?} }}", backend.address)
    };
    let list: Vec<_> = backends.iter().map(entry).collect();
    let text = config(&[], "", "", "[runtime]\nworkers = 1\n");
    text.replace(
        "backends = []",
        &format!("backends = [{}]", list.join(", ")),
    )
}

fn reloaded(proxy: &Proxy, config: &str) {
    let line = proxy.reload(config);
    assert_eq!(text(&line, "message"), "reloaded", "{line}");
}

/// How many of ten sessions each of them gets.
fn gets<const COUNT: usize>(proxy: &Proxy, backends: [&Backend; COUNT]) -> [usize; COUNT] {
    let before = backends.map(Backend::accepted);
    for _ in 0..10 {
        ends_well(session(&proxy.address("web")));
    }
    std::array::from_fn(|place| backends[place].accepted() - before[place])
}

fn enabled(proxy: &Proxy, name: &str) -> bool {
    let status = proxy.status();
    let backends = &named(&status["upstreams"], "app")["backends"];
    named(backends, name)["enabled"] == true
}

#[test]
fn it_holds_over_reloads_until_it_is_undone() {
    let [one, two] = [(); 2].map(|()| Backend::echo());
    let proxy = Proxy::start(&with(&[("b1", &one), ("b2", &two)]));
    proxy.done("drain --backend app/b1");
    for order in [[("b2", &two), ("b1", &one)], [("b1", &one), ("b2", &two)]] {
        reloaded(&proxy, &with(&order));
        assert_eq!(gets(&proxy, [&one, &two]), [0, 10]);
    }
    proxy.done("resume --backend app/b1");
    assert_eq!(gets(&proxy, [&one, &two]), [5, 5]);
    proxy.end();
}

#[test]
fn a_backend_that_leaves_and_comes_back_is_not_drained() {
    let [one, two] = [(); 2].map(|()| Backend::echo());
    let both = with(&[("b1", &one), ("b2", &two)]);
    let proxy = Proxy::start(&both);
    proxy.done("drain --backend app/b1");
    reloaded(&proxy, &with(&[("b2", &two)]));
    reloaded(&proxy, &both);
    assert!(enabled(&proxy, "b1"));
    assert_eq!(gets(&proxy, [&one, &two]), [5, 5]);
    let said = proxy.refused("resume --backend app/b1");
    assert!(said.contains("not ordered to drain"), "{said}");
    proxy.end();
}

#[test]
fn it_is_for_the_name_and_not_for_the_address() {
    let [one, two, three] = [(); 3].map(|()| Backend::echo());
    let proxy = Proxy::start(&with(&[("b1", &one), ("b2", &two)]));
    proxy.done("drain --backend app/b1");
    // The address stays and has another name: nobody has ordered that one.
    reloaded(&proxy, &with(&[("new", &one), ("b2", &two)]));
    assert!(enabled(&proxy, "new"));
    assert_eq!(gets(&proxy, [&one, &two]), [5, 5]);
    // The name stays and has another address.
    proxy.done("drain --backend app/new");
    reloaded(&proxy, &with(&[("new", &three), ("b2", &two)]));
    assert!(!enabled(&proxy, "new"));
    assert_eq!(gets(&proxy, [&three, &two]), [0, 10]);
    proxy.done("resume --backend app/new");
    assert_eq!(gets(&proxy, [&three, &two]), [5, 5]);
    proxy.end();
}

#[test]
fn what_there_is_not_is_refused_with_where_to_look() {
    let backend = Backend::echo();
    let proxy = Proxy::start(&with(&[("b1", &backend)]));
    for (words, part) in [
        ("drain --listener wbe", "listener \"wbe\""),
        ("drain --backend app/b2", "backend \"app/b2\""),
        ("drain --backend ap/b1", "backend \"ap/b1\""),
    ] {
        let said = proxy.refused(words);
        let expected = format!("there is no {part}: `ringress status` shows what there is");
        assert!(said.contains(&expected), "{said}");
    }
    let said = proxy.refused("resume --listener web");
    assert!(
        said.contains("listener \"web\" was not ordered to drain"),
        "{said}"
    );
    assert_eq!(proxy.status()["draining"], serde_json::json!([]));
    ends_well(session(&proxy.address("web")));
    proxy.end();
}
