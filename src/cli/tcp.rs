//! `ringress tcp LISTEN BACKEND...`: the smallest configuration, from arguments.

use super::{Error, load_text, serve};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Where to listen: ip:port, [ip6]:port or unix:/path
    listen: String,
    /// The backends, chosen in turn: host:port, [ip6]:port or unix:/path
    #[arg(required = true, value_name = "BACKEND")]
    backends: Vec<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Error> {
    let text = configuration(&arguments.listen, &arguments.backends);
    let config = load_text(&text, "the command line")?;
    serve(config, None)
}

/// The text of the configuration, so that arguments are checked by the same rules as a file.
fn configuration(listen: &str, backends: &[String]) -> String {
    let backends: Vec<_> = backends.iter().map(|backend| quoted(backend)).collect();
    format!(
        "[listeners.tcp]\nbind = {}\nupstream = \"backends\"\n\n\
         [upstreams.backends]\nbackends = [{}]\n",
        quoted(listen),
        backends.join(", ")
    )
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_become_a_configuration() {
        let backends = ["10.0.0.1:80", "10.0.0.2:80"].map(str::to_owned);
        assert_eq!(
            configuration("127.0.0.1:8080", &backends),
            "[listeners.tcp]\nbind = \"127.0.0.1:8080\"\nupstream = \"backends\"\n\n\
             [upstreams.backends]\nbackends = [\"10.0.0.1:80\", \"10.0.0.2:80\"]\n"
        );
    }

    #[test]
    fn no_argument_can_leave_its_string() {
        for hostile in [
            "\"",
            "\"]\n[runtime]",
            "a\nb",
            "\\",
            "'",
            "\"\"\"'''",
            "\u{1}",
        ] {
            let text = configuration(hostile, &[hostile.to_owned()]);
            let table: toml::Table = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(table.len(), 2, "{text}");
            assert_eq!(table["listeners"]["tcp"]["bind"].as_str(), Some(hostile));
            assert_eq!(
                table["upstreams"]["backends"]["backends"][0].as_str(),
                Some(hostile)
            );
        }
    }
}
