// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A vCPU's file descriptor, its RUN buffer, and exits as values.

use std::cell::UnsafeCell;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use gzvm_abi::ioctl::{self, OneReg};
use gzvm_abi::run::{Exception, FailEntry, InternalError, Mmio, SystemEvent, VcpuRun, Watch, exit};
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_ref};
use zerocopy::IntoBytes;

use crate::{Result, check};

/// Why [`VcpuFd::run`] came back.
#[derive(Debug)]
pub enum VcpuExit<'a> {
    /// A guest load: address, and where to put the answer before the next run.
    MmioRead(u64, &'a mut [u8]),
    /// A guest store: address and data.
    MmioWrite(u64, &'a [u8]),
    /// A guest's call that neither hypervisor nor driver answers: x0..x7, both ways.
    Hypercall(&'a mut [u64; 8]),
    /// A stage-2 fault that nobody could repair, or a guest exception.
    Exception(Exception),
    /// Debug event.
    Debug,
    /// The vCPU can't be entered.
    FailEntry(FailEntry),
    /// The hypervisor can't go on with the vCPU.
    InternalError(InternalError),
    /// Power-off, reset, crash: see [`gzvm_abi::run::system_event`].
    SystemEvent(SystemEvent),
    /// The VM stops.
    Shutdown,
    /// Something that [`VmFd::set_watch`](crate::VmFd::set_watch) names has happened; it has been acted on.
    Watch(Watch),
    /// Reasons that the driver normally keeps to itself (interrupt, yield, idle, IPI): run again.
    Again(u32),
    /// A reason that this crate does not know.
    Unknown(u32),
    /// An MMIO exit with a size other than 1, 2, 4 or 8.
    BadMmio(Mmio),
}

/// The buffer of RUN. One thread, the owner of the [`VcpuFd`], uses all of it; other threads only
/// ever store to `immediate_exit`, and only atomically.
#[derive(Debug)]
enum RunBuffer {
    /// Ours; the driver copies it.
    Own(Box<UnsafeCell<VcpuRun>>),
    /// The driver's, a page mapped until this is dropped.
    Mapped(NonNull<VcpuRun>),
}

/// Bytes of the driver's mapping.
const MAPPING: usize = 4096;

// SAFETY: see the type: the only access from other threads is an atomic store of one byte, which
// the owner, too, reaches through `RunBuffer::immediate_exit` alone.
unsafe impl Sync for RunBuffer {}
// SAFETY: `VcpuRun` is plain data.
unsafe impl Send for RunBuffer {}

impl RunBuffer {
    fn own() -> Self {
        let empty = VcpuRun { exit_reason: 0, immediate_exit: 0, padding1: [0; 3], payload: [0; 32] };
        Self::Own(Box::new(UnsafeCell::new(empty)))
    }

    fn map(vcpu: &File) -> Option<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes touches nothing that exists.
        let at = unsafe {
            libc::mmap(ptr::null_mut(), MAPPING, protection, libc::MAP_SHARED, vcpu.as_raw_fd(), 0)
        };
        if at == libc::MAP_FAILED { None } else { NonNull::new(at.cast()).map(Self::Mapped) }
    }

    fn get(&self) -> *mut VcpuRun {
        match self {
            Self::Own(buffer) => buffer.get(),
            Self::Mapped(buffer) => buffer.as_ptr(),
        }
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the byte is in bounds and lives as long as `self`; it is accessed atomically only
        // (by us) or by the kernel during an ioctl.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.get()).immediate_exit) }
    }
}

impl Drop for RunBuffer {
    fn drop(&mut self) {
        if let Self::Mapped(buffer) = self {
            // SAFETY: mapped in `map`, and nobody has a reference into it any more.
            unsafe { libc::munmap(buffer.as_ptr().cast(), MAPPING) };
        }
    }
}

/// Makes a vCPU's RUN return EINTR, from any thread; see [`VcpuFd::immediate_exit`].
#[derive(Clone, Debug)]
pub struct ImmediateExit(Arc<RunBuffer>);

impl ImmediateExit {
    /// Sets or clears the flag.
    pub fn set(&self, value: bool) {
        self.0.immediate_exit().store(value.into(), Ordering::Release);
    }
}

/// A vCPU.
#[derive(Debug)]
pub struct VcpuFd {
    vcpu: File,
    run: Arc<RunBuffer>,
}

impl VcpuFd {
    pub(crate) fn new(vcpu: File) -> Self {
        Self { vcpu, run: Arc::new(RunBuffer::own()) }
    }

    /// Of a driver whose vCPUs can be mapped.
    pub(crate) fn with_mapping(vcpu: File) -> Self {
        let run = RunBuffer::map(&vcpu).unwrap_or_else(RunBuffer::own);
        Self { vcpu, run: Arc::new(run) }
    }

    /// The flag that makes RUN return EINTR before it enters the guest.
    ///
    /// The driver reads it when RUN begins, and MediaTek's overwrites it when RUN ends. So, to stop a running
    /// vCPU: tell its thread by other means, set the flag, then send the thread a signal that has a
    /// handler. Whatever the interleaving, the thread sees one of the three.
    pub fn immediate_exit(&self) -> ImmediateExit {
        ImmediateExit(self.run.clone())
    }

    /// Reads register `id` (see [`gzvm_abi::reg`]).
    ///
    /// # Errors
    /// EOPNOTSUPP in MediaTek's newer drivers.
    pub fn get_one_reg(&self, id: u64) -> Result<u64> {
        let mut value = 0_u64;
        let request = OneReg { id, addr: (&raw mut value).expose_provenance() as u64 };
        // SAFETY: GET_ONE_REG reads one `OneReg` and writes at most 8 bytes at its `addr`, `value`.
        check(unsafe { ioctl_with_ref(&self.vcpu, ioctl::GET_ONE_REG.into(), &request) })?;
        Ok(value)
    }

    /// Writes register `id` (see [`gzvm_abi::reg`]).
    ///
    /// # Errors
    /// EINVAL: unknown register; EFAULT.
    pub fn set_one_reg(&self, id: u64, value: u64) -> Result<()> {
        let request = OneReg { id, addr: (&raw const value).expose_provenance() as u64 };
        // SAFETY: SET_ONE_REG reads one `OneReg` and at most 8 bytes at its `addr`, `value`.
        check(unsafe { ioctl_with_ref(&self.vcpu, ioctl::SET_ONE_REG.into(), &request) })?;
        Ok(())
    }

    /// Runs the guest until something needs the caller. The answer of a
    /// [`MmioRead`](VcpuExit::MmioRead) must be in its slice before the next call.
    ///
    /// # Errors
    /// EINTR: a signal arrived or [`ImmediateExit`] was set.
    pub fn run(&mut self) -> Result<VcpuExit<'_>> {
        let buffer = self.run.get();
        let argument = match &*self.run {
            RunBuffer::Own(_) => buffer,
            RunBuffer::Mapped(_) => ptr::null_mut(),
        };
        // SAFETY: RUN reads and writes 264 bytes, the size of `VcpuRun`, at its argument or in the
        // mapping; `&mut self` keeps any other RUN or exit reference away, and other threads store to
        // `immediate_exit` only.
        check(unsafe { ioctl_with_mut_ptr(&self.vcpu, ioctl::RUN.into(), argument) })?;
        // SAFETY: as above: nobody else touches exit reason and payload until the returned value,
        // which borrows `self` mutably, is gone. No reference covers `immediate_exit`.
        let (reason, payload) = unsafe { ((*buffer).exit_reason, &mut (*buffer).payload) };
        Ok(decode(reason, payload))
    }
}

