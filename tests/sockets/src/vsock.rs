// SPDX-License-Identifier: Apache-2.0 OR MIT
//! AF_VSOCK sockets.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd};

/// The option SO_VM_SOCKETS_CONNECT_TIMEOUT.
const CONNECT_TIMEOUT: libc::c_int = 6;

/// What kind of socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A stream.
    Stream,
    /// Messages with ends.
    Messages,
}

pub(super) fn result(value: libc::c_int) -> io::Result<libc::c_int> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

fn owned(fd: libc::c_int) -> io::Result<File> {
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { File::from_raw_fd(result(fd)?) })
}

fn socket(kind: Kind) -> io::Result<File> {
    let kind = if kind == Kind::Stream { libc::SOCK_STREAM } else { libc::SOCK_SEQPACKET };
    // SAFETY: takes numbers only.
    owned(unsafe { libc::socket(libc::AF_VSOCK, kind | libc::SOCK_CLOEXEC, 0) })
}

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: a structure of numbers, for which zero is right.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

/// Connects. The kernel gives a connection two seconds to come about, which is little on an emulated CPU.
pub fn connect(cid: u32, port: u32, kind: Kind) -> io::Result<File> {
    let (socket, address) = (socket(kind)?, address(cid, port));
    let timeout = libc::timeval { tv_sec: 100, tv_usec: 0 };
    // SAFETY: the value is as long as it is said to be.
    result(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::AF_VSOCK,
            CONNECT_TIMEOUT,
            (&raw const timeout).cast(),
            size_of::<libc::timeval>() as u32,
        )
    })?;
    // SAFETY: the address is as long as it is said to be.
    result(unsafe {
        libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_vm>() as u32)
    })?;
    Ok(socket)
}

/// Listens, for whomever.
pub fn listen(port: u32, kind: Kind) -> io::Result<File> {
    let (socket, address) = (socket(kind)?, address(libc::VMADDR_CID_ANY, port));
    // SAFETY: the address is as long as it is said to be.
    result(unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_vm>() as u32)
    })?;
    // SAFETY: takes numbers only.
    result(unsafe { libc::listen(socket.as_raw_fd(), 1024) })?;
    Ok(socket)
}

/// The next connection.
pub fn accept(listener: &File) -> io::Result<File> {
    // SAFETY: nobody wants the address.
    owned(unsafe { libc::accept(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut()) })
}

/// Ends what we send.
pub fn finish(socket: &File) -> io::Result<()> {
    // SAFETY: takes numbers only.
    result(unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_WR) }).map(drop)
}

/// Waits until some are ready, and which.
pub fn ready<'f>(files: impl Iterator<Item = &'f File>) -> io::Result<Vec<bool>> {
    let mut fds: Vec<_> =
        files.map(|file| libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: the array is as long as it is said to be.
    result(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) })?;
    Ok(fds.iter().map(|fd| fd.revents != 0).collect())
}

/// As many open files as may be.
pub fn many_files() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes what it is given.
    result(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: reads what it is given.
    result(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }).map(drop)
}

/// Nanoseconds of the machine's counter: with `-icount`, instructions.
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes what it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_RAW, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
