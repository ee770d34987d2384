// SPDX-License-Identifier: GPL-2.0-only
//! Interrupts raised by eventfds.
//!
//! An irqfd holds its VM, and the VM's list holds the irqfd; closing the VM's file ends that circle. Whoever takes an
//! irqfd off the list ends it: DEASSIGN, the eventfd's hang-up (on a workqueue), or the close.
//!
//! Each signal latches the interrupt once; it is never lowered. Resampling is accepted and not done: the hypervisor
//! treats each signal as one edge.

use gzvm_abi::ioctl::{IRQFD_DEASSIGN, IRQFD_RESAMPLE, Irqfd as Args};

use crate::counters::{IRQFD_SIGNALS, IRQFDS};
use crate::kernel::eventfd::{EventFd, Watch};
use crate::kernel::sync::{Class, Mutex};
use crate::kernel::{Arc, Error, KBox, KVec, Result, code};
use crate::vm::Vm;

/// An eventfd tied to an interrupt.
pub struct IrqFd {
    /// Dropped first: no signal comes after that.
    watch: Watch,
    vm: Arc<Vm>,
    gsi: u32,
}

impl IrqFd {
    /// The eventfd was signalled. Atomic context.
    pub fn signalled(&self) {
        IRQFD_SIGNALS.add(1);
        // Nothing can be done about a refusal here; the ioctl reports the same.
        let _ = self.vm.irq_line(0, self.gsi.into(), 1);
    }

    /// The VM whose interrupt this raises.
    pub fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }
}

impl Drop for IrqFd {
    fn drop(&mut self) {
        IRQFDS.sub(1);
    }
}

/// The irqfds of a VM.
pub struct IrqFds(Mutex<KVec<KBox<IrqFd>>>);

impl IrqFds {
    /// None.
    pub fn new() -> Result<Self> {
        Ok(Self(Mutex::new(Class::Irqfds, KVec::new())?))
    }

    fn take(&self, mut is_it: impl FnMut(&KBox<IrqFd>) -> bool) -> Option<KBox<IrqFd>> {
        let mut list = self.0.lock();
        let place = list.iter().position(&mut is_it)?;
        list.swap_remove(place)
    }

    /// IRQFD. EINVAL: flags or padding. EBADF. EBUSY: that eventfd is tied already.
    pub fn set(&self, vm: &Arc<Vm>, args: &Args) -> Result {
        if args.flags & !(IRQFD_DEASSIGN | IRQFD_RESAMPLE) != 0 || args.pad != [0; 16] {
            return Err(code::EINVAL);
        }
        let fd = i32::try_from(args.fd).map_err(|_| code::EBADF)?;
        if args.flags & IRQFD_DEASSIGN != 0 {
            return self.deassign(fd, args.gsi);
        }
        let watch = Watch::new(fd)?;
        IRQFDS.add(1);
        let irqfd = KBox::new(IrqFd { watch, vm: Arc::clone(vm), gsi: args.gsi })?;
        // What is refused is dropped after the lock is released, since the drop waits for hang-ups.
        match self.add(irqfd, fd) {
            Ok(()) => Ok(()),
            Err((e, refused)) => {
                drop(refused);
                Err(e)
            }
        }
    }

    fn add(&self, irqfd: KBox<IrqFd>, fd: i32) -> core::result::Result<(), (Error, KBox<IrqFd>)> {
        let mut list = self.0.lock();
        if list.iter().any(|other| other.watch.key() == irqfd.watch.key()) {
            return Err((code::EBUSY, irqfd));
        }
        if let Err(e) = list.reserve_one() {
            return Err((e, irqfd));
        }
        let owner = irqfd.as_ptr().cast();
        // SAFETY: owner is an IrqFd at a stable address, and the watch is a part of it, so it is dropped first.
        #[expect(unsafe_code, reason = "C keeps the address")]
        if let Err(e) = unsafe { irqfd.watch.start(fd, owner) } {
            return Err((e, irqfd));
        }
        // A hang-up that comes now waits for the list.
        list.push_within_capacity(irqfd).map_err(|irqfd| (code::ENOMEM, irqfd))
    }

    fn deassign(&self, fd: i32, gsi: u32) -> Result {
        let eventfd = EventFd::get(fd)?;
        // One that is not there is no error, as in the reference.
        while let Some(irqfd) = self.take(|irqfd| irqfd.gsi == gsi && irqfd.watch.key() == eventfd.key()) {
            drop(irqfd);
        }
        Ok(())
    }

    /// The eventfd of the irqfd at `owner` is gone. Only the hang-up itself calls this.
    pub fn hangup(&self, owner: *const IrqFd) {
        // If it is not on the list, whoever took it waits for us to return.
        if let Some(irqfd) = self.take(|irqfd| core::ptr::eq(irqfd.as_ptr(), owner)) {
            irqfd.watch.ends_in_hangup();
            drop(irqfd);
        }
    }

    /// Ends them all.
    pub fn clear(&self) {
        while let Some(irqfd) = self.take(|_| true) {
            drop(irqfd);
        }
    }
}
