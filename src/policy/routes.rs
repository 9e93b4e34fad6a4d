//! Which route a name takes. What a look-up costs depends on the labels of the name and not on the number
//! of routes.

use std::collections::HashMap;

/// The names of a list of routes. The first route that matches wins, whether it names a name in full or
/// by `*.example.com`, which stands for all names that have at least one label before `.example.com`.
#[derive(Default, Debug)]
pub struct Routes {
    /// Names in full, each with the first route that has it.
    exact: HashMap<Box<str>, usize>,
    /// What stands behind `*.`, likewise.
    suffixes: HashMap<Box<str>, usize>,
}

impl Routes {
    /// Of the patterns of each route, in their order, all in lower case.
    pub fn new<'a>(routes: impl IntoIterator<Item = impl IntoIterator<Item = &'a str>>) -> Self {
        let mut names = Self::default();
        for (route, patterns) in routes.into_iter().enumerate() {
            for pattern in patterns {
                let (map, name) = match pattern.strip_prefix("*.") {
                    Some(suffix) => (&mut names.suffixes, suffix),
                    None => (&mut names.exact, pattern),
                };
                map.entry(name.into()).or_insert(route);
            }
        }
        names
    }

    /// The place of the route that a name in lower case takes.
    pub fn find(&self, name: &str) -> Option<usize> {
        let exact = self.exact.get(name).copied();
        let dots = name.match_indices('.').filter(|(at, _)| *at > 0);
        let suffixes = dots.filter_map(|(at, _)| self.suffixes.get(&name[at + 1..]).copied());
        suffixes.chain(exact).min()
    }

    /// No name takes a route.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.suffixes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn routes(routes: &[&[&str]]) -> Routes {
        Routes::new(routes.iter().map(|patterns| patterns.iter().copied()))
    }

    /// The plainest way to say it.
    fn matches(pattern: &str, name: &str) -> bool {
        match pattern.strip_prefix('*') {
            Some(suffix) => name.strip_suffix(suffix).is_some_and(|it| !it.is_empty()),
            None => pattern == name,
        }
    }

    #[test]
    fn the_first_route_that_matches_wins() {
        let found = routes(&[
            &["a.example.com", "b.example.com"],
            &["*.example.com"],
            &["c.example.com", "a.example.com", "example.com"],
        ]);
        assert_eq!(found.find("a.example.com"), Some(0));
        assert_eq!(found.find("b.example.com"), Some(0));
        assert_eq!(found.find("c.example.com"), Some(1));
        assert_eq!(found.find("example.com"), Some(2));
        assert_eq!(found.find("example.org"), None);
    }

    #[test]
    fn the_first_of_several_wildcards_wins_and_not_the_longest() {
        let found = routes(&[
            &["*.com"],
            &["*.a.example.com"],
            &["*.example.org", "*.org"],
        ]);
        assert_eq!(found.find("x.a.example.com"), Some(0));
        assert_eq!(found.find("example.org"), Some(2));
        let found = routes(&[&["*.a.example.com"], &["*.com"]]);
        assert_eq!(found.find("x.a.example.com"), Some(0));
        assert_eq!(found.find("a.example.com"), Some(1));
    }

    #[test]
    fn a_wildcard_stands_for_one_label_or_more() {
        let found = routes(&[&["*.example.com"]]);
        assert_eq!(found.find("a.example.com"), Some(0));
        assert_eq!(found.find("c.b.a.example.com"), Some(0));
        for name in [
            "example.com",
            "badexample.com",
            ".example.com",
            "com",
            "",
            "*.com",
        ] {
            assert_eq!(found.find(name), None, "{name}");
        }
    }

    #[test]
    fn without_a_name_there_is_no_route() {
        assert!(routes(&[]).is_empty() && routes(&[&[], &[]]).is_empty());
        assert!(!routes(&[&[], &["a"]]).is_empty() && !routes(&[&["*.a"]]).is_empty());
        assert_eq!(routes(&[&[], &["a"]]).find("a"), Some(1));
    }

    #[test]
    fn of_ten_thousand_routes_each_is_found() {
        let patterns: Vec<_> = (0..10_000)
            .map(|n| [format!("a{n}.example"), format!("*.w{n}.example")])
            .collect();
        let found = Routes::new(patterns.iter().map(|it| it.iter().map(String::as_str)));
        for n in 0..10_000 {
            assert_eq!(found.find(&format!("a{n}.example")), Some(n));
            assert_eq!(found.find(&format!("b.w{n}.example")), Some(n));
        }
    }

    /// Close together, so that they meet.
    fn any_name() -> impl Strategy<Value = String> {
        prop::collection::vec("[ab]{1,2}", 1..5).prop_map(|labels| labels.join("."))
    }

    fn any_pattern() -> impl Strategy<Value = String> {
        (any::<bool>(), any_name())
            .prop_map(|(is_wild, name)| if is_wild { format!("*.{name}") } else { name })
    }

    proptest! {
        #[test]
        fn it_finds_what_a_look_at_each_route_finds(
            list in prop::collection::vec(prop::collection::vec(any_pattern(), 0..4), 0..8),
            names in prop::collection::vec(any_name(), 1..20),
        ) {
            let found = Routes::new(list.iter().map(|it| it.iter().map(String::as_str)));
            prop_assert_eq!(found.is_empty(), list.iter().all(Vec::is_empty));
            for name in names {
                let expected = list.iter().position(|it| it.iter().any(|it| matches(it, &name)));
                prop_assert_eq!(found.find(&name), expected, "{}", name);
            }
        }
    }
}
