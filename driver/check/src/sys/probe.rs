// SPDX-License-Identifier: GPL-2.0-only
//! Ways to reach a page, each with what came of it: an errno, 0 for success.

use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use super::Mapping;

thread_local! {
    /// This thread touches memory that may not be there: how often it was not.
    static FAULTS: Cell<Option<u32>> = const { Cell::new(None) };
}

fn result(ret: isize) -> i32 {
    if ret < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 }
}

fn at(mapping: &Mapping, offset: usize) -> *mut libc::c_void {
    assert!(offset + 4096 <= mapping.len);
    mapping.start.wrapping_add(offset).cast()
}

#[cfg(target_arch = "aarch64")]
extern "C" fn on_bus(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    FAULTS.with(|faults| match faults.get() {
        Some(n) => {
            faults.set(Some(n + 1));
            // SAFETY: the kernel's context of this signal; the instruction is one of `touch`, and 4 bytes long.
            unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.pc += 4 };
        }
        // Somebody else's: the next time it ends the process.
        // SAFETY: no handler stays.
        None => unsafe {
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
        },
    });
}

/// Loads and stores a word. Which of them were answered with SIGBUS?
#[cfg(target_arch = "aarch64")]
pub fn touch(mapping: &Mapping, offset: usize) -> (bool, bool) {
    let address = at(mapping, offset);
    // SAFETY: the handler touches the faulting thread's own context only.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        libc::sigaction(libc::SIGBUS, &action, ptr::null_mut());
    }
    let count = || FAULTS.with(|faults| faults.replace(Some(0))).unwrap_or(0) != 0;
    count();
    let word: u32;
    // SAFETY: in bounds of a mapping without references; the handler skips the load if nothing is there.
    unsafe { std::arch::asm!("ldr {0:w}, [{1}]", out(reg) word, in(reg) address, options(nostack)) };
    let load = count();
    if !load {
        // SAFETY: as above; it writes what is there.
        unsafe { std::arch::asm!("str {0:w}, [{1}]", in(reg) word, in(reg) address, options(nostack)) };
    }
    // Without a load, a store of something: it must not come through.
    if load {
        // SAFETY: as above.
        unsafe { std::arch::asm!("str {0:w}, [{1}]", in(reg) 0xBAD_u32, in(reg) address, options(nostack)) };
    }
    let store = count();
    FAULTS.with(|faults| faults.set(None));
    (load, store)
}

/// The driver runs on arm64 alone.
#[cfg(not(target_arch = "aarch64"))]
pub fn touch(_: &Mapping, _: usize) -> (bool, bool) {
    let _ = &FAULTS;
    (false, false)
}

/// read(2) into the page.
pub fn read_into(fd: &impl AsRawFd, mapping: &Mapping, offset: usize, len: usize) -> i32 {
    assert!(len <= 4096);
    // SAFETY: in bounds of a mapping without references.
    result(unsafe { libc::read(fd.as_raw_fd(), at(mapping, offset), len) })
}

/// pwrite(2) of the page, to the start of a file.
pub fn write_from(fd: &impl AsRawFd, mapping: &Mapping, offset: usize, len: usize) -> i32 {
    assert!(len <= 4096);
    // SAFETY: in bounds.
    result(unsafe { libc::pwrite(fd.as_raw_fd(), at(mapping, offset), len, 0) })
}

/// vmsplice(2) of the page into a pipe, which pins it.
pub fn splice_from(pipe: &impl AsRawFd, mapping: &Mapping, offset: usize) -> i32 {
    let iov = libc::iovec { iov_base: at(mapping, offset), iov_len: 4096 };
    // SAFETY: one vector, in bounds.
    result(unsafe { libc::vmsplice(pipe.as_raw_fd(), &iov, 1, libc::SPLICE_F_NONBLOCK) })
}

/// process_vm_readv(2), or process_vm_writev(2), of the page in a process.
pub fn other_process(pid: u32, mapping: &Mapping, offset: usize, write: bool) -> i32 {
    let mut word = [0_u8; 8];
    let local = libc::iovec { iov_base: word.as_mut_ptr().cast(), iov_len: 8 };
    let remote = libc::iovec { iov_base: at(mapping, offset), iov_len: 8 };
    let pid = pid as libc::pid_t;
    // SAFETY: one vector each, in bounds; no references to the mapping exist.
    result(unsafe {
        if write {
            libc::process_vm_writev(pid, &local, 1, &remote, 1, 0)
        } else {
            libc::process_vm_readv(pid, &local, 1, &remote, 1, 0)
        }
    })
}

/// madvise(2) with MADV_POPULATE_WRITE: faults the page in for the kernel.
pub fn populate(mapping: &Mapping, offset: usize) -> i32 {
    const MADV_POPULATE_WRITE: i32 = 23;
    // SAFETY: in bounds; at the most it faults the page in.
    result(unsafe { libc::madvise(at(mapping, offset), 4096, MADV_POPULATE_WRITE) } as isize)
}

/// Is the page's address mapped at all, in this process?
pub fn is_mapped(mapping: &Mapping, offset: usize) -> bool {
    // SAFETY: asks for nothing to be done.
    unsafe { libc::msync(at(mapping, offset), 4096, libc::MS_ASYNC) == 0 }
}

/// fallocate(2) that punches a hole of the first page.
pub fn punch_hole(fd: &impl AsRawFd) -> i32 {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no pointers.
    result(unsafe { libc::fallocate(fd.as_raw_fd(), mode, 0, 4096) } as isize)
}
