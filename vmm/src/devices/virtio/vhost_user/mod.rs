// SPDX-License-Identifier: Apache-2.0 OR MIT
//! vhost-user: devices in programs of the host. A program serves the queues in guest memory, which is a file that it maps; we set
//! up and tear down, and pass its interrupts on.
//!
//! - [`options`]: what the command line says of it; folders have an option of their own ([`fs`](super::fs)).
//! - [`link`]: the connection, which serves all lives of the guest.
//! - [`unfinished`]: what the program has not done yet, read from the rings.
//! - [`keeper`]: the thread that passes interrupts on, and sees the program end.
//! - here: the device.
//!
//! ```text
//!  served ─► the program ends ─┬─ WhenGone::Wait ─► another one listens at the socket ─► served: what was unfinished is done again
//!    ▲                         └─ WhenGone::Fail ─► errors for what is unfinished and all that comes ─┐
//!    └──────────────────────── reset of the guest, another program at the socket ─────────────────────┘
//! ```
//! Where it is not known what is unfinished, the driver is told that the device needs a reset.

mod keeper;
pub mod link;
pub mod options;
pub mod unfinished;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use vhost::{VhostBackend, vhost_user::Frontend};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_queue::{DescriptorChain, Error};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::{Activation, Interrupt, RING_FEATURES, ReadyQueue, VirtioDevice, handover, read_bytes, worker};
use keeper::Keeper;
use link::Link;
use options::{Kind, VhostUserOption};
use unfinished::Unfinished;

const QUEUE_SIZE: u16 = 256;

/// What is fixed of a device.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What it is called in messages.
    pub name: String,
    /// Device ID.
    pub id: u32,
    /// Largest sizes of its queues.
    pub queues: Vec<u16>,
    /// Features that are passed on, if the program has them.
    pub features: u64,
    /// Its configuration, where that is ours.
    pub config: Vec<u8>,
    /// What to do when the program has gone.
    pub when_gone: WhenGone,
}

/// What to do when the program has gone.
#[derive(Clone, Copy, Debug)]
pub enum WhenGone {
    /// Another one does what it has not done.
    Wait,
    /// It had a state that no other has, or none that is like it can go on: all requests fail. Answers one, and returns how many bytes it wrote.
    Fail(Refusal),
}

/// Answers a request, and returns how many bytes it wrote.
pub type Refusal = fn(&GuestMemoryMmap, DescriptorChain<&GuestMemoryMmap>) -> u32;

impl Setup {
    /// Of a device that `--vhost-user` names.
    pub fn of(option: &VhostUserOption) -> Self {
        let features = match option.kind {
            Kind::Block => [
                VIRTIO_BLK_F_SIZE_MAX,
                VIRTIO_BLK_F_SEG_MAX,
                VIRTIO_BLK_F_RO,
                VIRTIO_BLK_F_BLK_SIZE,
                VIRTIO_BLK_F_FLUSH,
                VIRTIO_BLK_F_TOPOLOGY,
                VIRTIO_BLK_F_DISCARD,
                VIRTIO_BLK_F_WRITE_ZEROES,
            ]
            .iter()
            .fold(RING_FEATURES, |all, feature| all | 1 << feature),
            Kind::Rng => RING_FEATURES,
        };
        Self {
            name: format!("--vhost-user {}: {}", option.kind.name(), option.socket.display()),
            id: option.kind.id(),
            queues: vec![QUEUE_SIZE],
            features,
            config: Vec::new(),
            when_gone: match option.kind {
                Kind::Block => WhenGone::Wait,
                // Programs of crate vhost-user-backend 0.10, as vhost-device-rng is, begin with the used ring's first element, wherever
                // the ring was: a driver in the middle of its ring can't go on with another one.
                Kind::Rng => WhenGone::Fail(no_answer),
            },
        }
    }
}

/// There are no random numbers. Linux waits for others, and can be interrupted.
fn no_answer(_memory: &GuestMemoryMmap, _chain: DescriptorChain<&GuestMemoryMmap>) -> u32 {
    0
}

/// A device in another program.
pub struct VhostUser {
    setup: Setup,
    life: Arc<Mutex<Life>>,
    /// Signalled by the program, and whenever the keeper is to look.
    call: Arc<EventFd>,
    _keeper: Keeper,
}

