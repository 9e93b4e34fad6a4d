//! Whatever stands in a binary PROXY header: it is read without a panic, in any pieces alike, and not a
//! byte more. What was read reads back equal when it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringress::proto::proxy_header::check_laws;

fuzz_target!(|bytes: &[u8]| {
    check_laws(bytes);
    check_laws(&[b"\r\n\r\n\0\r\nQUIT\n", bytes].concat());
});
