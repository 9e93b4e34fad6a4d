//! Whatever two configurations are: their difference is one, in both directions.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringress::config::{self, Config, diff};

fuzz_target!(|texts: &str| {
    // One text alone is compared with the example that has every key.
    let (old, new) = texts.split_once("\n=====\n").unwrap_or((EXAMPLE, texts));
    let fewer = without_a_line(new);
    let configs: Vec<_> = [old, new, &fewer].into_iter().filter_map(valid).collect();
    for pair in configs.windows(2) {
        diff::check_laws(&pair[0], &pair[1]);
    }
});

const EXAMPLE: &str = include_str!("../../conf/tcp.toml");

fn valid(text: &str) -> Option<Config> {
    let mut unknown = |_: &str, port: u16| Ok(vec![([192, 0, 2, 1], port).into()]);
    config::parse(text, "fuzz.toml", &mut unknown).ok()
}

/// The line depends on the text.
fn without_a_line(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    let left_out = text.bytes().map(usize::from).sum::<usize>() % lines.len().max(1);
    let rest = lines.iter().enumerate().filter(|(at, _)| *at != left_out);
    rest.map(|(_, line)| format!("{line}\n")).collect()
}
