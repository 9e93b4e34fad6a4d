//! Whatever a configuration file holds: reading it and printing its findings never panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringress::config;

fuzz_target!(|text: &str| {
    let mut resolver = |_: &str, port: u16| Ok(vec![([192, 0, 2, 1], port).into()]);
    if let Err(errors) = config::parse(text, "fuzz.toml", &mut resolver) {
        assert!(!errors.to_string().is_empty());
    }
});
