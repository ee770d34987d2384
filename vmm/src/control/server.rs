// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The VM's side: listens, and has a thread for each client, up to [`CLIENTS`] of them.
//!
//! No client can hold up the VM, or another client: a thread waits for its own client only, with deadlines, and the guest's
//! output goes past those that don't keep up ([`Followers`]). The socket's file is the user's alone.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::line::{self, Lines};
use super::names::Entry;
use super::schema::{
    Answer, Balloon, Facts, Failure, FailureKind, Info, Measurement, Outcome, Question, Reply, Request,
    State, StateName, VERSION, Versioned,
};
use crate::console::{self, Followers};
use crate::exit::EndReason;
use crate::hypervisor::Vm;
use crate::rpc::Offer;
use crate::sandbox::{self, Role};

/// How many clients at a time.
const CLIENTS: usize = 32;
const MAKING: &str = "the VM is being made or unmade just now";
/// How long one may say nothing.
const IDLE: Duration = Duration::from_secs(30);
/// How long it may take for a line, either way.
const PATIENCE: Duration = Duration::from_secs(2);

/// Tells a balloon's size, after it has set the one that it should have: in bytes.
pub type Resize = Arc<dyn Fn(Option<u64>) -> anyhow::Result<Balloon> + Send + Sync>;

/// What requests are about.
#[derive(Clone)]
pub struct Subject {
    /// The VM.
    pub vm: Arc<dyn Vm>,
    /// Its balloon, if it has one.
    pub balloon: Option<Resize>,
    /// What it can be called for.
    pub offer: Offer,
}

/// What all clients see.
struct Shared {
    facts: Facts,
    began: Instant,
    /// The VM that requests are about: another one after each reset. And how many there were.
    subject: Mutex<(Option<Subject>, u64)>,
    console: console::Current,
    followers: Followers,
    end: Sender<EndReason>,
    clients: AtomicUsize,
}

/// A bound socket; gone with this value.
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Lives as long: the socket is the name's.
    entry: Option<Entry>,
}

impl Socket {
    /// Binds the one of a name, or one that is elsewhere, or both as one.
    ///
    /// # Errors
    /// Somebody serves it, or it is a file of another kind, or the kernel refused.
    pub fn bind(entry: Option<Entry>, elsewhere: Option<&Path>) -> anyhow::Result<Option<Self>> {
        let path = match (&entry, elsewhere) {
            (_, Some(path)) => path.to_owned(),
            (Some(entry), None) => entry.socket(),
            (None, None) => return Ok(None),
        };
        let listener = listen(&path).with_context(|| format!("control socket {}", path.display()))?;
        // From here on, the drop of it removes the file.
        let socket = Self { listener, path, entry };
        if let (Some(entry), Some(path)) = (&socket.entry, elsewhere) {
            entry.link_socket(path).context("control socket")?;
        }
        Ok(Some(socket))
    }

    /// The files that go with this value.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> {
        let of_name = self.entry.as_ref().map(Entry::socket);
        of_name.into_iter().chain([self.path.clone()])
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Binds, with the file being the user's alone. A socket that nobody serves any more is replaced.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Err(error);
            }
            if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
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

/// What serves a socket.
pub struct Server {
    shared: Arc<Shared>,
    _socket: Socket,
}

impl Server {
    /// Serves `socket`, about no VM so far.
    ///
    /// # Errors
    /// No thread or file descriptor left.
    pub fn start(
        socket: Socket,
        facts: Facts,
        console: console::Current,
        followers: Followers,
        end: Sender<EndReason>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            facts,
            began: Instant::now(),
            subject: Mutex::default(),
            console,
            followers,
            end,
            clients: AtomicUsize::new(0),
        });
        let (listener, all) = (socket.listener.try_clone()?, shared.clone());
        thread::Builder::new().name("gz-control".into()).spawn(move || {
            sandbox::narrow(Role::Control);
            for client in listener.incoming() {
                match client {
                    Ok(client) => all.clone().admit(client),
                    // No file descriptor left: others' clients will end, too.
                    Err(_) => thread::sleep(Duration::from_millis(100)),
                }
            }
        })?;
        Ok(Self { shared, _socket: socket })
    }

    /// The VM that requests are about from now on.
    pub fn set(&self, subject: Option<Subject>) {
        let mut current = self.shared.subject.lock().unwrap_or_else(PoisonError::into_inner);
        current.1 += u64::from(subject.is_some());
        current.0 = subject;
    }
}

