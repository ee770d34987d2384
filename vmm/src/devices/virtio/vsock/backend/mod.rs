// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who is at the other end of a guest's sockets: the [host's kernel](kernel), and [other guests](peers).

pub mod kernel;
pub mod peers;

use std::io;
use std::os::fd::BorrowedFd;

/// The host's end: packets of and for its programs.
pub trait Host: Send + 'static {
    /// Takes a packet. False: it has no room now; one of its sources says when to try again.
    ///
    /// # Errors
    /// It is gone.
    fn send(&mut self, packet: &[u8]) -> io::Result<bool>;

    /// The next packet for the guest, into `packet`, which is empty or has an old one. False: there is none.
    ///
    /// # Errors
    /// It is gone.
    fn receive(&mut self, packet: &mut Vec<u8>) -> io::Result<bool>;

    /// Forgets that its sources were ready: what is there is looked at next.
    fn wake(&mut self);

    /// What is readable when there is more to do.
    fn sources(&self) -> Vec<BorrowedFd<'_>>;
}

/// What makes a host's end for each life of the guest's driver.
pub trait Uplink: Send {
    /// Features of the device that need the host's end, of these.
    fn features(&self, wanted: u64) -> u64;

    /// Begins, with these of them.
    ///
    /// # Errors
    /// The host's end refused.
    fn start(&mut self, features: u64) -> io::Result<Box<dyn Host>>;

    /// Ends: nothing is in flight any more.
    fn stop(&mut self);
}
