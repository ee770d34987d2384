// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Queues of a network interface, by ioctl (linux/ethtool.h, `struct ethtool_channels`).

use std::io;
use std::mem::zeroed;
use std::os::fd::AsRawFd;

use super::vsock::result;

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const GET_CHANNELS: u32 = 0x3C;
const SET_CHANNELS: u32 = 0x3D;

/// What the driver is given and answers, in words: the command, then numbers of channels.
type Channels = [u32; 9];
const MOST_COMBINED: usize = 4;
const COMBINED: usize = 8;

/// The driver's answer takes the place of what it is given.
fn ask(name: &str, channels: &mut Channels) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: an all-zero ifreq is a valid one.
    let mut request: libc::ifreq = unsafe { zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut *channels).cast();
    // SAFETY: the kernel reads and writes one such structure for both commands.
    result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) }).map(drop)
}

/// Pairs of queues: how many there are, and could be.
pub fn channels(name: &str) -> io::Result<(u32, u32)> {
    let mut channels = [0; 9];
    channels[0] = GET_CHANNELS;
    ask(name, &mut channels)?;
    Ok((channels[COMBINED], channels[MOST_COMBINED]))
}

/// So many from here on.
pub fn set_channels(name: &str, count: u32) -> io::Result<()> {
    let mut channels = [0; 9];
    channels[0] = SET_CHANNELS;
    channels[COMBINED] = count;
    ask(name, &mut channels)
}
