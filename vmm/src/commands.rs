// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `gz ps`, `info`, `pause` and their like: what is asked of running VMs, and said about them.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use gzvm_abi::rpc::MOST_BYTES;
use serde::Serialize;

use crate::cli::{BalloonOptions, CallOptions, Which};
use crate::console::keys::{Command, Escape};
use crate::control::client::{ANSWER, Client};
use crate::control::names::Directory;
use crate::control::schema::{Balloon, Info, Measurement, Reply, Request, State, StateName};
use crate::exit::{CODE_SIGNAL, EndReason};
use crate::progress::{self, Step};
use crate::rpc;
use crate::signals;
use crate::terminal::{self, Input, RawMode};

/// How long a VM may take for its line in `gz ps`.
const PS_ANSWER: Duration = Duration::from_secs(1);
/// How long a VM may take to end.
const END: Duration = Duration::from_secs(20);
/// How often it is looked whether it has, or whether a balloon follows.
const LOOK: Duration = Duration::from_millis(100);

/// The VMs that run.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(transparent)]
pub struct List(pub Vec<Listed>);

/// One of them.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(untagged)]
pub enum Listed {
    /// It has told all.
    Known(Box<Info>),
    /// It does not answer.
    Silent {
        /// Its name.
        name: String,
        /// The process of its gz.
        pid: Option<u32>,
        /// [`StateName::Unresponsive`].
        state: StateName,
    },
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|vm| vm.name().len()).fold(4, usize::max);
        write!(
            f,
            "{:width$}  {:>7}  {:12}  {:>5}  {:>7}  {:10}  UPTIME",
            "NAME", "PID", "STATE", "VCPUS", "MEMORY", "HYPERVISOR"
        )?;
        for vm in &self.0 {
            match vm {
                Listed::Known(info) => {
                    let facts = &info.facts;
                    let memory = format!("{}M", facts.memory >> 20);
                    let star = if facts.protected { "*" } else { "" };
                    let hypervisor = format!("{}{star}", facts.hypervisor);
                    write!(
                        f,
                        "\n{:width$}  {:>7}  {:12}  {:>5}  {memory:>7}  {hypervisor:10}  {}s",
                        facts.name, facts.pid, info.state.state, facts.vcpus, info.uptime
                    )?;
                }
                Listed::Silent { name, pid, state } => {
                    let pid = pid.map_or_else(|| "?".to_owned(), |pid| pid.to_string());
                    write!(f, "\n{name:width$}  {pid:>7}  {state:12}")?;
                }
            }
        }
        Ok(())
    }
}

impl Listed {
    /// The VM's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Known(info) => &info.facts.name,
            Self::Silent { name, .. } => name,
        }
    }

    /// Asks a VM for its line; none if it has ended meanwhile.
    fn ask(name: &str) -> Option<Self> {
        let mut client = Client::connect(name).ok()?;
        match client.ask(Request::Info, PS_ANSWER) {
            Ok(Reply::Info(info)) => Some(Self::Known(info)),
            _ => {
                let process = client.process().ok()?;
                Some(Self::Silent {
                    name: name.into(),
                    pid: Some(process.pid),
                    state: StateName::Unresponsive,
                })
            }
        }
    }
}

/// `gz ps`.
///
/// # Errors
/// There is no run directory, or it can't be read.
pub fn ps() -> anyhow::Result<List> {
    let names = Directory::of_user()?.names()?;
    // At once, so that one that does not answer keeps the others waiting no longer than itself.
    let vms = thread::scope(|scope| {
        let all: Vec<_> = names.iter().map(|name| scope.spawn(|| Listed::ask(name))).collect();
        all.into_iter().filter_map(|vm| vm.join().ok().flatten()).collect()
    });
    Ok(List(vms))
}

/// What was done, where there is nothing else to say.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub struct Done {
    /// To which VM.
    pub vm: String,
    /// What.
    pub done: &'static str,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.done)
    }
}

fn ask(which: &Which, request: Request) -> anyhow::Result<Reply> {
    Client::connect(&which.vm)?.ask(request, ANSWER)
}

fn unexpected(which: &Which, reply: &Reply) -> anyhow::Error {
    anyhow::anyhow!("{}: answers something else: {reply:?}", which.vm)
}

/// How a VM is.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// Its power.
    #[serde(flatten)]
    pub state: State,
    /// Who it is, if it is protected.
    pub measurement: Option<Measurement>,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.state)?;
        self.measurement.iter().try_for_each(|measurement| write!(f, ", {measurement}"))
    }
}

