//! What would become of a client, as a process tells it. Every field has a default, so that the answer of an
//! older or a newer process can be shown.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A client that might come.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Question {
    /// The listener's name.
    pub listener: String,
    /// Who it is; where a PROXY header is required, as that says.
    pub client: IpAddr,
    /// The name that it asks for in its ClientHello; `None` = none.
    #[serde(default)]
    pub sni: Option<String>,
}

/// What would become of it at this moment.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Explained {
    /// The listener's name.
    pub listener: String,
    /// Who was asked about.
    pub client: String,
    /// The name that it asks for.
    pub sni: Option<String>,
    /// Of the configuration in effect.
    pub generation: u64,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Why it is refused: what its session would end for, or its datagram be dropped for.
    pub reason: Option<String>,
    /// What it goes through before a backend is looked for, in this order.
    pub checks: Vec<Check>,
    /// In their order, and the listener's own upstream last.
    pub routes: Vec<RouteView>,
    /// Where it goes, were it let in.
    pub upstream: String,
    /// How a backend is chosen there.
    pub balance: String,
    /// What `backend` is worth.
    pub foresight: Foresight,
    /// The one that it goes to, were it let in; `None` = it is drawn, or there is none.
    pub backend: Option<String>,
    /// Those of the upstream, in the order of the file.
    pub backends: Vec<BackendView>,
}

/// What becomes of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It gets a backend.
    Served,
    /// It waits until a backend has a place.
    Waits,
    /// It is turned away.
    Refused,
    /// A word that only another version knows.
    #[default]
    #[serde(other)]
    Unknown,
}

/// How far a choice can be told before it is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Foresight {
    /// All sessions of this client go there, as long as the backends stay as they are.
    Certain,
    /// The next session goes there, whoever has it.
    Next,
    /// It is drawn.
    Chance,
    /// A word that only another version knows.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Something that a client has to pass.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Check {
    /// What is looked at: mostly the key of the configuration.
    pub name: String,
    /// It lets the client pass.
    pub passes: bool,
    /// What a session would end for here.
    pub reason: Option<String>,
    /// What was found.
    pub why: String,
}

/// A way that a client may take.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteView {
    /// Its place in the file, from 0; `None` = to the listener's own upstream.
    pub route: Option<u64>,
    /// The names that lead there.
    pub names: Vec<String>,
    /// Where it leads.
    pub upstream: String,
    /// The client takes it.
    pub taken: bool,
    /// Why, or why not.
    pub why: String,
}

/// A backend that a client may get.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BackendView {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub address: String,
    /// The client goes there, were it let in.
    pub chosen: bool,
    /// Why, or why not.
    pub why: String,
}
