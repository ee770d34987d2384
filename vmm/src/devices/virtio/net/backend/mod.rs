// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is behind a network device: something that takes and gives Ethernet frames.

pub mod passt;
pub mod tap;

use std::io;
use std::os::fd::BorrowedFd;

use super::request::HEADER_SIZE;

/// Most bytes of a frame: a segment of 64 KiB that is still to be cut, with Ethernet's header and a VLAN's tag.
pub const MOST: usize = 65_535 + 18;
/// A buffer for a frame and its virtio-net header.
pub const BUFFER_SIZE: usize = HEADER_SIZE + MOST;

/// The other end of the guest's cable. Every buffer is a virtio-net header and a frame. An error means that it is gone.
pub trait Backend: Send {
    /// Is it still there? Asked before each life of the guest.
    ///
    /// # Errors
    /// What is known of its end.
    fn check(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    /// Does it compute checksums and cut segments, and let the guest do so?
    fn offloads(&self) -> bool;

    /// The guest accepts frames that need this (VIRTIO_NET_F_GUEST_*).
    ///
    /// # Errors
    /// The kernel refused.
    fn set_offloads(&mut self, features: u64) -> io::Result<()>;

    /// Takes part in the interface's frames, or no more: what waited for the driver is lost then. Only asked of the second and later
    /// queues of an interface that has several.
    ///
    /// # Errors
    /// The kernel refused.
    fn attach(&mut self, _on: bool) -> io::Result<()> {
        Ok(())
    }

    /// Gets a frame, if one is there; returns how long it is with its header. `buffer` is of [`BUFFER_SIZE`] bytes.
    ///
    /// # Errors
    /// It is gone.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>>;

    /// Sends a frame. False: there is no room, and nothing was taken.
    ///
    /// # Errors
    /// It is gone.
    fn send(&mut self, frame: &[u8]) -> io::Result<bool>;

    /// Sends what is left of a frame that had been taken. True: there is room for others.
    ///
    /// # Errors
    /// It is gone.
    fn flush(&mut self) -> io::Result<bool>;

    /// Readable when a frame may be there, writable when there may be room.
    fn file(&self) -> BorrowedFd<'_>;
}
