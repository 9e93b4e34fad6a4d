use proptest::prelude::*;

use super::*;

/// A buffer as the kernel fills it.
fn buffer(layout: Layout, name: &[u8], control: &[u8], flags: i32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [name.len(), control.len(), payload.len(), flags as usize] {
        bytes.extend((word as u32).to_ne_bytes());
    }
    bytes.extend(name);
    bytes.resize(HEADER + layout.name, 0xdb);
    bytes.extend(control);
    bytes.resize(layout.overhead(), 0xdb);
    bytes.extend(payload);
    bytes
}

fn name(address: SocketAddr) -> Vec<u8> {
    let mut bytes = match address {
        SocketAddr::V4(_) => (libc::AF_INET as u16).to_ne_bytes().to_vec(),
        SocketAddr::V6(_) => (libc::AF_INET6 as u16).to_ne_bytes().to_vec(),
    };
    bytes.extend(address.port().to_be_bytes());
    match address {
        SocketAddr::V4(v4) => {
            bytes.extend(v4.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(v6) => {
            bytes.extend(7u32.to_be_bytes());
            bytes.extend(v6.ip().octets());
            bytes.extend(v6.scope_id().to_ne_bytes());
        }
    }
    bytes
}

/// A single control message.
fn control(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; space(data.len())];
    put(&mut bytes, &mut 0, (level, kind), data);
    bytes
}

fn local(ip: &str, interface: u32) -> Local {
    let ip = ip.parse().expect("an address");
    Local { ip, interface }
}

#[test]
fn sender_local_address_segment_and_losses_are_read() {
    for (sender, from) in [
        ("192.0.2.7:5353", local("192.0.2.1", 0)),
        ("[2001:db8::7]:53", local("2001:db8::1", 0)),
        ("[fe80::7%3]:53", local("fe80::1", 3)),
        ("[::ffff:192.0.2.7]:53", local("::ffff:192.0.2.1", 0)),
    ] {
        let sender: SocketAddr = sender.parse().expect("an address");
        let mut info = [0; LONGEST_CONTROL];
        let len = write_control(&mut info, Some(from), None);
        let mut controls = info[..len].to_vec();
        controls.extend(control(libc::SOL_UDP, libc::UDP_GRO, &3i32.to_ne_bytes()));
        controls.extend(control(
            libc::SOL_SOCKET,
            libc::SO_RXQ_OVFL,
            &9u32.to_ne_bytes(),
        ));
        let layout = Layout::ANYBODY;
        let bytes = buffer(layout, &name(sender), &controls, 0, b"payload");
        let received = parse(&bytes, layout).expect("well-formed");
        assert_eq!(received.sender, Some(sender));
        assert_eq!(received.local, Some(from));
        assert_eq!((received.segment, received.lost), (Some(3), Some(9)));
        assert_eq!(&bytes[received.payload], b"payload");
        assert!(!received.truncated);
    }
}

#[test]
fn an_empty_datagram_is_one_and_a_truncated_one_says_so() {
    let layout = Layout::ONE_PEER;
    let bytes = buffer(layout, &[], &[], 0, &[]);
    let empty = parse(&bytes, layout).expect("well-formed");
    assert!(empty.payload.is_empty() && empty.sender.is_none() && !empty.truncated);
    let bytes = buffer(layout, &[], &[], libc::MSG_TRUNC, &[1]);
    assert!(parse(&bytes, layout).expect("well-formed").truncated);
}

#[test]
fn a_segment_that_cuts_nothing_is_none() {
    let layout = Layout::ONE_PEER;
    for (size, expected) in [
        (0i32, None),
        (3, Some(3)),
        (4, None),
        (70_000, None),
        (-1, None),
    ] {
        let control = control(libc::SOL_UDP, libc::UDP_GRO, &size.to_ne_bytes());
        let bytes = buffer(layout, &[], &control, 0, b"four");
        let received = parse(&bytes, layout).expect("well-formed");
        assert_eq!(received.segment, expected, "{size}");
    }
}

#[test]
fn what_is_to_be_sent_is_written_as_the_kernel_reads_it() {
    let mut bytes = [0xdb; LONGEST_CONTROL];
    assert_eq!(write_control(&mut bytes, None, None), 0);
    let from = local("2001:db8::1", 4);
    let len = write_control(&mut bytes, Some(from), Some(1200));
    assert_eq!(len, LONGEST_CONTROL);
    let mut messages = Controls(&bytes[..len]);
    let info = messages.next().expect("the address");
    assert_eq!(
        (info.level, info.kind),
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO)
    );
    assert_eq!(info.data[16..], 4u32.to_ne_bytes());
    let segment = messages.next().expect("the size");
    assert_eq!(
        (segment.level, segment.kind),
        (libc::SOL_UDP, libc::UDP_SEGMENT)
    );
    assert_eq!(segment.data, 1200u16.to_ne_bytes());
    assert!(messages.next().is_none());
}

proptest! {
    #[test]
    fn whatever_stands_in_a_buffer_is_read_without_harm(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        one_peer in any::<bool>(),
    ) {
        let layout = if one_peer { Layout::ONE_PEER } else { Layout::ANYBODY };
        if let Ok(received) = parse(&bytes, layout) {
            prop_assert_eq!(received.payload.end, bytes.len());
            prop_assert!(received.segment != Some(0));
        }
    }

    #[test]
    fn control_messages_end_where_they_make_no_sense(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Controls(&bytes).count() <= bytes.len() / CONTROL_HEADER);
    }
}
