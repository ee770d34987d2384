// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A tap interface of the host (Linux, Documentation/networking/tuntap): the host's end of the cable. Its virtio-net headers
//! are the guest's own, so that checksums and segmentation are left to whoever is last.
//!
//! An interface may have several queues, each a file of its own. The kernel spreads what it has for the guest by flow, and answers where
//! the guest has asked; it does so over the queues that are attached.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::Context;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
};
use vmm_sys_util::ioctl::{_IOC_WRITE, ioctl_expr, ioctl_with_ref, ioctl_with_val};

use super::Backend;
use crate::devices::virtio::net::request::HEADER_SIZE;

const DEVICE: &str = "/dev/net/tun";

// linux/if_tun.h
const TUNSETIFF: libc::c_ulong = ioctl(202);
const TUNSETOFFLOAD: libc::c_ulong = ioctl(208);
const TUNSETVNETHDRSZ: libc::c_ulong = ioctl(216);
const TUNSETQUEUE: libc::c_ulong = ioctl(217);
const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;

const fn ioctl(number: libc::c_uint) -> libc::c_ulong {
    ioctl_expr(_IOC_WRITE, b'T' as libc::c_uint, number, size_of::<libc::c_int>() as libc::c_uint)
}

/// A queue of the interface.
#[derive(Debug)]
pub struct Tap {
    file: File,
    attached: bool,
}

impl Tap {
    /// Opens so many queues of the interface `name`, which is made if it is not there and the user may. The first one is attached.
    ///
    /// # Errors
    /// No permission, no such kernel module, or a name that can't be.
    pub fn open(name: &str, queues: u16) -> anyhow::Result<Vec<Self>> {
        let several = queues > 1;
        let mut taps = Vec::with_capacity(queues.into());
        for number in 0..queues {
            let mut tap = Self::queue(name, several)?;
            if number != 0 {
                tap.attach(false).with_context(|| format!("--net tap={name}: queue {number}"))?;
            }
            taps.push(tap);
        }
        Ok(taps)
    }

    fn queue(name: &str, several: bool) -> anyhow::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DEVICE)
            .with_context(|| format!("--net tap={name}: {DEVICE} (is the kernel's module tun loaded?)"))?;
        // SAFETY: an all-zero ifreq is a valid one.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // The last byte stays zero.
        let room = request.ifr_name.len() - 1;
        anyhow::ensure!(
            (1..=room).contains(&name.len()) && !name.contains('\0'),
            "--net tap={name}: a name has 1 to {room} bytes"
        );
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let multi_queue = if several { libc::IFF_MULTI_QUEUE } else { 0 };
        request.ifr_ifru.ifru_flags = (flags | multi_queue) as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one ifreq; the name in it ends with a zero.
        check(unsafe { ioctl_with_ref(&file, TUNSETIFF, &request) }).with_context(|| {
            let several = if several { "multi_queue " } else { "" };
            format!(
                "--net tap={name}: make it for your user: `ip tuntap add {name} mode tap {several}user $USER`"
            )
        })?;
        let size = HEADER_SIZE as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        check(unsafe { ioctl_with_ref(&file, TUNSETVNETHDRSZ, &size) })
            .with_context(|| format!("--net tap={name}"))?;
        Ok(Self { file, attached: true })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Backend for Tap {
    fn offloads(&self) -> bool {
        true
    }

    fn set_offloads(&mut self, features: u64) -> io::Result<()> {
        let mut flags = 0;
        for (feature, flag) in [
            (VIRTIO_NET_F_GUEST_CSUM, TUN_F_CSUM),
            (VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4),
            (VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6),
        ] {
            if features >> feature & 1 != 0 {
                flags |= flag;
            }
        }
        // SAFETY: TUNSETOFFLOAD takes a number.
        check(unsafe { ioctl_with_val(&self.file, TUNSETOFFLOAD, flags) })
    }

    fn attach(&mut self, on: bool) -> io::Result<()> {
        // The kernel refuses what is so already.
        if on == self.attached {
            return Ok(());
        }
        // SAFETY: an all-zero ifreq is a valid one.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let flags = if on { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETQUEUE reads one ifreq.
        check(unsafe { ioctl_with_ref(&self.file, TUNSETQUEUE, &request) })?;
        self.attached = on;
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            return match self.file.read(buffer) {
                Ok(count) => Ok(Some(count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // EIO: the interface is down.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(None),
                Err(error) => Err(error),
            };
        }
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<bool> {
        match self.file.write(frame) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => Err(error),
            // As on a real cable: what the kernel does not like, or has no room for, is lost.
            Err(error) => {
                tracing::debug!("virtio-net: a frame is lost: {error}");
                Ok(true)
            }
        }
    }

    fn flush(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
