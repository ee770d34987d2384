// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The connection to a program that is a device. It stays through the guest's lives: virtiofsd ends with its first. A next life
//! brings its own memory; the program keeps that of the life before until the new driver starts.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use rustix::net::{Shutdown, shutdown};
use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};

use super::Setup;
use crate::broken::{Mistake, broken};

/// How long a conversation with the program may take.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(5) };

/// Talks with the program at the other end of `connection`. One that does not listen or answer in time is cut off, which ends the
/// conversation with an error; by itself crate vhost would wait for ever. Fuzzing has a program that says nothing late, and saves
/// the thread.
pub fn patiently<T>(connection: &Frontend, talk: impl FnOnce() -> T) -> T {
    if cfg!(feature = "inline-workers") {
        return talk();
    }
    // SAFETY: the descriptor belongs to `connection`, which outlives this borrow.
    let socket = unsafe { BorrowedFd::borrow_raw(connection.as_raw_fd()) };
    let (done, end) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let watch = move || {
            if end.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                let _ = shutdown(socket, Shutdown::Both);
            }
        };
        if let Err(error) = thread::Builder::new().name("gz-patience".into()).spawn_scoped(scope, watch) {
            tracing::warn!("vhost-user: {error}");
        }
        let result = talk();
        drop(done);
        result
    })
}

/// The connection, or where it can be had.
pub struct Link {
    name: String,
    socket: PathBuf,
    queues: u64,
    wanted: u64,
    config_size: u32,
    connection: Option<Frontend>,
    /// Of the first program that was there; a guest knows them.
    known: Option<Known>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Known {
    features: u64,
    config: Vec<u8>,
}

impl Link {
    /// Connects to the program that listens at `socket`, whose configuration has so many bytes.
    ///
    /// # Errors
    /// Nobody listens there, or it does not speak vhost-user.
    pub fn open(setup: &Setup, socket: PathBuf, config_size: u32) -> anyhow::Result<Self> {
        let mut link = Self {
            name: setup.name.clone(),
            socket,
            queues: setup.queues.len() as u64,
            wanted: setup.features,
            config_size,
            connection: None,
            known: None,
        };
        link.connect()?;
        Ok(link)
    }

    /// The same with who is at the other end of `stream`; there won't be another.
    ///
    /// # Errors
    /// It does not speak vhost-user.
    pub fn with(setup: &Setup, stream: UnixStream, config_size: u32) -> anyhow::Result<Self> {
        let mut link = Self {
            name: setup.name.clone(),
            socket: PathBuf::new(),
            queues: setup.queues.len() as u64,
            wanted: setup.features,
            config_size,
            connection: None,
            known: None,
        };
        link.speak(stream)?;
        Ok(link)
    }

    /// The program, if it is there.
    pub fn connection(&self) -> Option<Frontend> {
        self.connection.clone()
    }

    /// It has gone.
    pub fn forget(&mut self) {
        self.connection = None;
    }

    /// What it offers, of what is wanted.
    pub fn features(&self) -> u64 {
        self.known.as_ref().map_or(0, |known| known.features)
    }

    /// Its configuration.
    pub fn config(&self) -> &[u8] {
        self.known.as_ref().map_or(&[], |known| &known.config)
    }

    /// Connects to whoever is there now.
    ///
    /// # Errors
    /// As [`open`](Self::open); or it is another device than the one before.
    pub fn connect(&mut self) -> anyhow::Result<()> {
        let stream = UnixStream::connect(&self.socket)
            .with_context(|| format!("{} (is the program running?)", self.name))?;
        self.speak(stream)
    }

    fn speak(&mut self, stream: UnixStream) -> anyhow::Result<()> {
        let name = || self.name.clone();
        let mut connection = Frontend::from_stream(stream, self.queues);
        let found = patiently(&connection.clone(), || self.negotiate(&mut connection)).with_context(name)?;
        if let Some(known) = &self.known
            && (known.features & !found.features != 0 || known.config != found.config)
            && !broken(Mistake::AnyDevice)
        {
            anyhow::bail!("{}: another device than before", self.name);
        }
        self.known.get_or_insert(found);
        self.connection = Some(connection);
        Ok(())
    }

