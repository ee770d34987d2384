// SPDX-License-Identifier: GPL-2.0-only
//! System calls: the only unsafe code of this program.

pub mod probe;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The errno of a failed call, 0 for success.
pub fn errno<T>(result: &io::Result<T>) -> i32 {
    result.as_ref().err().and_then(io::Error::raw_os_error).unwrap_or(0)
}

/// An ioctl with a plain number.
pub fn ioctl(fd: &impl AsRawFd, cmd: u32, arg: u64) -> io::Result<i32> {
    // SAFETY: pointers in `arg` are the caller's: numbers that are no addresses of this program, or those of the functions below.
    match unsafe { libc::ioctl(fd.as_raw_fd(), cmd as _, arg) } {
        -1 => Err(io::Error::last_os_error()),
        n => Ok(n),
    }
}

/// An ioctl with a structure, which may be answered in place.
pub fn ioctl_with<T>(fd: &impl AsRawFd, cmd: u32, value: &mut T) -> io::Result<i32> {
    ioctl(fd, cmd, ptr::from_mut(value).expose_provenance() as u64)
}

/// A descriptor that an ioctl made.
pub fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: just made, and no one else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Opens the driver.
pub fn device() -> io::Result<File> {
    File::options().read(true).write(true).open("/dev/gzvm")
}

/// A new eventfd that does not block.
pub fn eventfd() -> File {
    // SAFETY: no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) };
    assert!(fd >= 0, "eventfd: {}", io::Error::last_os_error());
    owned(fd).into()
}

/// What was signalled since the last time.
pub fn take(mut eventfd: &File) -> u64 {
    let mut count = [0; 8];
    if eventfd.read(&mut count).is_ok() { u64::from_ne_bytes(count) } else { 0 }
}

/// Signals.
pub fn signal(mut eventfd: &File) {
    let _ = eventfd.write(&1_u64.to_ne_bytes());
}

/// What of `events` there is, within `ms`.
pub fn poll(fd: &impl AsRawFd, events: i16, ms: i32) -> i16 {
    let mut fds = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: one structure.
    unsafe { libc::poll(&mut fds, 1, ms) };
    fds.revents
}

/// Reads and writes of the file do not wait from now on.
pub fn nonblocking(fd: &impl AsRawFd) {
    // SAFETY: no pointers.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_RDWR | libc::O_NONBLOCK) };
}

/// They wait again.
pub fn blocking(fd: &impl AsRawFd) {
    // SAFETY: no pointers.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_RDWR) };
}

/// A mapping of anonymous memory.
pub struct Mapping {
    start: *mut u8,
    len: usize,
}

