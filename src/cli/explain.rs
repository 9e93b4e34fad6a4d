//! `ringress explain`: what would become of a client that came to a running process now, and why.

use std::net::IpAddr;
use std::process::ExitCode;

use super::process::{AT_ONCE, Process, conclude};
use super::table::{row, write_table};
use crate::control::socket::explained::{Explained, Foresight, Question, Verdict};
use crate::control::socket::protocol::{Command, Outcome};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// The listener that it comes to
    #[arg(long, value_name = "NAME")]
    listener: String,
    /// Its address; where a PROXY header is required, the one that this says
    #[arg(long, value_name = "IP")]
    client: IpAddr,
    /// The name that it asks for by TLS
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    #[command(flatten)]
    process: Process,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let process = &arguments.process;
    let command = Command::Explain(Question {
        listener: arguments.listener.clone(),
        client: arguments.client,
        sni: arguments.sni.clone(),
    });
    let explained = process.ask(&command, AT_ONCE, |outcome| match outcome {
        Outcome::Explained(explained) => Some(*explained),
        _ => None,
    });
    conclude(process.format(), explained, text)
}

fn text(explained: &Explained) -> String {
    let mut out = headline(explained);
    let tables = [checks(explained), routes(explained), backends(explained)];
    for rows in &tables {
        out.push('\n');
        write_table(&mut out, rows);
    }
    out
}

fn headline(explained: &Explained) -> String {
    let Explained {
        listener,
        client,
        upstream,
        ..
    } = explained;
    let who = match &explained.sni {
        None => format!("client {client} at listener \"{listener}\""),
        Some(sni) => format!("client {client} at listener \"{listener}\" asking for {sni}"),
    };
    let reason = explained.reason.as_ref();
    let what = match (explained.verdict, explained.foresight, &explained.backend) {
        (Verdict::Served, Foresight::Next, Some(backend)) => {
            format!("goes to backend \"{upstream}/{backend}\", if its session is the next one")
        }
        (Verdict::Served, _, Some(backend)) => format!("goes to backend \"{upstream}/{backend}\""),
        (Verdict::Served, _, None) => {
            format!("goes to a backend of upstream \"{upstream}\" that is drawn")
        }
        (Verdict::Waits, ..) => format!("waits for a place at upstream \"{upstream}\""),
        (Verdict::Refused, ..) => match reason {
            Some(reason) => format!("is refused: {reason}"),
            None => "is refused: nobody accepts it".to_owned(),
        },
        (Verdict::Unknown, ..) => "meets what this version of ringress does not know".to_owned(),
    };
    format!("{who} {what}\n")
}

fn checks(explained: &Explained) -> Vec<Vec<String>> {
    let head = row(["CHECK", "OUTCOME", "WHY"]);
    let rows = explained.checks.iter().map(|check| {
        let outcome = match (check.passes, &check.reason) {
            (true, _) => "passes",
            (false, Some(reason)) => reason,
            (false, None) => "refuses",
        };
        row([&check.name, outcome, &check.why])
    });
    std::iter::once(head).chain(rows).collect()
}

fn routes(explained: &Explained) -> Vec<Vec<String>> {
    let head = row(["ROUTE", "UPSTREAM", "OUTCOME", "WHY", "NAMES"]);
    let rows = explained.routes.iter().map(|route| {
        let place = route
            .route
            .map_or("-".to_owned(), |place| place.to_string());
        let outcome = if route.taken { "taken" } else { "-" };
        let names = &route.names.join(", ");
        row([&place, &route.upstream, outcome, &route.why, names])
    });
    std::iter::once(head).chain(rows).collect()
}

fn backends(explained: &Explained) -> Vec<Vec<String>> {
    let head = row(["BACKEND", "ADDRESS", "OUTCOME", "WHY"]);
    let rows = explained.backends.iter().map(|backend| {
        let outcome = if backend.chosen { "chosen" } else { "-" };
        row([&backend.name, &backend.address, outcome, &backend.why])
    });
    std::iter::once(head).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::socket::explained::{BackendView, Check, RouteView};

    fn explained() -> Explained {
        let check = |name: &str, reason: Option<&str>, why: &str| Check {
            name: name.to_owned(),
            passes: reason.is_none(),
            reason: reason.map(str::to_owned),
            why: why.to_owned(),
        };
        let route = |place: Option<u64>, upstream: &str, why: &str| RouteView {
            route: place,
            names: place.map(|_| "*.example".to_owned()).into_iter().collect(),
            upstream: upstream.to_owned(),
            taken: place.is_some(),
            why: why.to_owned(),
        };
        Explained {
            listener: "web".to_owned(),
            client: "203.0.113.9".to_owned(),
            sni: Some("a.example".to_owned()),
            verdict: Verdict::Served,
            checks: vec![
                check("allow, deny", None, "everybody may come"),
                check(
                    "rate_limit.connections",
                    Some("rate-limit"),
                    "0 of 5 tokens",
                ),
            ],
            routes: vec![
                route(Some(0), "api", "it is the first that matches"),
                route(None, "app", "a route matches"),
            ],
            upstream: "api".to_owned(),
            foresight: Foresight::Certain,
            backend: Some("b1".to_owned()),
            backends: vec![BackendView {
                name: "b1".to_owned(),
                address: "10.0.0.1:80".to_owned(),
                chosen: true,
                why: "ready".to_owned(),
            }],
            ..Explained::default()
        }
    }

    #[test]
    fn it_reads_as_a_sentence_and_tables() {
        let expected = "\
client 203.0.113.9 at listener \"web\" asking for a.example goes to backend \"api/b1\"

CHECK                   OUTCOME     WHY
allow, deny             passes      everybody may come
rate_limit.connections  rate-limit  0 of 5 tokens

ROUTE  UPSTREAM  OUTCOME  WHY                           NAMES
0      api       taken    it is the first that matches  *.example
-      app       -        a route matches

BACKEND  ADDRESS      OUTCOME  WHY
b1       10.0.0.1:80  chosen   ready
";
        assert_eq!(text(&explained()), expected);
    }

    #[test]
    fn every_verdict_has_its_sentence() {
        let mut explained = explained();
        explained.sni = None;
        let mut says = |verdict, foresight, backend: Option<&str>, reason: Option<&str>| {
            explained.verdict = verdict;
            explained.foresight = foresight;
            explained.backend = backend.map(str::to_owned);
            explained.reason = reason.map(str::to_owned);
            let headline = headline(&explained);
            let who = "client 203.0.113.9 at listener \"web\" ";
            headline.strip_prefix(who).expect("who it is").to_owned()
        };
        let next = says(Verdict::Served, Foresight::Next, Some("b"), None);
        assert_eq!(
            next,
            "goes to backend \"api/b\", if its session is the next one\n"
        );
        let drawn = says(Verdict::Served, Foresight::Chance, None, None);
        assert_eq!(
            drawn,
            "goes to a backend of upstream \"api\" that is drawn\n"
        );
        let waits = says(Verdict::Waits, Foresight::Next, None, None);
        assert_eq!(waits, "waits for a place at upstream \"api\"\n");
        let refused = says(Verdict::Refused, Foresight::Next, Some("b"), Some("denied"));
        assert_eq!(refused, "is refused: denied\n");
        let drained = says(Verdict::Refused, Foresight::Next, None, None);
        assert_eq!(drained, "is refused: nobody accepts it\n");
    }
}