    fn negotiate(&self, program: &mut Frontend) -> anyhow::Result<Known> {
        program.set_owner()?;
        let features = program.get_features()?;
        let has = program.get_protocol_features()?;
        let wanted = VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::CONFIG;
        program.set_protocol_features(has & wanted)?;
        if has.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            program.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let mut config = Vec::new();
        if self.config_size != 0 {
            let empty = vec![0; self.config_size as usize];
            let (_, bytes) =
                program.get_config(0, self.config_size, VhostUserConfigFlags::empty(), &empty)?;
            config = bytes;
        }
        Ok(Known { features: features & self.wanted, config })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::devices::virtio::RING_FEATURES;
    use crate::devices::virtio::vhost_user::options::Kind;
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    const SIZE: u32 = 60;

    /// What a program answers: features, protocol features, and a disk of so many sectors its configuration.
    pub(crate) fn answers(features: u64, capacity: impl Into<Option<u8>>) -> Vec<u8> {
        let answer = |request: u32, body: &[u8]| {
            let header = [request, 5, body.len() as u32].map(u32::to_le_bytes).concat();
            [&header[..], body].concat()
        };
        let mut config = [0, SIZE, 0].map(u32::to_le_bytes).concat();
        config.resize(12 + SIZE as usize, 0);
        let protocol = VhostUserProtocolFeatures::CONFIG.bits();
        let mut all = answer(1, &(features | 1 << 30).to_le_bytes());
        all.extend(answer(15, &protocol.to_le_bytes()));
        if let Some(capacity) = capacity.into() {
            config[12] = capacity;
            all.extend(answer(24, &config));
        }
        all
    }

    fn setup() -> Setup {
        let socket = std::env::temp_dir().join(format!(
            "gz-link-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let _ = std::fs::remove_file(&socket);
        Setup::of(&super::super::options::VhostUserOption { kind: Kind::Block, socket })
    }

    #[test]
    pub(crate) fn a_successor_is_the_same_device() {
        let setup = setup();
        let path = std::path::PathBuf::from(setup.name.rsplit_once(' ').unwrap().1);
        let listener = UnixListener::bind(&path).unwrap();
        let program = |features, capacity| {
            // The answers may come before the questions: they fit the socket.
            let listener = listener.try_clone().unwrap();
            let thread = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(&answers(features, capacity)).unwrap();
                stream
            });
            move || thread.join().unwrap()
        };
        let first = program(RING_FEATURES | 1 << 9 | 1 << 60, 8);
        let mut link = Link::open(&setup, path.clone(), SIZE).unwrap();
        drop(first());
        assert_eq!((link.features(), link.config()[0]), (RING_FEATURES | 1 << 9, 8));
        for (features, capacity, good) in
            [(RING_FEATURES, 8, false), (RING_FEATURES | 1 << 9, 9, false), (RING_FEATURES | 3 << 9, 8, true)]
        {
            link.forget();
            let next = program(features, capacity);
            assert_eq!(link.connect().is_ok(), good, "{features:#x} {capacity}");
            drop(next());
            assert_eq!((link.connection().is_some(), link.features()), (good, RING_FEATURES | 1 << 9));
        }
        let _ = std::fs::remove_file(&path);
    }

    #[test]
    fn who_does_not_answer_is_cut_off() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(Link::with(&setup(), ours, SIZE).is_err());
        drop(theirs);
        // Nor who does not listen.
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&answers(RING_FEATURES, 8)).unwrap();
        let program = Link::with(&setup(), ours, SIZE).unwrap().connection().unwrap();
        let talk = || (0..100_000).find_map(|_| program.set_vring_num(0, 16).err());
        assert!(patiently(&program, talk).is_some());
    }

    #[test]
    fn nonsense_is_no_device() {
        let good = answers(RING_FEATURES, 8);
        for len in 0..good.len() {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(&good[..len]).unwrap();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(Link::with(&setup(), ours, SIZE).is_err(), "{len}");
        }
        for (at, byte) in [(0, 2), (4, 1), (20, 0), (48, 61), (52, 1), (56, 61)] {
            let mut wrong = good.clone();
            wrong[at] = byte;
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(&wrong).unwrap();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(Link::with(&setup(), ours, SIZE).is_err(), "{at} {byte}");
        }
    }
}
