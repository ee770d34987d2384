// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The control socket: `gz run --control SOCKET` listens, `gz pause SOCKET` and its like talk to it.
//!
//! One line each way. A request is the name of a [`Request`] (with a size, for a balloon), the answer `ok TEXT` or `error TEXT`. One client at a
//! time, and none may keep the others waiting for long. The socket's file is the user's alone.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;

use crate::cli::MemSize;
use crate::exit::EndReason;
use crate::hypervisor::Vm;

/// How long a client may take for its line.
const PATIENCE: Duration = Duration::from_secs(2);
/// And how long an answer may take.
const ANSWER: Duration = Duration::from_secs(20);
/// Longest line.
const LINE: u64 = 256;

/// What a client asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// vCPUs stop where they are.
    Pause,
    /// They go on.
    Resume,
    /// The run ends.
    Stop,
    /// The guest starts anew, or the run ends: `--on-reset`.
    Reset,
    /// Tells the state.
    Status,
    /// Tells the balloon's size; with one, sets the size that it should have.
    Balloon(Option<MemSize>),
}

impl Request {
    const ALL: [(Self, &str); 6] = [
        (Self::Pause, "pause"),
        (Self::Resume, "resume"),
        (Self::Stop, "stop"),
        (Self::Reset, "reset"),
        (Self::Status, "status"),
        (Self::Balloon(None), "balloon"),
    ];

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let name = words.next()?;
        let (request, _) = Self::ALL.into_iter().find(|(_, known)| *known == name)?;
        let request = match (request, words.next()) {
            (Self::Balloon(_), Some(size)) => Self::Balloon(Some(size.parse().ok()?)),
            (request, None) => request,
            _ => return None,
        };
        words.next().is_none().then_some(request)
    }

    /// The line that asks for it.
    fn line(self) -> String {
        match self {
            Self::Balloon(Some(size)) => format!("balloon {}K", size.0 >> 10),
            other => Self::ALL
                .into_iter()
                .find(|(request, _)| *request == other)
                .map_or("", |(_, name)| name)
                .into(),
        }
    }
}

/// Tells a balloon's size, after it has set the one that it should have: in bytes.
pub type Resize = Arc<dyn Fn(Option<u64>) -> anyhow::Result<String> + Send + Sync>;

/// What requests are about.
#[derive(Clone)]
pub struct Subject {
    /// The VM.
    pub vm: Arc<dyn Vm>,
    /// Its balloon, if it has one.
    pub balloon: Option<Resize>,
}

/// The VM that requests are about: another one after each reset.
pub type Target = Arc<Mutex<Option<Subject>>>;

/// A socket that is served; gone with this value.
pub struct Server {
    path: PathBuf,
    /// See [`Target`].
    pub target: Target,
}

impl Server {
    /// Listens at `path`. A socket that nobody serves any more is replaced.
    ///
    /// # Errors
    /// Somebody serves it, or it is a file of another kind, or the kernel refused.
    pub fn start(path: &Path, end: Sender<EndReason>) -> anyhow::Result<Self> {
        let listener = listen(path).with_context(|| format!("--control {}", path.display()))?;
        let target = Target::default();
        let subject = target.clone();
        thread::Builder::new()
            .name("gz-control".into())
            .spawn(move || {
                for client in listener.incoming().flatten() {
                    if let Err(error) = serve(&client, &subject, &end) {
                        tracing::debug!("control: {error}");
                    }
                }
            })
            .context("no thread for --control")?;
        Ok(Self { path: path.into(), target })
    }

    /// The VM that requests are about from now on.
    pub fn set(&self, subject: Option<Subject>) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = subject;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Err(error);
            }
            let kind = std::fs::symlink_metadata(path)?.file_type();
            if !std::os::unix::fs::FileTypeExt::is_socket(&kind) {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn serve(client: &UnixStream, target: &Target, end: &Sender<EndReason>) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(client.take(LINE)).read_line(&mut line)?;
    let subject = target.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let answer = match (Request::parse(&line), subject) {
        (None, _) => Err(anyhow::anyhow!("unknown request {line:?}")),
        (Some(Request::Stop), _) => {
            end.send(EndReason::Stopped).map(|()| "stopping".into()).context("ending")
        }
        (Some(Request::Reset), _) => {
            end.send(EndReason::Reset).map(|()| "resetting".into()).context("ending")
        }
        (Some(_), None) => Err(anyhow::anyhow!("the VM is being made or unmade just now")),
        (Some(Request::Pause), Some(subject)) => subject.vm.pause().map(|status| status.to_string()),
        (Some(Request::Resume), Some(subject)) => subject.vm.resume().map(|status| status.to_string()),
        (Some(Request::Status), Some(subject)) => {
            let measurement = subject.vm.measurement().map_or_else(String::new, |m| format!(", {m}"));
            subject.vm.status().map(|status| format!("{status}{measurement}"))
        }
        (Some(Request::Balloon(size)), Some(subject)) => match subject.balloon {
            Some(resize) => resize(size.map(|size| size.0)),
            None => Err(anyhow::anyhow!("this guest has no balloon (gz run --balloon)")),
        },
    };
    let mut client = client;
    match answer {
        Ok(text) => writeln!(client, "ok {text}"),
        Err(error) => writeln!(client, "error {error:#}"),
    }
}

