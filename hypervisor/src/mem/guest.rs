// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Copies to and from a VM's memory, for the VM itself: of a plain VM what the host shares with it, of a protected one what is
//! its own. What it has borrowed is another's.
//!
//! As with the host's memory, everything is copied once: other vCPUs, and the host, may write it meanwhile.

use core::marker::PhantomData;
use core::sync::atomic::{Ordering, fence};

use gzvm_core::addr::{PAGE_SIZE, Pa, VmId};
use gzvm_core::memory::ownership::{Ownership, State};

use crate::arch::barrier;

/// The page is not the VM's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotTheVms;

/// A place in a page that is a VM's while its memory is locked (`'m`): nothing leaves a VM without that.
#[derive(Debug)]
pub struct GuestBytes<'m> {
    pa: Pa,
    memory: PhantomData<&'m ()>,
}

impl GuestBytes<'_> {
    /// `pa`, which is mapped in the stage 2 of a VM: a protected one if it has an `owner`.
    pub fn new(ownership: &Ownership<'_>, owner: Option<VmId>, pa: Pa) -> Result<Self, NotTheVms> {
        let its_own = match (owner, ownership.state(pa.align_down(PAGE_SIZE))) {
            (None, Ok(State::HostShared(_))) => true,
            (Some(vm), Ok(State::Vm(owner) | State::VmShared(owner))) => vm == owner,
            _ => false,
        };
        if its_own { Ok(Self { pa, memory: PhantomData }) } else { Err(NotTheVms) }
    }

    fn holds(&self, bytes: usize) -> bool {
        (self.pa.0 & PAGE_SIZE.wrapping_sub(1)).saturating_add(bytes as u64) <= PAGE_SIZE
    }

    /// Copies from there, as far as the page goes. A guest with its caches off wrote past them.
    pub fn read(&self, uncached: bool, into: &mut [u8]) -> Result<(), NotTheVms> {
        if !self.holds(into.len()) {
            return Err(NotTheVms);
        }
        if uncached {
            barrier::clean_invalidate(self.pa.0 as usize, into.len());
        }
        // SAFETY: in one page of RAM that is the VM's, mapped at EL2; `into` is EL2's and can't overlap it. Others may write
        // it meanwhile: the copy is then a mix.
        unsafe { core::ptr::copy_nonoverlapping(self.pa.0 as *const u8, into.as_mut_ptr(), into.len()) };
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Copies there.
    pub fn write(&self, uncached: bool, from: &[u8]) -> Result<(), NotTheVms> {
        if !self.holds(from.len()) {
            return Err(NotTheVms);
        }
        if uncached {
            // What the guest wrote around it past the cache is not to be lost with the line.
            barrier::clean_invalidate(self.pa.0 as usize, from.len());
        }
        // SAFETY: as in `read`.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), self.pa.0 as *mut u8, from.len()) };
        if uncached {
            barrier::clean_invalidate(self.pa.0 as usize, from.len());
        }
        Ok(())
    }
}