/// A client that is counted.
struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    /// Gives a client a thread, if there is room for one.
    fn admit(self: Arc<Self>, client: UnixStream) {
        let before = self.clients.fetch_add(1, Ordering::SeqCst);
        let place = Place(self);
        if before >= CLIENTS {
            // A few bytes, for which a new socket has room.
            let _ = say(&client, fail(FailureKind::Busy, "too many clients"), None);
            return;
        }
        let spawned = thread::Builder::new().name("gz-client".into()).spawn(move || {
            if let Err(error) = place.0.serve(&client) {
                tracing::debug!("control: {error}");
            }
        });
        if let Err(error) = spawned {
            tracing::debug!("control: {error}");
        }
    }

    fn serve(&self, client: &UnixStream) -> io::Result<()> {
        client.set_write_timeout(Some(PATIENCE))?;
        let mut lines = Lines::default();
        while let Some(line) = lines.next(client, IDLE, PATIENCE)? {
            let file = lines.file();
            let (outcome, channel) = match parse(&line) {
                Ok(Request::Rpc { service, port }) => self.channel(&service, file, port),
                Ok(request) => (self.answer(request), None),
                Err(failure) => (Outcome::Error(failure), None),
            };
            let attaches = outcome == Outcome::Reply(Reply::Console);
            say(client, outcome, channel)?;
            if attaches {
                return self.attach(client, lines.rest());
            }
        }
        Ok(())
    }

    fn answer(&self, request: Request) -> Outcome {
        let (subject, lives) = self.subject.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let done = match (request, subject) {
            (Request::Info, subject) => Ok(Reply::Info(Box::new(self.info(subject.as_ref(), lives)))),
            (Request::Console, _) => Ok(Reply::Console),
            (Request::Stop, _) => self.end(EndReason::Stopped),
            (Request::Reset, _) => self.end(EndReason::Reset),
            (_, None) => return fail(FailureKind::Busy, MAKING),
            (Request::Pause, Some(subject)) => subject.vm.pause().map(|status| Reply::State(status.into())),
            (Request::Resume, Some(subject)) => subject.vm.resume().map(|status| Reply::State(status.into())),
            (Request::Balloon { size }, Some(subject)) => match subject.balloon {
                Some(resize) => resize(size).map(Reply::Balloon),
                None => Err(anyhow::anyhow!("this guest has no balloon (gz run --balloon)")),
            },
            (Request::Rpc { .. }, _) => Err(anyhow::anyhow!("answered elsewhere")),
        };
        match done {
            Ok(reply) => Outcome::Reply(reply),
            Err(error) => fail(FailureKind::Refused, &format!("{error:#}")),
        }
    }

    /// Makes a channel for the host, or for the VM whose file came along.
    fn channel(&self, service: &str, vm: Option<OwnedFd>, port: Option<u32>) -> (Outcome, Option<OwnedFd>) {
        let subject = self.subject.lock().unwrap_or_else(PoisonError::into_inner).0.clone();
        let Some(subject) = subject else { return (fail(FailureKind::Busy, MAKING), None) };
        let peer = match (&vm, port) {
            (Some(vm), Some(port)) => Some((vm.as_fd(), port)),
            (None, None) => None,
            _ => return (fail(FailureKind::Malformed, "a VM's file and its port come together"), None),
        };
        match subject.offer.connect(subject.vm.as_ref(), service, peer) {
            Ok(channel) => (Outcome::Reply(Reply::Channel), Some(channel)),
            Err(error) => (fail(FailureKind::Refused, &format!("{error:#}")), None),
        }
    }

    fn end(&self, reason: EndReason) -> anyhow::Result<Reply> {
        self.end.send(reason).context("it has ended")?;
        Ok(Reply::Accepted)
    }

    fn info(&self, subject: Option<&Subject>, lives: u64) -> Info {
        let state = subject.and_then(|subject| subject.vm.status().ok()).map(State::from);
        Info {
            facts: self.facts.clone(),
            state: state.unwrap_or(State { state: StateName::Starting, exceptions: 0 }),
            uptime: self.began.elapsed().as_secs(),
            lives,
            measurement: subject.and_then(|subject| subject.vm.measurement()).map(Measurement::from),
            balloon: subject
                .and_then(|subject| subject.balloon.as_ref())
                .and_then(|resize| resize(None).ok()),
        }
    }

    /// The guest's console until the client goes: its output in a thread of its own, input here.
    fn attach(&self, client: &UnixStream, typed: Vec<u8>) -> io::Result<()> {
        let (followers, to) = (self.followers.clone(), client.try_clone()?);
        let output = thread::Builder::new().name("gz-client-out".into()).spawn(move || {
            let _ = followers.follow(&to);
            // Whatever ended it ends the input, too.
            let _ = to.shutdown(Shutdown::Both);
        })?;
        client.set_read_timeout(None)?;
        let result = console::from_client(client, typed, &self.console);
        if result.is_err() {
            let _ = client.shutdown(Shutdown::Both);
        }
        // A client that has nothing more to type may still want to read.
        let _ = output.join();
        result
    }
}

