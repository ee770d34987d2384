// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is said on a control socket: one JSON object a line, a [`Question`] each, an [`Answer`] to each. `docs/control.md`
//! describes it for other programs; this file is its definition.
//!
//! [`VERSION`] rises with any change that a client or a server of the old one would misread. Answers may gain members
//! within a version, so clients ignore those that they don't know; questions may not.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::hypervisor::{self, Kind, Power, Status};
use crate::sandbox::Confinement;

/// Of everything here.
pub const VERSION: u32 = 1;

/// From a client.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// [`VERSION`].
    pub version: u32,
    /// What it wants.
    pub request: Request,
}

/// Just the version of what may be anything else.
#[derive(Deserialize)]
pub struct Versioned {
    /// See [`Question::version`].
    pub version: u32,
}

/// What a client wants.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// All about the VM: [`Reply::Info`].
    Info,
    /// vCPUs stop where they are: [`Reply::State`].
    Pause,
    /// They go on: [`Reply::State`].
    Resume,
    /// The guest starts anew, or the run ends: `--on-reset`. [`Reply::Accepted`].
    Reset,
    /// The run ends: [`Reply::Accepted`]. The connection ends with the process.
    Stop,
    /// Tells the balloon's size, after a change if there is a size: [`Reply::Balloon`].
    Balloon {
        /// Bytes that it should have.
        size: Option<u64>,
    },
    /// A channel to a service of the guest: [`Reply::Channel`].
    Rpc {
        /// Which.
        service: String,
        /// For another VM, which has it at this port, and whose file comes with the question. None: for the host.
        port: Option<u32>,
    },
    /// [`Reply::Console`], and from there on the connection is the guest's console, both ways and no longer JSON.
    Console,
}

/// From the VM.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// [`VERSION`].
    pub version: u32,
    /// Reply or error.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What came of a question.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was done.
    Reply(Reply),
    /// It was not.
    Error(Failure),
}

/// What was asked for.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// All about the VM.
    Info(Box<Info>),
    /// Its state now.
    State(State),
    /// It will happen soon.
    Accepted,
    /// The balloon's size.
    Balloon(Balloon),
    /// The channel's file comes with this answer.
    Channel,
    /// The console follows.
    Console,
}

/// Why not.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// What kind of reason.
    pub kind: FailureKind,
    /// In words.
    pub message: String,
}

/// A kind of reason.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// Another version is spoken here: the answer's own.
    Version,
    /// That is no question of this version.
    Malformed,
    /// Too many clients; or the VM is being made or unmade.
    Busy,
    /// The VM, or the hypervisor, can't.
    Refused,
}

/// How a VM is.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    /// Its power.
    pub state: StateName,
    /// Exceptions of the guest that `--watch` has seen.
    pub exceptions: u64,
}

/// A VM's power.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum StateName {
    /// It is being made or unmade.
    Starting,
    /// Nothing has run yet.
    Created,
    /// It runs.
    Running,
    /// It is paused.
    Paused,
    /// The guest has suspended itself.
    Suspended,
    /// It has ended, or is about to.
    Over,
    /// Its gz gives no answer. Clients' own: no VM says so.
    Unresponsive,
}

impl From<Status> for State {
    fn from(status: Status) -> Self {
        let state = match status.power {
            Power::Created => StateName::Created,
            Power::Running => StateName::Running,
            Power::Paused => StateName::Paused,
            Power::Suspended => StateName::Suspended,
            Power::Over => StateName::Over,
        };
        Self { state, exceptions: status.events }
    }
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Starting => "starting",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Suspended => "suspended",
            Self::Over => "over",
            Self::Unresponsive => "unresponsive",
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.state)?;
        match self.exceptions {
            0 => Ok(()),
            number => write!(f, ", {number} exceptions seen"),
        }
    }
}

/// A balloon, in bytes.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Balloon {
    /// What it should have.
    pub target: u64,
    /// What it has.
    pub actual: u64,
}

impl fmt::Display for Balloon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "target {}K, actual {}K", self.target >> 10, self.actual >> 10)
    }
}

/// Who a protected VM is.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Measurement {
    /// SHA-256 in hexadecimal digits, see `docs/abi.md`.
    pub value: String,
    /// The firmware has told all, and the payload runs.
    pub sealed: bool,
}

impl From<hypervisor::Measurement> for Measurement {
    fn from(measurement: hypervisor::Measurement) -> Self {
        let value = measurement.value.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { value, sealed: measurement.sealed }
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "measurement {}, {}", self.value, if self.sealed { "sealed" } else { "open" })
    }
}

