// SPDX-License-Identifier: Apache-2.0 OR MIT
//! virtio-fs (virtio 1.2, section 5.11): a folder of the host by virtiofsd, or another program that speaks vhost-user. It serves
//! the queues in guest memory, which is a file that it maps; we set up and tear down.
//!
//! - [`options`]: what the command line says of it.
//!
//! One connection serves all lives of the guest: virtiofsd ends with its first. A next life brings its own memory; the program keeps
//! that of the life before until the new driver starts.
//!
//! The program can't be started again under a running guest: open files and what the guest has looked up are its own state. Where
//! it ends, the guest's accesses wait for ever, and the next life's driver finds a device that fails.

pub mod options;

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Context;
use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;

use super::{Activation, RING_FEATURES, VirtioDevice, handover, read_bytes};
use options::FsOption;

const QUEUE_SIZE: u16 = 256;
/// Queues: one for what must not wait (FORGET), and one of requests.
const QUEUES: [u16; 2] = [QUEUE_SIZE; 2];
/// Bytes of a tag in the configuration.
const TAG_SIZE: usize = 36;
/// How long an answer of the program's may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The program that serves a folder.
#[derive(Clone)]
pub struct Program {
    connection: Frontend,
    tag: String,
    features: u64,
}

impl Program {
    /// Connects to the program at its socket.
    ///
    /// # Errors
    /// Nobody listens there, or it does not speak vhost-user.
    pub fn connect(option: &FsOption) -> anyhow::Result<Self> {
        let place = || format!("--fs {}: {}", option.tag, option.socket.display());
        let socket = UnixStream::connect(&option.socket)
            .with_context(|| format!("{} (is virtiofsd running?)", place()))?;
        socket.set_read_timeout(Some(PATIENCE)).with_context(place)?;
        socket.set_write_timeout(Some(PATIENCE)).with_context(place)?;
        let mut connection = Frontend::from_stream(socket, QUEUES.len() as u64);
        let features = negotiate(&mut connection).with_context(place)?;
        Ok(Self { connection, tag: option.tag.clone(), features })
    }
}

/// A shared folder as a virtio device.
pub struct Fs {
    program: Program,
    /// How many queues the program serves now.
    serves: usize,
}

impl Fs {
    /// A device without a driver.
    pub fn new(program: Program) -> Self {
        Self { program, serves: 0 }
    }

    fn start(&mut self, activation: Activation) -> vhost::Result<()> {
        let Activation { memory, features, interrupt, queues } = activation;
        let program = &mut self.program.connection;
        program.set_features(features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())?;
        program.set_mem_table(&handover::regions(&memory))?;
        for ready in queues {
            let index = usize::from(ready.index);
            handover::hand_over(program, Some(&memory), &interrupt, &ready)?;
            program.set_vring_enable(index, true)?;
            self.serves = index + 1;
        }
        Ok(())
    }
}

/// Features that the program has, of those that we know.
fn negotiate(program: &mut Frontend) -> vhost::Result<u64> {
    program.set_owner()?;
    let features = program.get_features()?;
    let known = program.get_protocol_features()?;
    program.set_protocol_features(known & VhostUserProtocolFeatures::REPLY_ACK)?;
    if known.contains(VhostUserProtocolFeatures::REPLY_ACK) {
        program.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    Ok(features & RING_FEATURES)
}

impl VirtioDevice for Fs {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn features(&self) -> u64 {
        self.program.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // tag, num_request_queues.
        let mut config = [0; TAG_SIZE + 4];
        let (tag, queues) = config.split_at_mut(TAG_SIZE);
        tag.iter_mut().zip(self.program.tag.bytes()).for_each(|(to, from)| *to = from);
        queues.copy_from_slice(&1_u32.to_le_bytes());
        read_bytes(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.reset();
        self.start(activation).map_err(io::Error::other)
    }

    fn reset(&mut self) {
        for index in 0..std::mem::take(&mut self.serves) {
            // The answer comes when no request is in flight.
            if let Err(error) = self.program.connection.get_vring_base(index) {
                tracing::warn!("virtio-fs {}: {error}", self.program.tag);
            }
        }
    }
}
