//! Whatever is in a buffer that the kernel says to have filled: it is told apart without a panic, within
//! its bounds, and the address that a datagram came to is the one that its answer leaves from.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringress::proto::datagram::{LONGEST_CONTROL, Layout, Local, parse, write_control};

fuzz_target!(|buffer: &[u8]| {
    for layout in [Layout::ANYBODY, Layout::ONE_PEER] {
        let Ok(received) = parse(buffer, layout) else {
            continue;
        };
        assert_eq!(received.payload, layout.overhead()..buffer.len());
        let joined = 1..received.payload.len();
        assert!(
            received
                .segment
                .is_none_or(|size| joined.contains(&usize::from(size)))
        );
        assert!(
            received
                .local
                .is_none_or(|local| said_back(local, received.segment) == Some(local))
        );
    }
});

/// The address that is found in the control messages of a datagram that is to leave from `local`.
fn said_back(local: Local, segment: Option<u16>) -> Option<Local> {
    let mut control = [0; LONGEST_CONTROL];
    let len = write_control(&mut control, Some(local), segment);
    let mut buffer = vec![0; Layout::ANYBODY.overhead()];
    buffer[4..8].copy_from_slice(&(len as u32).to_ne_bytes());
    let start = buffer.len() - Layout::ANYBODY.control;
    buffer[start..start + len].copy_from_slice(&control[..len]);
    parse(&buffer, Layout::ANYBODY).ok()?.local
}
