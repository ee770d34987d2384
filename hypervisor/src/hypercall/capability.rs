// SPDX-License-Identifier: Apache-2.0 OR MIT
//! ENABLE_CAP.

use gzvm_abi::hypercall::cap;
use gzvm_core::addr::{BLOCK_2M, Ipa, PAGE_SIZE, Pa};
use gzvm_core::memory::PaRange;

use super::memory::MOST_PAGES;
use super::{Args, Error, Results};
use crate::guest::firmware::{self, Window};
use crate::guest::memory::share;
use crate::guest::registry;
use crate::mem::host::SharedPages;

/// Pages per DESTROY_VM call that we advise.
const DESTROY_BATCH: u64 = 1024;

/// ENABLE_CAP: x1 = VM (0 for global questions), x2 = capability, x3.. = arguments.
pub fn enable([id, capability, arg0, arg1, ..]: Args) -> Result<Results, Error> {
    match capability {
        cap::QUERY_HYP_BATCH_PAGES => Ok([MOST_PAGES, 0, 0]),
        cap::QUERY_DESTROY_BATCH_PAGES => Ok([DESTROY_BATCH, 0, 0]),
        cap::ENABLE_DEMAND_PAGING | cap::ENABLE_IDLE => {
            registry::get(id)?;
            Ok([0; 3])
        }
        cap::BLOCK_BASED_DEMAND_PAGING => block_paging(id, arg0, arg1),
        cap::PROTECTED_VM if arg0 == cap::protected::SET_PROTECTED_VM => {
            let vm = registry::get(id)?;
            vm.vm().ok_or(Error::Invalid)?.protect(None)?;
            Ok([0; 3])
        }
        cap::PROTECTED_VM if arg0 == cap::protected::GET_PVMFW_SIZE => {
            registry::get(id)?;
            Ok([firmware::size().ok_or(Error::NotSupported)?, 0, 0])
        }
        cap::PROTECTED_VM if arg0 == cap::protected::SET_PVMFW_GPA => {
            let vm = registry::get(id)?;
            let size = firmware::size().ok_or(Error::NotSupported)?;
            let window = Window::new(Ipa(arg1)).ok_or(Error::Invalid)?;
            let vm = vm.vm().ok_or(Error::Invalid)?;
            if !vm.memory.lock().slots.hold(Ipa(arg1), size) {
                return Err(Error::Invalid);
            }
            vm.protect(Some(window))?;
            Ok([0; 3])
        }
        _ => {
            registry::get(id)?;
            Err(Error::NotSupported)
        }
    }
}

/// x3 = block size, x4 = PA of the mailbox page.
fn block_paging(id: u64, size: u64, mailbox: u64) -> Result<Results, Error> {
    if size != BLOCK_2M {
        return Err(Error::Invalid);
    }
    let page = PaRange::new(Pa(mailbox), PAGE_SIZE).map_err(|_| Error::Invalid)?;
    let vm = registry::get(id)?;
    let vm = vm.vm().ok_or(Error::Invalid)?;
    let mut memory = vm.memory.lock();
    if memory.mailbox.is_some() {
        return Err(Error::Invalid);
    }
    share(page).map_err(|_| Error::Fault)?;
    memory.mailbox = Some(SharedPages::new(page));
    Ok([0; 3])
}
