//! What a listener's file says of routes by name.

use crate::support::{Wrong, parse, says_where_and_what, with};

#[test]
fn routes_stand_in_the_order_of_the_file_with_their_names_in_lower_case() {
    let text = with(
        "[[listeners.web.routes]]\nsni = ['A.example', '*.B.example', 'x', 'xn--80ak6aa92e.com']\nupstream = 'b'\n\
         [[listeners.web.routes]]\nsni = '*.com'\nupstream = 'app'",
        "[upstreams.b]\nbackends = ['10.0.0.8:80']",
    );
    let config = parse(&text).unwrap_or_else(|errors| panic!("{errors}"));
    let routes = &config.listeners[0].routes;
    let routes: Vec<(Vec<&str>, usize)> = routes
        .iter()
        .map(|route| (route.sni.iter().map(|it| &**it).collect(), route.upstream))
        .collect();
    let first = vec!["a.example", "*.b.example", "x", "xn--80ak6aa92e.com"];
    assert_eq!(routes, [(first, 1), (vec!["*.com"], 0)]);
    assert_eq!(
        parse(&with("routes = []", "")).unwrap().listeners[0].routes,
        []
    );
}

#[test]
fn a_name_may_be_in_the_routes_of_two_listeners() {
    let route = "routes = [{ sni = 'a.example', upstream = 'app' }]";
    let other = format!("[listeners.b]\nbind = '[::1]:1'\nupstream = 'app'\n{route}\n");
    assert!(parse(&(with(route, "") + &other)).is_ok());
}

#[test]
fn a_wrong_route_is_shown_at_its_place() {
    let route = |line: &str| match line.starts_with("routes") {
        true => with(line, ""),
        false => with(&format!("[[listeners.web.routes]]\n{line}"), ""),
    };
    says_where_and_what(route, LINES);
    let file = |line: &str| {
        with(
            &format!("[[listeners.web.routes]]\nupstream = 'app'\n{line}"),
            "",
        )
    };
    says_where_and_what(file, NAMES);
}

const LINES: &[Wrong] = &[
    (
        "routes = 'a'",
        "'a'",
        "each after a line [[listeners.NAME.routes]]",
    ),
    (
        "routes = { sni = 'a', upstream = 'app' }",
        "{ sni = 'a', upstream = 'app' }",
        "wrong type: a table",
    ),
    ("routes = [1]", "1", "expected: a table"),
    (
        "upstream = 'app'",
        "[[listeners.web.routes]]",
        "missing key \"sni\"",
    ),
    (
        "sni = 'a'",
        "[[listeners.web.routes]]",
        "missing key \"upstream\"",
    ),
    (
        "sni = 'a'\nupstream = 'ap'",
        "'ap'",
        "did you mean \"app\"?",
    ),
    (
        "sny = 'a'\nupstream = 'app'",
        "sny",
        "did you mean \"sni\"?",
    ),
    (
        "sni = 'a'\nupstream = 'app'\npath = '/'",
        "path",
        "\"path\" is not available yet",
    ),
];

const NAMES: &[Wrong] = &[
    ("sni = []", "[]", "the list is empty"),
    ("sni = 5", "5", "expected: a name like \"a.example.com\""),
    (
        "sni = ['a', '']",
        "''",
        "is not a name that clients ask for",
    ),
    ("sni = '*'", "'*'", "goes to the listener's upstream"),
    ("sni = 'a*.b'", "'a*.b'", "is not a name"),
    ("sni = '*.*.b'", "'*.*.b'", "is not a name"),
    ("sni = 'a.b:443'", "'a.b:443'", "did you mean \"a.b\"?"),
    (
        "sni = 'https://a.b/'",
        "'https://a.b/'",
        "did you mean \"a.b\"?",
    ),
    ("sni = 'a.b.'", "'a.b.'", "did you mean \"a.b\"?"),
    ("sni = '.b.c'", "'.b.c'", "did you mean \"*.b.c\"?"),
    ("sni = '10.0.0.1'", "'10.0.0.1'", "ask for no name"),
    ("sni = '[::1]'", "'[::1]'", "ask for no name"),
    ("sni = 'é.example'", "'é.example'", "begin with \"xn--\""),
    ("sni = \"a\\u0000b\"", "\"a\\u0000b\"", "is not a name"),
    (
        "sni = ['a.b', 'c', 'A.b']",
        "'A.b'",
        "already in a route of this listener",
    ),
    (
        "sni = '*.a'\n[[listeners.web.routes]]\nsni = ['*.A']\nupstream = 'app'",
        "'*.A'",
        "the first route that matches is taken",
    ),
];

#[test]
fn the_upstream_of_a_route_is_checked_like_that_of_its_listener() {
    let unix = "bind = 'unix:/run/a.sock'\nroutes = [{ sni = 'a', upstream = 'by' }]";
    let by = "[upstreams.by]\nbackends = ['10.0.0.8:80']\nbalance = 'ip-hash'";
    let cases = &[(
        unix,
        "'by'",
        "goes by the client's address, and a unix socket has none",
    )];
    says_where_and_what(|line| with(line, by), cases);
}