/// `gz info`.
///
/// # Errors
/// No such VM, or no answer: as all of these.
pub fn info(which: &Which) -> anyhow::Result<Info> {
    match ask(which, Request::Info)? {
        Reply::Info(info) => Ok(*info),
        other => Err(unexpected(which, &other)),
    }
}

/// `gz status`.
///
/// # Errors
/// As [`info`].
pub fn status(which: &Which) -> anyhow::Result<Status> {
    let Info { state, measurement, .. } = info(which)?;
    Ok(Status { state, measurement })
}

/// `gz pause`.
///
/// # Errors
/// As [`info`]; or the hypervisor can't.
pub fn pause(which: &Which) -> anyhow::Result<State> {
    state(which, Request::Pause)
}

/// `gz resume`.
///
/// # Errors
/// As [`pause`].
pub fn resume(which: &Which) -> anyhow::Result<State> {
    state(which, Request::Resume)
}

fn state(which: &Which, request: Request) -> anyhow::Result<State> {
    match ask(which, request)? {
        Reply::State(state) => Ok(state),
        other => Err(unexpected(which, &other)),
    }
}

/// `gz reset`.
///
/// # Errors
/// As [`info`].
pub fn reset(which: &Which) -> anyhow::Result<Done> {
    match ask(which, Request::Reset)? {
        Reply::Accepted => Ok(Done { vm: which.vm.clone(), done: "resetting" }),
        other => Err(unexpected(which, &other)),
    }
}

/// `gz stop`: until the process has ended.
///
/// # Errors
/// As [`info`]; or it does not end.
pub fn stop(which: &Which) -> anyhow::Result<Done> {
    let mut client = Client::connect(&which.vm)?;
    let process = client.process()?;
    match client.ask(Request::Stop, ANSWER)? {
        Reply::Accepted => {}
        other => return Err(unexpected(which, &other)),
    }
    let look = || Ok(if process.wait_end(LOOK)? { Step::Done } else { Step::Waiting });
    let ended = progress::wait(&format!("{} is ending", which.vm), END, look)?;
    anyhow::ensure!(ended, "{}: is still ending; `gz kill` ends it at once", which.vm);
    Ok(Done { vm: which.vm.clone(), done: "stopped" })
}

/// `gz kill`: needs no answer.
///
/// # Errors
/// No such VM; or its process may not be killed.
pub fn kill(which: &Which) -> anyhow::Result<Done> {
    let client = Client::connect(&which.vm)?;
    let process = client.process()?;
    process.kill().with_context(|| format!("{}: process {}", which.vm, process.pid))?;
    let look = || Ok(if process.wait_end(LOOK)? { Step::Done } else { Step::Waiting });
    let ended = progress::wait(&format!("{} is ending", which.vm), END, look)?;
    anyhow::ensure!(ended, "{}: process {} does not end", which.vm, process.pid);
    if let Ok(directory) = Directory::of_user() {
        directory.sweep();
    }
    Ok(Done { vm: which.vm.clone(), done: "killed" })
}

/// `gz balloon`.
///
/// # Errors
/// As [`info`]; there is no balloon, or it can't have that size.
pub fn balloon(options: &BalloonOptions) -> anyhow::Result<Balloon> {
    let mut client = Client::connect(&options.which.vm)?;
    let mut ask = |size| match client.ask(Request::Balloon { size }, ANSWER)? {
        Reply::Balloon(balloon) => Ok(balloon),
        other => Err(unexpected(&options.which, &other)),
    };
    let begin = ask(None)?.actual;
    let mut now = match options.size {
        None => return ask(None),
        Some(size) => ask(Some(size.0))?,
    };
    if options.wait {
        progress::wait(&format!("{}'s balloon", options.which.vm), Duration::MAX, || {
            if now.actual == now.target {
                return Ok(Step::Done);
            }
            thread::sleep(LOOK);
            now = ask(None)?;
            let of = begin.abs_diff(now.target);
            Ok(Step::At { done: of.saturating_sub(now.actual.abs_diff(now.target)), of })
        })?;
    }
    Ok(now)
}

/// What a service has answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answered(pub Vec<u8>);

impl fmt::Display for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Answered {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut answer = serializer.serialize_struct("Answered", 1)?;
        answer.serialize_field("answer", &self.to_string())?;
        answer.end()
    }
}

/// The bytes that hexadecimal digits stand for.
fn bytes(digits: &str) -> anyhow::Result<Vec<u8>> {
    let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let byte = |pair: &[u8]| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    };
    let bytes: Option<Vec<_>> = digits.as_bytes().chunks(2).map(byte).collect();
    bytes.context("the message: pairs of hexadecimal digits")
}