impl VhostUser {
    /// A device without a driver, by the program at the other end of `link`.
    ///
    /// # Errors
    /// No thread or file descriptor left.
    pub fn new(setup: Setup, link: Arc<Mutex<Link>>) -> io::Result<Self> {
        {
            let mut link = lock(&link);
            if link.connection().is_none()
                && let Err(error) = link.connect()
            {
                tracing::warn!("{error:#}");
            }
        }
        let call = Arc::new(EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?);
        let life = Life { setup: setup.clone(), link, call: call.clone(), running: None, said: None };
        let life = Arc::new(Mutex::new(life));
        let keeper = Keeper::start(life.clone(), call.clone())?;
        Ok(Self { setup, life, call, _keeper: keeper })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VirtioDevice for VhostUser {
    fn device_id(&self) -> u32 {
        self.setup.id
    }

    fn features(&self) -> u64 {
        lock(&lock(&self.life).link).features()
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.setup.queues
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        if self.setup.config.is_empty() {
            read_bytes(lock(&lock(&self.life).link).config(), offset, data);
        } else {
            read_bytes(&self.setup.config, offset, data);
        }
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let mut life = lock(&self.life);
        life.stop();
        let Activation { memory, features, interrupt, queues } = activation;
        let queues =
            queues.into_iter().map(|ready| (Unfinished::new(&ready.queue), ready)).collect::<Vec<_>>();
        life.running = Some(Running { memory, features, interrupt, queues });
        if lock(&life.link).connection().is_some() {
            life.start().map_err(io::Error::other)?;
        }
        // It waits for other files now.
        self.call.write(1)
    }

    fn reset(&mut self) {
        lock(&self.life).stop();
    }
}

/// One life of the guest with the device.
struct Life {
    setup: Setup,
    link: Arc<Mutex<Link>>,
    call: Arc<EventFd>,
    running: Option<Running>,
    /// Why the last one that listened there could not be taken.
    said: Option<String>,
}

/// A driver's queues.
struct Running {
    memory: GuestMemoryMmap,
    features: u64,
    interrupt: Arc<Interrupt>,
    queues: Vec<(Unfinished, ReadyQueue)>,
}

impl Life {
    /// Hands the queues to the program.
    fn start(&mut self) -> vhost::Result<()> {
        let (Some(running), Some(mut program)) = (&self.running, lock(&self.link).connection()) else {
            return Ok(());
        };
        link::patiently(&program.clone(), || {
            let features = handover::features(running.features);
            program.set_features(features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())?;
            program.set_mem_table(&handover::regions(&running.memory))?;
            for (_, ready) in &running.queues {
                handover::hand_over_to(&program, Some(&running.memory), &self.call, ready)?;
                program.set_vring_enable(ready.index.into(), true)?;
            }
            Ok(())
        })
    }

    /// Takes them back.
    fn stop(&mut self) {
        let (Some(running), Some(program)) = (self.running.take(), lock(&self.link).connection()) else {
            return;
        };
        // The answers come when no request is in flight.
        let mut queues = running.queues.iter();
        let stopped = link::patiently(&program, || {
            queues.try_for_each(|(_, ready)| program.get_vring_base(ready.index.into()).map(drop))
        });
        if let Err(error) = stopped {
            tracing::warn!("{}: {error}", self.setup.name);
        }
    }

    /// The program has used buffers.
    fn pass_on(&mut self) {
        let Some(running) = &mut self.running else { return };
        let mut used = false;
        for (unfinished, ready) in &mut running.queues {
            // A ring that is no memory has no news.
            used |= unfinished.look(&running.memory, &ready.queue).unwrap_or(false);
        }
        if used {
            running.interrupt.used_buffer();
        }
    }

    /// The program has ended.
    fn lose(&mut self) {
        lock(&self.link).forget();
        let name = &self.setup.name;
        match self.setup.when_gone {
            WhenGone::Wait => tracing::warn!("{name}: has gone; the guest waits for another one there"),
            WhenGone::Fail(_) => {
                tracing::warn!(
                    "{name}: has gone; no other one can go on where it was, so all that the guest asks of it fails until its reset"
                );
                self.collect();
                self.refuse();
            }
        }
    }

    /// Another program, if there is one.
    fn find(&mut self) {
        if let Err(error) = lock(&self.link).connect() {
            // That nobody is there is known. Another device, or who speaks something else, is worth a word.
            let nobody = error.downcast_ref::<io::Error>().is_some();
            let word = Some(format!("{error:#}"));
            if !nobody && word != self.said {
                tracing::warn!("{error:#}");
                self.said = word;
            }
            return;
        }
        let unfinished = self.collect();
        tracing::warn!(
            "{}: is there again; {} requests are done again",
            self.setup.name,
            unfinished.unwrap_or(0)
        );
        if unfinished.is_some() {
            if let Err(error) = self.start() {
                tracing::warn!("{}: {error}", self.setup.name);
                lock(&self.link).forget();
                return;
            }
            // What was offered meanwhile was told to nobody, or to the one before; and so with what it used.
            if let Some(running) = &self.running {
                running.queues.iter().for_each(|(_, ready)| drop(ready.notify.write(1)));
                running.interrupt.used_buffer();
            }
        }
    }

    /// Makes the queues begin with what is unfinished; so many requests. None: there is nothing to go on with.
    fn collect(&mut self) -> Option<usize> {
        let running = self.running.as_mut()?;
        let counts: Option<Vec<usize>> = running
            .queues
            .iter_mut()
            .map(|(unfinished, ready)| {
                unfinished.put_in_a_row(&running.memory, &mut ready.queue).ok().flatten()
            })
            .collect();
        if counts.is_none() {
            tracing::warn!(
                "{}: what is unfinished is not known; the device needs a reset by its driver",
                self.setup.name
            );
            running.interrupt.needs_reset();
            self.running = None;
        }
        Some(counts?.iter().sum())
    }

    /// Answers all that there is, where there is no program.
    fn refuse(&mut self) {
        let (Some(running), WhenGone::Fail(refusal)) = (&mut self.running, self.setup.when_gone) else {
            return;
        };
        let Running { memory, interrupt, queues, .. } = running;
        let result: Result<(), Error> = queues.iter_mut().try_for_each(|(_, ready)| {
            worker::serve(&mut ready.queue, memory, interrupt, |chain| refusal(memory, chain))
        });
        if let Err(error) = result {
            tracing::warn!("{}: the guest broke its queue: {error}", self.setup.name);
            interrupt.needs_reset();
            self.running = None;
        }
    }

    /// Files to wait for beside the program's: notifications, where there is no program to take them.
    fn notifications(&self) -> Vec<Arc<EventFd>> {
        match self.setup.when_gone {
            WhenGone::Fail(_) if lock(&self.link).connection().is_none() => {
                let queues = self.running.iter().flat_map(|running| &running.queues);
                queues.map(|(_, ready)| ready.notify.clone()).collect()
            }
            _ => Vec::new(),
        }
    }

    fn connection(&self) -> Option<Frontend> {
        lock(&self.link).connection()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::fs;
    use crate::devices::virtio::fs::options::FsOption;
    use crate::devices::virtio::tests::{WRITE, descriptors};
    use crate::memory::GuestRam;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};
    use virtio_queue::Queue;
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::{Bytes, GuestAddress};

    const BASE: u64 = 0x8000_0000;

    fn until(what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < deadline, "no {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_folder_without_its_program_answers_that_it_is_gone() {
        let option = FsOption { tag: "tag".into(), socket: "/none".into() };
        let setup = fs::setup(&option);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&link::tests::answers(RING_FEATURES, None)).unwrap();
        let link = Link::with(&setup, ours, 0).unwrap();
        let mut device = VhostUser::new(setup, Arc::new(Mutex::new(link))).unwrap();
        let ram = GuestRam::shareable(BASE, 64 << 20).unwrap();
        let memory = ram.memory();
        let ring = MockSplitQueue::create(memory, GuestAddress(BASE), 16);
        let request = |first: u16| {
            let parts = [(BASE + 0x8000, 40, 0), (BASE + 0x9000, 80, WRITE)];
            ring.add_desc_chains(&descriptors(first, &parts), 0).unwrap();
        };
        request(0);
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let interrupt = Arc::new(Interrupt::new(line.try_clone().unwrap()));
        let notify = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let queue: Queue = ring.create_queue().unwrap();
        let queues = vec![ReadyQueue { index: 1, queue, notify: notify.clone() }];
        let features = device.features();
        assert_eq!(features, RING_FEATURES);
        device.activate(Activation { memory: memory.clone(), features, interrupt, queues }).unwrap();
        assert_ne!(theirs.read(&mut [0; 4096]).unwrap(), 0);
        assert_eq!(ring.used().idx().load(), 0, "it is the program's");
        drop(theirs);
        until("answer", || ring.used().idx().load() == 1);
        assert_eq!(memory.read_obj::<i32>(GuestAddress(BASE + 0x9004)).unwrap(), -libc::ENOTCONN);
        until("interrupt", || line.read().is_ok());
        request(2);
        notify.write(1).unwrap();
        until("second answer", || ring.used().idx().load() == 2);
        device.reset();
    }
}