/// All about a VM: what stays, and how it is.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub struct Info {
    /// What stays.
    #[serde(flatten)]
    pub facts: Facts,
    /// How it is.
    #[serde(flatten)]
    pub state: State,
    /// Seconds since its gz began.
    pub uptime: u64,
    /// How often the guest has started: 1, and more after resets.
    pub lives: u64,
    /// Who it is, if it is protected and its hypervisor tells.
    pub measurement: Option<Measurement>,
    /// Its balloon, if it has one.
    pub balloon: Option<Balloon>,
}

/// What stays.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// The process of its gz.
    pub pid: u32,
    /// That gz's version.
    pub gz: String,
    /// The host's hypervisor.
    pub hypervisor: Kind,
    /// Whether it is out of the host's reach.
    pub protected: bool,
    /// Its vCPUs.
    pub vcpus: u8,
    /// Its RAM in bytes.
    pub memory: u64,
    /// The kernel or firmware.
    pub image: PathBuf,
    /// How far its gz is confined.
    pub sandbox: Confinement,
    /// What it can be called for.
    #[serde(default)]
    pub services: Vec<String>,
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Facts { name, pid, gz, hypervisor, protected, vcpus, memory, image, sandbox, services } =
            &self.facts;
        writeln!(f, "name        {name}")?;
        writeln!(f, "state       {}", self.state)?;
        writeln!(f, "process     {pid}, gz {gz}, {} s", self.uptime)?;
        let protected = if *protected { ", protected" } else { "" };
        writeln!(f, "hypervisor  {hypervisor}{protected}")?;
        writeln!(f, "vCPUs       {vcpus}")?;
        writeln!(f, "memory      {}M", memory >> 20)?;
        if let Some(measurement) = &self.measurement {
            writeln!(f, "identity    {measurement}")?;
        }
        if let Some(balloon) = self.balloon {
            writeln!(f, "balloon     {balloon}")?;
        }
        writeln!(f, "image       {}", image.display())?;
        writeln!(f, "sandbox     {sandbox}")?;
        if !services.is_empty() {
            writeln!(f, "services    {}", services.join(", "))?;
        }
        write!(f, "lives       {}", self.lives)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(request: Request, text: &str) {
        let question = Question { version: VERSION, request };
        assert_eq!(serde_json::to_string(&question).unwrap(), text);
        assert_eq!(serde_json::from_str::<Question>(text).unwrap(), question);
    }

    #[test]
    fn questions_are_as_documented() {
        round(Request::Info, r#"{"version":1,"request":"info"}"#);
        round(Request::Balloon { size: None }, r#"{"version":1,"request":{"balloon":{"size":null}}}"#);
        round(Request::Balloon { size: Some(4096) }, r#"{"version":1,"request":{"balloon":{"size":4096}}}"#);
        let rpc = |port| Request::Rpc { service: "keys".into(), port };
        round(rpc(None), r#"{"version":1,"request":{"rpc":{"service":"keys","port":null}}}"#);
        round(rpc(Some(1)), r#"{"version":1,"request":{"rpc":{"service":"keys","port":1}}}"#);
        assert!(serde_json::from_str::<Question>(r#"{"version":1,"request":{"balloon":{}}}"#).is_ok());
        for wrong in [
            r#"{"version":1,"request":"fly"}"#,
            r#"{"version":1,"request":"info","more":1}"#,
            r#"{"version":1,"request":{"balloon":{"size":-1}}}"#,
            r#"{"version":1,"request":{"balloon":{"sise":1}}}"#,
            r#"{"request":"info"}"#,
            r#"{"version":1}"#,
        ] {
            assert!(serde_json::from_str::<Question>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn answers_are_as_documented() {
        let answer = |outcome| Answer { version: VERSION, outcome };
        let state = State { state: StateName::Paused, exceptions: 0 };
        for (outcome, text) in [
            (
                Outcome::Reply(Reply::State(state)),
                r#"{"version":1,"reply":{"state":{"state":"paused","exceptions":0}}}"#,
            ),
            (Outcome::Reply(Reply::Channel), r#"{"version":1,"reply":"channel"}"#),
            (Outcome::Reply(Reply::Accepted), r#"{"version":1,"reply":"accepted"}"#),
            (
                Outcome::Error(Failure { kind: FailureKind::Busy, message: "no".into() }),
                r#"{"version":1,"error":{"kind":"busy","message":"no"}}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&answer(outcome.clone())).unwrap(), text);
            assert_eq!(serde_json::from_str::<Answer>(text).unwrap(), answer(outcome));
        }
        // Of a newer gz.
        let more = r#"{"version":1,"since":5,"reply":{"state":{"state":"paused","exceptions":0,"why":"x"}}}"#;
        assert!(serde_json::from_str::<Answer>(more).is_ok());
    }
}
