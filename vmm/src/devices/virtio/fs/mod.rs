// SPDX-License-Identifier: Apache-2.0 OR MIT
//! virtio-fs (virtio 1.2, section 5.11): a folder of the host by virtiofsd, or another program that speaks
//! [vhost-user](super::vhost_user).
//!
//! - [`options`]: what the command line says of it.
//! - [`request`]: an answer for the guest, where the program can't give one.
//!
//! The program can't be started again under a running guest: open files and what the guest has looked up are its own state. When
//! it has ended, all that the guest asks of the folder fails (ENOTCONN), until its reset.

pub mod options;
pub mod request;

use virtio_bindings::virtio_ids::VIRTIO_ID_FS;

use super::RING_FEATURES;
use super::vhost_user::{Setup, WhenGone};
use options::FsOption;

const QUEUE_SIZE: u16 = 256;
/// Queues: one for what must not wait (FORGET), and one of requests.
const QUEUES: [u16; 2] = [QUEUE_SIZE; 2];
/// Bytes of a tag in the configuration.
const TAG_SIZE: usize = 36;

/// A shared folder as a virtio device.
pub fn setup(option: &FsOption) -> Setup {
    // tag, num_request_queues.
    let mut config = vec![0; TAG_SIZE];
    config.iter_mut().zip(option.tag.bytes()).for_each(|(to, from)| *to = from);
    config.extend(1_u32.to_le_bytes());
    Setup {
        name: format!("--fs {}: {}", option.tag, option.socket.display()),
        id: VIRTIO_ID_FS,
        queues: QUEUES.into(),
        features: RING_FEATURES,
        config,
        when_gone: WhenGone::Fail(request::refuse),
    }
}
