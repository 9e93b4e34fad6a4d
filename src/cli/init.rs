//! `ringress init`: prints a configuration to start from.

use super::{Error, print};

pub(super) fn run() -> Result<(), Error> {
    print(TEMPLATE)
}

/// A valid configuration; what is commented out is the default.
pub(super) const TEMPLATE: &str = r#"# A configuration of ringress. Check it with `ringress check -c FILE`, run it with
# `ringress run -c FILE`. Keys that are commented out show their defaults, or an example
# where it says so.

[runtime]
# workers = "auto"             # one per usable CPU (affinity and cgroup quota); or a number
# pin_workers = true           # each worker stays on one CPU
# max_connections = "auto"     # of the whole process; auto = what RLIMIT_NOFILE holds
# drain_timeout = "60s"        # after SIGTERM, how long sessions may go on
# buffer_memory = "auto"       # relay buffers per worker at most; idle connections hold none

[log]
# level = "info"               # error, warn, info, debug, trace
# format = "text"              # text, json

# An address to accept on. The name "web" appears in the log.
[listeners.web]
bind = "127.0.0.1:8080"        # "ip:port", "[ip6]:port", "unix:/path", or a list of them
upstream = "app"               # where the connections go
# max_connections = 0          # of this listener; 0 = only the process's limit
# backlog = 4096
# tcp_keepalive = "60s"        # or "off"
# tls.certificates = [{ cert = "web.pem", key = "web.key" }]   # an example: TLS is terminated

[listeners.web.timeouts]
# idle = "10m"                 # no byte in either direction
# half_close = "30s"           # the same, once one side has finished sending
# handshake = "10s"            # TLS handshake and all else before a backend is looked for

# Where the connections go.
[upstreams.app]
backends = [
  "127.0.0.1:9001",            # "host:port", "[ip6]:port", "unix:/path"
  { address = "127.0.0.1:9002", weight = 2 },   # twice the share; 0 = no new sessions
]
# balance = "round-robin"
# connect_timeout = "5s"
# source = "10.0.0.9"          # an example: the local address of connections to backends
# tcp_keepalive = "60s"
# tcp_user_timeout = "30s"     # unacknowledged data for this long ends the session
# tls.ca = "ca.pem"            # an example: TLS is spoken to the backends, which are from this authority

[upstreams.app.retry]
# attempts = 1                 # further tries, each on another backend
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_toml_as_it_stands_and_with_everything_uncommented() {
        TEMPLATE.parse::<toml::Table>().expect("it parses");
        let uncommented: Vec<_> = TEMPLATE
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(key) if key.split(' ').nth(1) == Some("=") => key,
                _ => line,
            })
            .collect();
        let table: toml::Table = uncommented.join("\n").parse().expect("it parses");
        assert_eq!(table["log"]["format"].as_str(), Some("text"));
        assert_eq!(
            table["upstreams"]["app"]["retry"]["attempts"].as_integer(),
            Some(1)
        );
    }

    #[test]
    fn the_template_is_a_valid_configuration() {
        super::super::load_text(TEMPLATE, "the template").expect("it is valid");
    }
}