/// `gz rpc`.
///
/// # Errors
/// No such VM or service, it was refused, or no answer came in time.
pub fn rpc(options: &CallOptions) -> anyhow::Result<Answered> {
    let message = match &options.message {
        Some(digits) => bytes(digits)?,
        None => {
            let mut message = Vec::new();
            let most = MOST_BYTES as u64 + 1;
            io::stdin().take(most).read_to_end(&mut message).context("standard input")?;
            message
        }
    };
    let name = &options.service;
    let channel = rpc::open(&options.which.vm, name)?;
    let answer = rpc::call(&channel, &message, Duration::from_millis(options.timeout.into()));
    answer.map(Answered).with_context(|| format!("{}: {name}", options.which.vm))
}

/// `gz console`: until the user leaves it or the VM ends. The exit code.
///
/// # Errors
/// As [`info`]; or standard output takes no more.
pub fn console(which: &Which) -> anyhow::Result<u8> {
    let (end, reasons) = mpsc::channel();
    signals::install().and_then(|signals| signals.start(end.clone())).context("can't set up signals")?;
    let mut client = Client::connect(&which.vm)?;
    match client.ask(Request::Console, ANSWER)? {
        Reply::Console => {}
        other => return Err(unexpected(which, &other)),
    }
    let (stream, first) = client.into_stream();
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    let input = terminal::input();
    let raw = match input {
        Input::Terminal => {
            eprintln!("gz: the console of {}; Ctrl-A x leaves it", which.vm);
            Some(RawMode::enter().context("standard input: can't make the terminal raw")?)
        }
        Input::Background | Input::Other => None,
    };
    if input != Input::Background {
        let (to, end) = (stream.try_clone()?, end.clone());
        thread::spawn(move || {
            if type_into(&to, input).unwrap_or(true) {
                let _ = end.send(EndReason::Quit);
            }
        });
    }
    thread::spawn(move || {
        let shown = show(first, &stream);
        let _ = end.send(match shown {
            Ok(()) => EndReason::PowerOff,
            Err(error) => EndReason::VmmError(format!("standard output: {error}")),
        });
    });
    let reason = reasons.recv();
    drop(raw);
    match reason {
        Ok(EndReason::Signal(number)) => Ok(CODE_SIGNAL.saturating_add(u8::try_from(number).unwrap_or(0))),
        Ok(EndReason::VmmError(error)) => Err(anyhow::Error::msg(error)),
        Ok(EndReason::Quit) => Ok(0),
        _ => {
            if input == Input::Terminal {
                eprintln!("\r\ngz: {} has ended", which.vm);
            }
            Ok(0)
        }
    }
}

/// Standard input to the guest; true if the user wants to leave. The end of the input is not the end of the output.
fn type_into(mut to: &UnixStream, input: Input) -> io::Result<bool> {
    let mut escape = Escape::default();
    let mut typed = [0; 256];
    let mut stdin = io::stdin();
    loop {
        let count = stdin.read(&mut typed)?;
        let typed = typed.get(..count).unwrap_or_default();
        if typed.is_empty() {
            to.shutdown(Shutdown::Write)?;
            return Ok(false);
        }
        // What is piped in is for the guest, all of it.
        if input != Input::Terminal {
            to.write_all(typed)?;
            continue;
        }
        let mut output = Vec::new();
        for &key in typed {
            match escape.key(key, &mut output) {
                Some(Command::Quit) => return Ok(true),
                Some(Command::Help) => {
                    eprint!("\r\ngz: Ctrl-A x leaves the console, Ctrl-A Ctrl-A sends Ctrl-A\r\n");
                }
                None => {}
            }
        }
        to.write_all(&output)?;
    }
}

/// What the guest says, to standard output, until the VM ends.
fn show(first: Vec<u8>, mut from: &UnixStream) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(&first)?;
    let mut said = [0; 4096];
    loop {
        stdout.flush()?;
        match from.read(&mut said) {
            Ok(0) | Err(_) => return Ok(()),
            Ok(count) => stdout.write_all(said.get(..count).unwrap_or_default())?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_digits() {
        assert_eq!(bytes("00fFa5").unwrap(), [0, 0xFF, 0xA5]);
        assert!(bytes("").unwrap().is_empty());
        assert_eq!(Answered(vec![0, 0xFF, 0xA5]).to_string(), "00ffa5");
        assert_eq!(serde_json::to_string(&Answered(vec![1])).unwrap(), r#"{"answer":"01"}"#);
        for wrong in ["0", "0g", "+1", "a b", "ä"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