/// Sends one request to the `gz run` that listens at `path`; what it says.
///
/// # Errors
/// Nobody listens, or the request was refused.
pub fn ask(path: &Path, request: Request) -> anyhow::Result<String> {
    let place = || path.display().to_string();
    let mut stream = UnixStream::connect(path).with_context(place)?;
    stream.set_read_timeout(Some(ANSWER)).with_context(place)?;
    writeln!(stream, "{}", request.line()).with_context(place)?;
    let mut answer = String::new();
    BufReader::new(stream.take(LINE)).read_line(&mut answer).with_context(place)?;
    match answer.trim_end().split_once(' ') {
        Some(("ok", text)) => Ok(text.to_owned()),
        Some(("error", text)) => Err(anyhow::anyhow!("{}: {text}", place())),
        _ => Err(anyhow::anyhow!("{}: no answer", place())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::{Measurement, Power, Status};
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::sync::mpsc;
    use vmm_sys_util::eventfd::EventFd;

    #[derive(Default)]
    struct Fake(AtomicBool);

    impl Vm for Fake {
        fn register_irqfd(&self, _: &EventFd, _: u32) -> anyhow::Result<()> {
            Ok(())
        }
        fn register_ioeventfd(&self, _: &EventFd, _: u64, _: u32) -> anyhow::Result<()> {
            Ok(())
        }
        fn set_fdt(&self, _: u64, _: u64) -> anyhow::Result<()> {
            Ok(())
        }
        fn discard(&self, _: u64, _: u64) -> anyhow::Result<()> {
            Ok(())
        }
        fn can_discard(&self) -> bool {
            false
        }
        fn pause(&self) -> anyhow::Result<Status> {
            self.0.store(true, SeqCst);
            self.status()
        }
        fn resume(&self) -> anyhow::Result<Status> {
            self.0.store(false, SeqCst);
            self.status()
        }
        fn status(&self) -> anyhow::Result<Status> {
            let power = if self.0.load(SeqCst) { Power::Paused } else { Power::Running };
            Ok(Status { power, events: 0 })
        }
        fn measurement(&self) -> Option<Measurement> {
            self.0.load(SeqCst).then_some(Measurement { value: [0xA5; 32], sealed: true })
        }
    }

    fn fake() -> Subject {
        Subject { vm: Arc::new(Fake::default()), balloon: None }
    }

    fn socket(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("gz-control-{}-{name}", std::process::id()))
    }

    #[test]
    fn requests_are_served_in_turn() {
        let path = socket("serve");
        let (end, reasons) = mpsc::channel();
        let server = Server::start(&path, end).unwrap();
        assert!(ask(&path, Request::Pause).is_err());
        server.set(Some(fake()));
        assert_eq!(ask(&path, Request::Status).unwrap(), "running");
        assert_eq!(ask(&path, Request::Pause).unwrap(), "paused");
        // This one has a measurement while it is paused.
        let status = format!("paused, measurement {}, sealed", "a5".repeat(32));
        assert_eq!(ask(&path, Request::Status).unwrap(), status);
        assert_eq!(ask(&path, Request::Resume).unwrap(), "running");
        ask(&path, Request::Reset).unwrap();
        ask(&path, Request::Stop).unwrap();
        assert_eq!((reasons.recv(), reasons.recv()), (Ok(EndReason::Reset), Ok(EndReason::Stopped)));
        // Somebody serves it.
        let (other, _reasons) = mpsc::channel();
        assert!(Server::start(&path, other).is_err());
        drop(server);
        assert!(!path.exists());
    }

    #[test]
    fn lines_are_what_they_say() {
        for (request, _) in Request::ALL {
            assert_eq!(Request::parse(&request.line()), Some(request));
        }
        let sized = Request::Balloon(Some(MemSize(64 << 20)));
        assert_eq!((sized.line().as_str(), Request::parse("balloon 64M\n")), ("balloon 65536K", Some(sized)));
        for wrong in ["", "balloons", "pause 1M", "balloon x", "balloon 1M 2M", "status now"] {
            assert_eq!(Request::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn balloons_are_asked_and_set() {
        let path = socket("balloon");
        let (end, _reasons) = mpsc::channel();
        let server = Server::start(&path, end).unwrap();
        server.set(Some(fake()));
        assert!(ask(&path, Request::Balloon(None)).unwrap_err().to_string().contains("no balloon"));
        let resize: Resize = Arc::new(|bytes| match bytes {
            Some(9216) => anyhow::bail!("not so"),
            other => Ok(format!("{other:?}")),
        });
        server.set(Some(Subject { balloon: Some(resize), ..fake() }));
        assert_eq!(ask(&path, Request::Balloon(None)).unwrap(), "None");
        assert_eq!(ask(&path, Request::Balloon(Some(MemSize(8192)))).unwrap(), "Some(8192)");
        assert!(
            ask(&path, Request::Balloon(Some(MemSize(9216)))).unwrap_err().to_string().ends_with("not so")
        );
    }

    #[test]
    fn rubbish_and_silence_are_survived() {
        let path = socket("rubbish");
        let (end, _reasons) = mpsc::channel();
        let server = Server::start(&path, end).unwrap();
        server.set(Some(fake()));
        for rubbish in [&b"pausee\n"[..], b"\xFF\xFE\n", b"", &[b'x'; 4096]] {
            let mut client = UnixStream::connect(&path).unwrap();
            let _ = client.write_all(rubbish);
            let _ = client.shutdown(std::net::Shutdown::Write);
            let mut answer = String::new();
            let _ = client.read_to_string(&mut answer);
            assert!(answer.is_empty() || answer.starts_with("error "), "{answer}");
        }
        assert_eq!(ask(&path, Request::Status).unwrap(), "running");
    }

    #[test]
    fn only_a_dead_socket_is_replaced() {
        let path = socket("stale");
        drop(UnixListener::bind(&path).unwrap());
        let (end, _reasons) = mpsc::channel();
        drop(Server::start(&path, end.clone()).unwrap());
        std::fs::write(&path, "a file").unwrap();
        assert!(Server::start(&path, end).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file");
        std::fs::remove_file(&path).unwrap();
    }
}
