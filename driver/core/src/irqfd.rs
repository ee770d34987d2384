// SPDX-License-Identifier: GPL-2.0-only
//! Interrupts raised by eventfds.
//!
//! An irqfd holds its VM, and the VM's list holds the irqfd; closing the VM's file ends that circle. Whoever takes an
//! irqfd off the list ends it: DEASSIGN, the eventfd's hang-up (on a workqueue), or the close.
//!
//! Each signal latches the interrupt once, and nothing lowers it. With RESAMPLE it is a line, as in KVM: a signal raises it; when
//! the guest ends the interrupt, the hypervisor lowers the line and a vCPU exits, and the resamplefds of all irqfds with that
//! interrupt are signalled. The last of them to go lowers the line for good. A hypervisor that can't do this treats each
//! signal as one edge.

use gzvm_abi::hypercall::Function;
use gzvm_abi::ioctl::{IRQFD_DEASSIGN, IRQFD_RESAMPLE, Irqfd as Args};

use crate::broken::{Mistake, broken};
use crate::counters::{IRQFD_SIGNALS, IRQFDS};
use crate::device;
use crate::kernel::eventfd::{EventFd, Watch, flush_hangups};
use crate::kernel::sync::{Class, Mutex};
use crate::kernel::{Arc, Error, KBox, KVec, Result, code};
use crate::vm::Vm;

/// An eventfd tied to an interrupt.
pub struct IrqFd {
    /// Dropped first: no signal comes after that.
    watch: Watch,
    vm: Arc<Vm>,
    gsi: u32,
    /// Told of the guest's EOI: the interrupt is a line.
    resample: Option<EventFd>,
}

impl IrqFd {
    /// The eventfd was signalled. Atomic context.
    pub fn signalled(&self) {
        IRQFD_SIGNALS.add(1);
        // Nothing can be done about a refusal here; the ioctl reports the same.
        let _ = match self.resample {
            Some(_) => self.vm.irq_level(0, self.gsi.into(), 1, true),
            None => self.vm.irq_line(0, self.gsi.into(), 1),
        };
    }

    /// Is it one of those that make `gsi` a resampled line?
    fn raises(&self, gsi: u32) -> bool {
        self.gsi == gsi && self.resample.is_some()
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

    /// Ends an irqfd that was taken off the list. Without the list's lock, since this waits for hang-ups.
    fn end(&self, irqfd: KBox<IrqFd>) {
        let line = irqfd.resample.is_some().then(|| (Arc::clone(&irqfd.vm), irqfd.gsi));
        drop(irqfd);
        if let Some((vm, gsi)) = line {
            // Under the lock, so that none is added to the line meanwhile.
            let list = self.0.lock();
            if !list.iter().any(|other| other.raises(gsi)) {
                let _ = vm.irq_level(0, gsi.into(), 0, false);
            }
        }
    }

    /// Does an irqfd make `gsi` a resampled line?
    pub fn resamples(&self, gsi: u32) -> bool {
        self.0.lock().iter().any(|irqfd| irqfd.raises(gsi))
    }

    /// The guest has ended the interrupt: whoever raises it looks at the device again.
    pub fn resampled(&self, gsi: u32) {
        for irqfd in self.0.lock().iter().filter(|irqfd| irqfd.gsi == gsi) {
            if let Some(eventfd) = &irqfd.resample {
                eventfd.signal();
            }
        }
    }

    /// IRQFD. EINVAL: flags or padding, or no eventfd. EBADF. EBUSY: that eventfd is tied already.
    pub fn set(&self, vm: &Arc<Vm>, args: &Args) -> Result {
        if args.flags & !(IRQFD_DEASSIGN | IRQFD_RESAMPLE) != 0 || args.pad != [0; 16] {
            return Err(code::EINVAL);
        }
        let fd = i32::try_from(args.fd).map_err(|_| code::EBADF)?;
        if args.flags & IRQFD_DEASSIGN != 0 {
            return self.deassign(fd, args.gsi);
        }
        let watch = Watch::new(fd)?;
        let resample = if args.flags & IRQFD_RESAMPLE != 0 && device::has_function(Function::IrqLevel) {
            Some(EventFd::get(i32::try_from(args.resamplefd).map_err(|_| code::EBADF)?)?)
        } else {
            None
        };
        IRQFDS.add(1);
        let irqfd = KBox::new(IrqFd { watch, vm: Arc::clone(vm), gsi: args.gsi, resample })?;
        // What is refused is dropped after the lock is released, since the drop waits for hang-ups.
        match self.add(irqfd, fd) {
            Ok(()) => Ok(()),
            Err((e, refused)) => {
                self.end(refused);
                Err(e)
            }
        }
    }

    fn add(&self, irqfd: KBox<IrqFd>, fd: i32) -> core::result::Result<(), (Error, KBox<IrqFd>)> {
        let mut list = self.0.lock();
        if list.iter().any(|other| other.watch.key() == irqfd.watch.key()) && !broken(Mistake::TiedTwice) {
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
            self.end(irqfd);
        }
        Ok(())
    }

    /// The eventfd of the irqfd at `owner` is gone. Only the hang-up itself calls this.
    pub fn hangup(&self, owner: *const IrqFd) {
        if broken(Mistake::DeafToHangup) {
            return;
        }
        // If it is not on the list, whoever took it waits for us to return.
        if let Some(irqfd) = self.take(|irqfd| core::ptr::eq(irqfd.as_ptr(), owner)) {
            irqfd.watch.ends_in_hangup();
            self.end(irqfd);
        }
    }

    /// Ends them all. A hang-up that was faster holds the VM as long as it runs: it is over, too, so that who closes a VM's
    /// files finds it gone.
    pub fn clear(&self) {
        while let Some(irqfd) = self.take(|_| true) {
            self.end(irqfd);
        }
        flush_hangups();
    }
}