fn parse(line: &[u8]) -> Result<Request, Failure> {
    let malformed =
        |error: serde_json::Error| Failure { kind: FailureKind::Malformed, message: error.to_string() };
    let Versioned { version } = serde_json::from_slice(line).map_err(malformed)?;
    if version != VERSION {
        let message = format!("version {version} is not spoken here, but {VERSION}");
        return Err(Failure { kind: FailureKind::Version, message });
    }
    Ok(serde_json::from_slice::<Question>(line).map_err(malformed)?.request)
}

fn fail(kind: FailureKind, message: &str) -> Outcome {
    Outcome::Error(Failure { kind, message: message.to_owned() })
}

fn say(client: &UnixStream, outcome: Outcome, file: Option<OwnedFd>) -> io::Result<()> {
    let mut line = serde_json::to_vec(&Answer { version: VERSION, outcome })?;
    line.push(b'\n');
    line::send(client, &line, file.as_ref().map(AsFd::as_fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::run::RpcOptions;
    use crate::control::client::Client;
    use crate::devices::serial::Terminal;
    use crate::hypervisor::{self, Kind, Notification, Power, Status};
    use crate::rpc::options::{Plan, With};
    use std::io::{Read, Write};
    use std::os::fd::BorrowedFd;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::sync::mpsc::{self, Receiver};
    use vmm_sys_util::eventfd::EventFd;

    const SOON: Duration = Duration::from_secs(10);

    #[derive(Default)]
    struct Fake(AtomicBool, Mutex<Vec<(u32, Option<u32>)>>);

    impl Vm for Fake {
        fn register_irqfd(&self, _: &EventFd, _: u32) -> anyhow::Result<()> {
            Ok(())
        }
        fn register_ioeventfd(&self, _: &EventFd, _: Notification) -> anyhow::Result<()> {
            Ok(())
        }
        fn unregister_ioeventfd(&self, _: &EventFd, _: Notification) -> anyhow::Result<()> {
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
        /// A port has one channel.
        fn connect(
            &self,
            port: u32,
            other: Option<(BorrowedFd<'_>, u32)>,
        ) -> anyhow::Result<Option<OwnedFd>> {
            let mut made = self.1.lock().unwrap();
            if made.iter().any(|(its, _)| *its == port) {
                return Ok(None);
            }
            made.push((port, other.map(|(_, port)| port)));
            Ok(Some(match other {
                // The file that was sent: what is written there is read by the test.
                Some((file, _)) => file.try_clone_to_owned()?,
                None => UnixStream::pair()?.0.into(),
            }))
        }
        fn measurement(&self) -> Option<hypervisor::Measurement> {
            self.0.load(SeqCst).then_some(hypervisor::Measurement { value: [0xA5; 32], sealed: true })
        }
    }

    /// A UART whose guest reads all.
    struct Typed(Mutex<Vec<u8>>, EventFd);

    impl Terminal for Typed {
        fn receive(&self, input: &[u8]) -> usize {
            self.0.lock().unwrap().extend_from_slice(input);
            input.len()
        }
        fn drained(&self) -> &EventFd {
            &self.1
        }
    }

    struct Served {
        path: String,
        server: Server,
        reasons: Receiver<EndReason>,
        console: console::Current,
        followers: Followers,
    }

    impl Served {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("gz-control-{}-{name}", std::process::id()));
            let (end, reasons) = mpsc::channel();
            let socket = Socket::bind(None, Some(&path)).unwrap().unwrap();
            let (console, followers) = (console::Current::default(), Followers::default());
            let facts = Facts {
                name: name.into(),
                pid: std::process::id(),
                gz: "0".into(),
                hypervisor: Kind::Gzvm,
                protected: false,
                vcpus: 1,
                memory: 1 << 20,
                image: "Image".into(),
                sandbox: sandbox::Confinement::None,
                services: Vec::new(),
            };
            let server = Server::start(socket, facts, console.clone(), followers.clone(), end).unwrap();
            Self { path: path.to_str().unwrap().into(), server, reasons, console, followers }
        }

        fn ask(&self, request: Request) -> anyhow::Result<Reply> {
            Client::connect(&self.path)?.ask(request, SOON)
        }

        fn state(&self, request: Request) -> StateName {
            match self.ask(request).unwrap() {
                Reply::State(state) => state.state,
                Reply::Info(info) => info.state.state,
                other => panic!("{other:?}"),
            }
        }
    }

    fn subject() -> Option<Subject> {
        Some(Subject { vm: Arc::new(Fake::default()), balloon: None, offer: Offer::default() })
    }

    #[test]
    fn channels_are_made_for_those_who_ask() {
        let served = Served::new("rpc");
        let open = |service: &str, peer: Option<(BorrowedFd<'_>, u32)>| {
            Client::at("vm", Path::new(&served.path)).unwrap().open(service, peer)
        };
        let refused = |service: &str, peer: Option<(BorrowedFd<'_>, u32)>| {
            open(service, peer).unwrap_err().root_cause().to_string()
        };
        assert!(open("keys", None).unwrap().is_none(), "there is no VM yet");
        served.server.set(subject());
        assert!(refused("keys", None).contains("no service (gz run --rpc)"));
        let vm = Arc::new(Fake::default());
        let offer = |with| {
            let services = vec!["keys,clients=2,port=5".parse().unwrap()];
            Offer(Plan::of(&RpcOptions { services, peers: Vec::new(), with: vec![with] }).unwrap())
        };
        let set = |with| {
            let subject = Subject { vm: vm.clone(), balloon: None, offer: offer(with) };
            served.server.set(Some(subject));
        };
        set(With::Protected);
        assert!(refused("keys", None).contains("policy is against channels with the host"));
        set(With::Host);
        assert!(refused("log", None).contains("no service log"));
        let (file, mut end) = UnixStream::pair().unwrap();
        drop(open("keys", None).unwrap().unwrap());
        let channel = open("keys", Some((file.as_fd(), 9))).unwrap().unwrap();
        drop(file);
        UnixStream::from(channel).write_all(b"x").unwrap();
        end.read_exact(&mut [0]).unwrap();
        assert_eq!(end.read(&mut [0]).unwrap(), 0, "nobody else has kept the file");
        assert!(refused("keys", None).contains("its 2 places are taken"));
        assert_eq!(*vm.1.lock().unwrap(), [(5, None), (6, Some(9))]);
        let half = Request::Rpc { service: "keys".into(), port: Some(1) };
        assert!(served.ask(half).unwrap_err().root_cause().to_string().contains("come together"));
    }

    #[test]
    fn requests_are_served() {
        let served = Served::new("serve");
        assert_eq!(served.state(Request::Info), StateName::Starting);
        assert!(served.ask(Request::Pause).unwrap_err().root_cause().to_string().contains("just now"));
        served.server.set(subject());
        assert_eq!(served.state(Request::Info), StateName::Running);
        assert_eq!(served.state(Request::Pause), StateName::Paused);
        assert_eq!(served.state(Request::Info), StateName::Paused);
        // This one has a measurement while it is paused.
        let Reply::Info(info) = served.ask(Request::Info).unwrap() else { panic!() };
        assert_eq!(info.measurement, Some(Measurement { value: "a5".repeat(32), sealed: true }));
        assert_eq!(served.state(Request::Resume), StateName::Running);
        assert_eq!(served.ask(Request::Reset).unwrap(), Reply::Accepted);
        assert_eq!(served.ask(Request::Stop).unwrap(), Reply::Accepted);
        assert_eq!(
            (served.reasons.recv(), served.reasons.recv()),
            (Ok(EndReason::Reset), Ok(EndReason::Stopped))
        );
        // Several on one connection; another life.
        served.server.set(subject());
        let mut client = Client::connect(&served.path).unwrap();
        for _ in 0..3 {
            let Reply::Info(info) = client.ask(Request::Info, SOON).unwrap() else { panic!() };
            assert_eq!((info.lives, info.facts.name.as_str(), info.balloon), (2, "serve", None));
            assert_eq!(info.measurement, None);
        }
        assert_eq!(client.process().unwrap().pid, std::process::id());
        // Somebody serves it.
        assert!(Socket::bind(None, Some(Path::new(&served.path))).is_err());
        let path = served.path.clone();
        drop(served);
        assert!(!Path::new(&path).exists());
    }

    #[test]
    fn balloons_are_asked_and_set() {
        let served = Served::new("balloon");
        served.server.set(subject());
        let error = served.ask(Request::Balloon { size: None }).unwrap_err();
        assert!(format!("{error:#}").contains("no balloon"), "{error:#}");
        let resize: Resize = Arc::new(|bytes| match bytes {
            Some(9216) => anyhow::bail!("not so"),
            other => Ok(Balloon { target: other.unwrap_or(1), actual: 0 }),
        });
        served.server.set(Some(Subject {
            balloon: Some(resize),
            vm: Arc::new(Fake::default()),
            offer: Offer::default(),
        }));
        let ask = |size| served.ask(Request::Balloon { size });
        assert_eq!(ask(None).unwrap(), Reply::Balloon(Balloon { target: 1, actual: 0 }));
        assert_eq!(ask(Some(8192)).unwrap(), Reply::Balloon(Balloon { target: 8192, actual: 0 }));
        assert!(format!("{:#}", ask(Some(9216)).unwrap_err()).ends_with("not so"));
    }

    #[test]
    fn rubbish_is_answered_and_other_versions_are_told() {
        let served = Served::new("rubbish");
        let say = |text: &[u8]| {
            let mut client = UnixStream::connect(&served.path).unwrap();
            let _ = client.write_all(text);
            let _ = client.shutdown(Shutdown::Write);
            let mut answer = String::new();
            let _ = client.read_to_string(&mut answer);
            answer
        };
        for rubbish in [&b"pause\n"[..], b"\xFF\xFE\n", b"{}\n", b"{\"version\":1}\n", b"[[[[[[\n"] {
            assert!(say(rubbish).contains(r#"{"version":1,"error":{"kind":"malformed""#), "{rubbish:?}");
        }
        for cut in [&b""[..], b"{\"version\":1", &[b'x'; 100_000]] {
            assert_eq!(say(cut), "");
        }
        let newer = say(b"{\"version\":2,\"request\":{\"fly\":[]}}\n");
        assert!(newer.contains(r#""kind":"version""#), "{newer}");
        assert_eq!(served.state(Request::Info), StateName::Starting);
    }

    #[test]
    fn clients_that_hang_hold_up_nobody_for_long() {
        let served = Served::new("hang");
        served.server.set(subject());
        let begin = Instant::now();
        // Silent ones, and one that reads none of its answers.
        let mut silent: Vec<_> = (8..CLIENTS).map(|_| UnixStream::connect(&served.path).unwrap()).collect();
        let mut deaf = UnixStream::connect(&served.path).unwrap();
        deaf.set_nonblocking(true).unwrap();
        while deaf.write_all(b"{\"version\":1,\"request\":\"info\"}\n").is_ok() {}
        for _ in 0..100 {
            assert_eq!(served.state(Request::Info), StateName::Running);
        }
        assert!(begin.elapsed() < IDLE / 2);
        // One too many is told so, and there is room again once others have gone.
        silent.extend((0..8).map(|_| UnixStream::connect(&served.path).unwrap()));
        let refused = (0..100).find_map(|_| served.ask(Request::Info).err());
        assert!(refused.is_some_and(|error| format!("{error:#}").contains("too many")));
        drop(silent);
        while served.ask(Request::Info).is_err() {
            assert!(begin.elapsed() < IDLE / 2);
        }
    }

    #[test]
    fn the_console_is_shared() {
        let served = Served::new("console");
        let uart = Arc::new(Typed(Mutex::default(), EventFd::new(libc::EFD_NONBLOCK).unwrap()));
        served.console.set(Some(uart.clone()));
        served.followers.push(b"boot\n");
        let attach = || {
            let mut client = Client::connect(&served.path).unwrap();
            assert_eq!(client.ask(Request::Console, SOON).unwrap(), Reply::Console);
            client.into_stream()
        };
        let see = |(stream, first): &mut (UnixStream, Vec<u8>), text: &[u8]| {
            while !first.ends_with(text) {
                let mut chunk = [0; 64];
                let count = stream.read(&mut chunk).unwrap();
                assert!(count > 0);
                first.extend_from_slice(&chunk[..count]);
            }
        };
        let (mut one, mut two) = (attach(), attach());
        see(&mut one, b"boot\n");
        see(&mut two, b"boot\n");
        served.followers.push(b"login: ");
        see(&mut one, b"login: ");
        see(&mut two, b"login: ");
        one.0.write_all(b"root\r").unwrap();
        let begin = Instant::now();
        while *uart.0.lock().unwrap() != b"root\r" {
            assert!(begin.elapsed() < SOON);
        }
        // One that says no more still reads; one whose guest does not listen can go.
        one.0.shutdown(Shutdown::Write).unwrap();
        served.followers.push(b"# ");
        see(&mut one, b"# ");
        served.console.set(None);
        two.0.write_all(b"x").unwrap();
        drop((one, two));
        while served.server.shared.clients.load(SeqCst) != 0 {
            assert!(begin.elapsed() < SOON);
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn only_a_dead_socket_is_replaced() {
        let path = std::env::temp_dir().join(format!("gz-control-{}-stale", std::process::id()));
        drop(UnixListener::bind(&path).unwrap());
        drop(Socket::bind(None, Some(&path)).unwrap());
        std::fs::write(&path, "a file").unwrap();
        assert!(Socket::bind(None, Some(&path)).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file");
        std::fs::remove_file(&path).unwrap();
    }
}