impl AsRawFd for VcpuFd {
    fn as_raw_fd(&self) -> RawFd {
        self.vcpu.as_raw_fd()
    }
}

/// Bytes from the start of an MMIO payload to its data.
const MMIO_DATA: usize = std::mem::offset_of!(Mmio, data);

fn decode(reason: u32, payload: &mut [u64; 32]) -> VcpuExit<'_> {
    // The payload structures read from a whole `VcpuRun`; none of them cares for its header.
    fn view(reason: u32, payload: &[u64; 32]) -> VcpuRun {
        VcpuRun { exit_reason: reason, immediate_exit: 0, padding1: [0; 3], payload: *payload }
    }
    match reason {
        exit::MMIO => {
            let [address, _, size, flags, ..] = *payload;
            // reg_nr is the low half of the fourth word, is_write the byte above it.
            let is_write = flags >> 32 & 0xFF != 0;
            let data = match size {
                1 | 2 | 4 | 8 => {
                    payload.as_mut_bytes().get_mut(MMIO_DATA..MMIO_DATA + usize::try_from(size).unwrap_or(8))
                }
                _ => None,
            };
            match data {
                Some(data) if is_write => VcpuExit::MmioWrite(address, data),
                Some(data) => VcpuExit::MmioRead(address, data),
                None => VcpuExit::BadMmio(Mmio {
                    phys_addr: address,
                    size,
                    is_write: is_write.into(),
                    ..Mmio::default()
                }),
            }
        }
        exit::HYPERCALL => match payload.first_chunk_mut() {
            Some(args) => VcpuExit::Hypercall(args),
            None => VcpuExit::Unknown(reason),
        },
        exit::EXCEPTION => VcpuExit::Exception(Exception::read(&view(reason, payload))),
        exit::DEBUG => VcpuExit::Debug,
        exit::FAIL_ENTRY => VcpuExit::FailEntry(FailEntry::read(&view(reason, payload))),
        exit::INTERNAL_ERROR => VcpuExit::InternalError(InternalError::read(&view(reason, payload))),
        exit::SYSTEM_EVENT => VcpuExit::SystemEvent(SystemEvent::read(&view(reason, payload))),
        exit::SHUTDOWN => VcpuExit::Shutdown,
        exit::WATCH => VcpuExit::Watch(Watch::read(&view(reason, payload))),
        exit::IRQ | exit::GZ | exit::IDLE | exit::IPI => VcpuExit::Again(reason),
        other => VcpuExit::Unknown(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gzvm_abi::run::system_event;

    fn run_with(reason: u32, write: impl FnOnce(&mut VcpuRun)) -> VcpuRun {
        let mut run = VcpuRun { exit_reason: reason, immediate_exit: 0, padding1: [0; 3], payload: [0; 32] };
        write(&mut run);
        run
    }

    fn mmio(size: u64, is_write: u8) -> VcpuRun {
        let mmio = Mmio {
            phys_addr: 0x0900_0010,
            data: [1, 2, 3, 4, 5, 6, 7, 8],
            size,
            reg_nr: 31,
            is_write,
            pad: [0; 3],
        };
        run_with(exit::MMIO, |run| mmio.write(run))
    }

    #[test]
    fn mmio_write_carries_size_bytes() {
        let mut run = mmio(4, 1);
        match decode(run.exit_reason, &mut run.payload) {
            VcpuExit::MmioWrite(0x0900_0010, data) => assert_eq!(data, [1, 2, 3, 4]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn mmio_read_is_answered_where_the_driver_looks() {
        let mut run = mmio(2, 0);
        match decode(run.exit_reason, &mut run.payload) {
            VcpuExit::MmioRead(0x0900_0010, data) => data.copy_from_slice(&[0xAA, 0xBB]),
            other => panic!("{other:?}"),
        }
        assert_eq!(Mmio::read(&run).data, [0xAA, 0xBB, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn mmio_of_odd_size_is_no_access() {
        for size in [0, 3, 5, 9, u64::MAX] {
            let mut run = mmio(size, 0);
            assert!(
                matches!(decode(run.exit_reason, &mut run.payload), VcpuExit::BadMmio(m) if m.size == size)
            );
        }
    }

    #[test]
    fn other_exits() {
        let event = SystemEvent { type_: system_event::RESET, ndata: 1, data: [7; 16] };
        let mut run = run_with(exit::SYSTEM_EVENT, |run| event.write(run));
        assert!(
            matches!(decode(run.exit_reason, &mut run.payload), VcpuExit::SystemEvent(e) if e.type_ == 2 && e.data[0] == 7)
        );
        let mut run = run_with(exit::IRQ, |_| ());
        assert!(matches!(decode(run.exit_reason, &mut run.payload), VcpuExit::Again(exit::IRQ)));
        let watch = Watch { kind: 2, pc: 0x1234, lr: 9, ..Watch::default() };
        let mut run = run_with(exit::WATCH, |run| watch.write(run));
        assert!(matches!(decode(run.exit_reason, &mut run.payload), VcpuExit::Watch(w) if w == watch));
        let mut run = run_with(12, |_| ());
        assert!(matches!(decode(run.exit_reason, &mut run.payload), VcpuExit::Unknown(12)));
    }

    #[test]
    fn a_file_that_cannot_be_mapped_gets_a_buffer() {
        let (pipe, _other) = std::io::pipe().unwrap();
        let vcpu = VcpuFd::with_mapping(std::os::fd::OwnedFd::from(pipe).into());
        assert!(matches!(&*vcpu.run, RunBuffer::Own(_)));
    }

    #[test]
    fn immediate_exit_reaches_the_buffer() {
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let vcpu = VcpuFd::new(null);
        vcpu.immediate_exit().set(true);
        // SAFETY: no other thread has the handle.
        assert_eq!(unsafe { (*vcpu.run.get()).immediate_exit }, 1);
    }
}
