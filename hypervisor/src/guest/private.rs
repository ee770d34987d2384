// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory of protected VMs: how it leaves the host's sight, and how it comes back.
//!
//! ```text
//!   host's page --donate--> VM's page --share--> host sees it too --unshare--> VM's page
//!        ^                      |                       |
//!        +---- give_back -------+------- take ----------+     scrubbed in between
//! ```
//! What VMs lend to each other ([`super::lending`]) is a matter of ownership and of their own tables; the host's are not touched.
//!
//! The content goes along with a donation (the host loads a VM's first image), never with the way back. The host's stage-2
//! entry is gone, TLB included, before a page counts as the VM's; a page that is the host's again may be missing in the
//! host's tables, and is put there when the host touches it ([`crate::host::repair`]).
//!
//! A block that the host gives for a VM's tables ([`take_for_tables`]) goes the same ways, and is the hypervisor's in between.
//!
//! A donation that splits a block of the host's takes a page for the host's table. The host's account has it, and the VM's
//! pays for it too, until a return joins the block again.
//!
//! Lock order: VM, host's stage 2, ownership, pool.

use gzvm_core::addr::VmId;
use gzvm_core::memory::PaRange;
use gzvm_core::memory::given::Unusable;
use gzvm_core::memory::loans::Pages;
use gzvm_core::memory::ownership::{Dirty, State, Transition};

use super::memory::MapFailure;
use crate::host;
use crate::mem;
use crate::mem::pool::Account;
use crate::platform;
use gzvm_core::broken::{Mistake, broken};

/// The host's memory becomes a protected VM's, which pays for the tables that the host needs more of then.
pub fn donate(vm: VmId, memory: PaRange, account: &mut Account) -> Result<(), MapFailure> {
    leave_host(memory, Transition::DonateToVm(vm), |pages| {
        broken(Mistake::UnpaidTables) || account.charge_caused(pages).is_ok()
    })
}

/// A block of the host's becomes one for the tables of this account's VM.
pub fn take_for_tables(block: PaRange, account: &mut Account) -> Result<(), MapFailure> {
    account.given().add(block).map_err(|e| match e {
        Unusable::Full => MapFailure::NoMemory,
        Unusable::NoBlock => MapFailure::Invalid,
    })?;
    let gone = leave_host(block, Transition::HostToHypervisor, |pages| account.charge_caused(pages).is_ok());
    if gone.is_err() {
        // Nothing was taken from it.
        let _ = account.given().remove();
    }
    gone
}

/// The next block that the host gave for tables, which are gone, to be scrubbed.
pub fn spare_block(account: &mut Account) -> Option<Dirty> {
    loop {
        let (block, free) = account.given().remove()?;
        if !free {
            log::error!("tables are left in {block:?}, which stays the hypervisor's");
            continue;
        }
        match platform::ownership().lock().spare(block) {
            Ok(dirty) => return Some(dirty),
            Err(e) => log::error!("spare {block:?}: {e} (hypervisor bug)"),
        }
    }
}

/// A protected VM lets the host see its page.
pub fn share(vm: VmId, page: PaRange) -> Result<(), MapFailure> {
    host::with(|host| {
        let shared = platform::ownership().lock().apply(page, Transition::VmShare(vm));
        shared.map_err(|_| MapFailure::Invalid)?;
        host.show(page);
        Ok(())
    })
}

/// Does it let the host see this page?
pub fn is_shared(vm: VmId, page: PaRange) -> bool {
    platform::ownership().lock().state(page.start()) == Ok(State::VmShared(vm))
}

/// It takes that back.
pub fn unshare(vm: VmId, page: PaRange) -> Result<(), MapFailure> {
    leave_host(page, Transition::VmUnshare(vm), |_| true)
}

/// Out of the host's tables, and then out of its hands; unless nobody pays for the pages that its tables took for that.
fn leave_host(
    memory: PaRange,
    transition: Transition,
    pay: impl FnOnce(u64) -> bool,
) -> Result<(), MapFailure> {
    host::with(|host| {
        let mut ownership = platform::ownership().lock();
        let permit = ownership.check(memory, transition).map_err(|_| MapFailure::NotHosts)?;
        let before = host.table_pages();
        let again = matches!(transition, Transition::VmUnshare(_));
        if !broken(if again { Mistake::NoHideAgain } else { Mistake::NoHide }) {
            host.hide(memory)?;
        }
        if !pay(host.table_pages().saturating_sub(before)) {
            host.show(memory);
            return Err(MapFailure::NoMemory);
        }
        permit.commit();
        Ok(())
    })
}

/// Whether a page is the VM's, and lent to nobody.
pub fn owns(vm: VmId, page: PaRange) -> bool {
    let state = platform::ownership().lock().state(page.start());
    matches!(state, Ok(State::Vm(owner) | State::VmShared(owner)) if owner == vm)
}

/// A step of lending, for all of `pages` or for none.
pub fn lending_step(pages: &Pages, step: Transition) -> Result<(), MapFailure> {
    let mut ownership = platform::ownership().lock();
    let pages = || pages.iter().filter_map(|pa| PaRange::page_of(*pa));
    for page in pages() {
        ownership.check(page, step).map_err(|_| MapFailure::Invalid).map(drop)?;
    }
    for page in pages() {
        ownership.apply(page, step).map_err(|_| MapFailure::Invalid)?;
    }
    Ok(())
}

/// Takes memory from a VM that does not reach it any more. What it shared stays in the host's tables: of that the host
/// knows the content.
pub fn take(vm: VmId, memory: PaRange) -> Option<Dirty> {
    let taken = platform::ownership().lock().take(memory, vm);
    taken.inspect_err(|e| log::error!("take {memory:?}: {e} (hypervisor bug)")).ok()
}

/// Scrubs the next `pages` of some memory, and gives all of it to the host with the last; what is left to be scrubbed before.
pub fn give_back(dirty: Dirty, pages: u64, account: &mut Account) -> Option<Dirty> {
    let scrubbed = match mem::scrub(dirty, pages) {
        Ok(scrubbed) => scrubbed,
        Err(rest) => return Some(rest),
    };
    let _ = host::with(|host| {
        let before = host.table_pages();
        match platform::ownership().lock().give_back(scrubbed) {
            Ok(memory) => host.show(memory),
            Err(e) => log::error!("give back: {e} (hypervisor bug)"),
        }
        account.refund_caused(before.saturating_sub(host.table_pages()));
        Ok(())
    });
    None
}