// SAFETY: plain memory; access is by single volatile words.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes, shared, read-only or not.
    pub fn new(len: usize, writable: bool) -> Self {
        let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: a new mapping where the kernel likes.
        let start = unsafe {
            libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0)
        };
        assert!(start != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        Self { start: start.cast(), len }
    }

    /// Maps the first `len` bytes of a file.
    pub fn of(file: &impl AsRawFd, len: usize, shared: bool) -> io::Result<Self> {
        let flags = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        // SAFETY: a new mapping where the kernel likes.
        let start = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(ptr::null_mut(), len, protection, flags, file.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Self { start: start.cast(), len })
        }
    }

    /// Moves it elsewhere, and back into one piece.
    pub fn relocate(&mut self) -> io::Result<()> {
        let elsewhere = Self::new(self.len, false);
        // SAFETY: both ranges are our own mappings, of which no reference exists; the second one's is not used again.
        let moved = unsafe {
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            libc::mremap(self.start.cast(), self.len, self.len, flags, elsewhere.start)
        };
        if moved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        std::mem::forget(elsewhere);
        self.start = moved.cast();
        Ok(())
    }

    /// Its address.
    pub fn address(&self) -> u64 {
        self.start.expose_provenance() as u64
    }

    /// Its bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Copies out of it.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        assert!(offset <= self.len && bytes.len() <= self.len - offset);
        // SAFETY: in bounds; a guest that writes there meanwhile spoils its own bytes, and no reference to them exists.
        unsafe { self.start.add(offset).copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
    }

    /// Copies into it.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset <= self.len && bytes.len() <= self.len - offset);
        // SAFETY: as above.
        unsafe { self.start.add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Writes a word.
    pub fn put(&self, offset: usize, word: u32) {
        assert!(offset + 4 <= self.len && offset.is_multiple_of(4));
        // SAFETY: in bounds and aligned.
        unsafe { self.start.add(offset).cast::<u32>().write_volatile(word) }
    }

    /// Reads a word.
    pub fn get(&self, offset: usize) -> u32 {
        assert!(offset + 4 <= self.len && offset.is_multiple_of(4));
        // SAFETY: in bounds and aligned.
        unsafe { self.start.add(offset).cast::<u32>().read_volatile() }
    }

    /// Unmaps a part, or maps fresh memory there.
    pub fn replace(&self, offset: usize, len: usize, map: bool) {
        assert!(offset + len <= self.len);
        // SAFETY: inside our own mapping, of which no reference exists.
        unsafe {
            let at = self.start.add(offset).cast();
            if map {
                let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
                libc::mmap(at, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            } else {
                libc::munmap(at, len);
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, not used again. A part that was unmapped stays so.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

/// Where the handler writes a 1, if anywhere.
static FLAG: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

extern "C" fn on_signal(_: i32) {
    let flag = FLAG.load(Ordering::SeqCst);
    if !flag.is_null() {
        // SAFETY: set to a byte that lives until the flag is reset.
        unsafe { AtomicU8::from_ptr(flag) }.store(1, Ordering::SeqCst);
    }
}

/// Handles SIGUSR1: with `restart`, system calls go on after it.
pub fn handle_signal(restart: bool) {
    // SAFETY: the handler does nothing but an atomic store.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = if restart { libc::SA_RESTART } else { 0 };
        libc::sigaction(libc::SIGUSR1, &action, ptr::null_mut());
    }
}

thread_local! {
    /// What SIGRTMIN sets to 1 in this thread.
    static KICKED: AtomicPtr<u8> = const { AtomicPtr::new(ptr::null_mut()) };
}

extern "C" fn on_kick(_: i32) {
    let flag = KICKED.with(|flag| flag.load(Ordering::SeqCst));
    if !flag.is_null() {
        // SAFETY: a byte of a mapping that outlives its place here.
        unsafe { AtomicU8::from_ptr(flag) }.store(1, Ordering::SeqCst);
    }
}

/// Handles SIGRTMIN as crosvm does: a byte of the thread's own is set, system calls go on.
pub fn handle_kicks() {
    // SAFETY: the handler does nothing but an atomic store.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_kick as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGRTMIN(), &action, ptr::null_mut());
    }
}

/// The byte of a mapping that kicks of this thread set, or none. The mapping must stay until then.
pub fn kicks_set(byte: Option<(&Mapping, usize)>) {
    let flag = byte.map_or(ptr::null_mut(), |(mapping, offset)| {
        assert!(offset < mapping.len);
        mapping.start.wrapping_add(offset)
    });
    KICKED.with(|kicked| kicked.store(flag, Ordering::SeqCst));
}

/// Waits for one of these eventfds, or so many milliseconds.
pub fn wait(events: &[&File], limit: i32) {
    let mut fds: Vec<_> =
        events.iter().map(|e| libc::pollfd { fd: e.as_raw_fd(), events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: the array is valid for as many entries.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, limit) };
}

/// The byte the handler sets to 1, as crosvm's sets `immediate_exit`. One check at a time.
pub fn flag_on_signal(flag: *mut u8) {
    FLAG.store(flag, Ordering::SeqCst);
}

/// This thread, for [`interrupt`].
#[derive(Clone, Copy)]
pub struct Thread(libc::pthread_t);

impl Thread {
    /// The caller.
    pub fn current() -> Self {
        // SAFETY: no preconditions.
        Self(unsafe { libc::pthread_self() })
    }

    /// Sends it SIGUSR1. The thread must not have ended.
    pub fn interrupt(self) {
        // SAFETY: by the callers, who join the thread later.
        unsafe { libc::pthread_kill(self.0, libc::SIGUSR1) };
    }

    /// Sends it SIGRTMIN. The thread must not have been joined.
    pub fn kick(self) {
        // SAFETY: as above.
        unsafe { libc::pthread_kill(self.0, libc::SIGRTMIN()) };
    }
}

/// Interrupts the thread that started it, again and again, until dropped: once may be before a system call begins.
pub struct Kicker(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Kicker {
    /// The first time after `delay`, then each `period`.
    pub fn start(delay: Duration, period: Duration) -> Self {
        let me = Thread::current();
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            thread::sleep(delay);
            while !until.load(Ordering::SeqCst) {
                me.interrupt();
                thread::sleep(period);
            }
        });
        Self(stop, Some(thread))
    }
}

impl Drop for Kicker {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
        if let Some(thread) = self.1.take() {
            let _ = thread.join();
        }
    }
}

/// Runs `f` in a child process; its result.
pub fn in_child(f: impl FnOnce() -> bool) -> bool {
    Child::start(f).wait()
}

/// A child process.
pub struct Child(libc::pid_t);

impl Child {
    /// Forks; the child runs `f` and ends.
    pub fn start(f: impl FnOnce() -> bool) -> Self {
        // SAFETY: the child only makes system calls, then ends.
        match unsafe { libc::fork() } {
            // SAFETY: as above.
            0 => unsafe { libc::_exit(i32::from(!f())) },
            child => Self(child),
        }
    }

    /// Waits for its end: the result of its function.
    pub fn wait(self) -> bool {
        let mut status = -1;
        // SAFETY: status is valid for a write.
        unsafe { libc::waitpid(self.0, &mut status, 0) };
        status == 0
    }
}

/// Room for a control message with one descriptor.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Passes a descriptor through a UNIX socket.
pub fn send_fd(socket: &UnixStream, fd: &impl AsRawFd) -> io::Result<()> {
    let mut byte = [0_u8];
    let mut control = Control([0; 64]);
    // SAFETY: the message names buffers of this frame with their sizes, and the control message fits its own.
    let sent = unsafe {
        let (_data, message) = message(&mut byte, &mut control);
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd.as_raw_fd());
        libc::sendmsg(socket.as_raw_fd(), &message, 0)
    };
    if sent == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Receives one.
pub fn receive_fd(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0_u8];
    let mut control = Control([0; 64]);
    // SAFETY: as in `send_fd`; a control message that came carries one descriptor, which is new.
    unsafe {
        let (_data, mut message) = message(&mut byte, &mut control);
        let got = libc::recvmsg(socket.as_raw_fd(), &mut message, 0);
        let header = libc::CMSG_FIRSTHDR(&message);
        if got != 1 || header.is_null() {
            return Err(io::Error::last_os_error());
        }
        Ok(owned(libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned()))
    }
}

/// A message of one byte and a control buffer for one descriptor. The box is part of it.
fn message(byte: &mut [u8; 1], control: &mut Control) -> (Box<libc::iovec>, libc::msghdr) {
    let mut data = Box::new(libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 });
    // SAFETY: a message header of zeros is an empty one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut *data;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: computes a number.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(4) } as _;
    (data, message)
}
