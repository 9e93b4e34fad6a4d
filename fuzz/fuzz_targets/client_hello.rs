//! However a connection begins: its hello is read without a panic, in any pieces alike, to the same
//! answer for good, and a name is one that DNS may have.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringress::proto::client_hello::check_laws;

fuzz_target!(|bytes: &[u8]| check_laws(bytes));
