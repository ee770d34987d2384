// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The state of a granule (4 KiB of RAM): who owns it, and with whom it is shared. The one table of
//! what may become of it.
//!
//! ```text
//!                        ShareWithVm (+1)
//!                        UnshareWithVm (-1)
//!                          +-----------+
//!  +------------+ ShareWithVm  +---------------+
//!  |            |------------->| HostShared(n) |
//!  |    Host    |<-------------| n >= 1        |
//!  |            | UnshareWithVm, n = 1 --------+
//!  |            | DonateToVm(v)   +-------+ VmShare(v)   +-------------+
//!  |            |---------------->| Vm(v) |------------->| VmShared(v) |
//!  |            |                 |       |<-------------|             |
//!  +------------+                 +-------+ VmUnshare(v) +-------------+
//!    |  ^     ^                       | take(v)               | take(v)
//!    |  |     | give_back (scrubbed)  v                       |
//!    |  |     +------------------- +-------+ <----------------+
//!    |  | HypervisorToHost         | Dirty |
//!    |  +------------ +------------+-------+
//!    +--------------->| Hypervisor |
//!     HostToHypervisor+------------+
//! ```
//!
//! | state | content is protected by | who holds references |
//! |---|---|---|
//! | Hypervisor | no stage-2 table maps it | the hypervisor |
//! | Host | only the host's table maps it | the host |
//! | HostShared(n) | nothing: the host reads and writes it | the host, and n mappings in unprotected VMs |
//! | Vm(v) | only v's table maps it; annotated in the host's | VM v |
//! | VmShared(v) | nothing, by v's will | VM v and the host |
//! | Dirty | no table maps it | whoever holds the [`super::ownership::Dirty`] token |
//!
//! Every pair that [`next`] does not name is refused. Devices are not RAM and have no granules here;
//! a state "VM shared with VM" is to come with memory objects.

use crate::addr::VmId;

/// Who owns a granule, and how it is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// The hypervisor's own.
    Hypervisor,
    /// The host's alone.
    Host,
    /// The host's, and mapped this many times (1 or more) into unprotected VMs.
    HostShared(u16),
    /// Donated to a protected VM: the host must not reach it.
    Vm(VmId),
    /// A protected VM's, which lets the host see it.
    VmShared(VmId),
    /// Taken from a VM and not yet scrubbed: nobody's.
    Dirty,
}

/// Something that host, hypervisor or a VM asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transition {
    /// The host gives a page to the hypervisor.
    HostToHypervisor,
    /// The hypervisor gives a page to the host: at boot, or a page that it has zeroed.
    HypervisorToHost,
    /// The host gives a page to a protected VM.
    DonateToVm(VmId),
    /// The host's page is mapped into an unprotected VM, once more.
    ShareWithVm,
    /// One mapping in an unprotected VM is gone.
    UnshareWithVm,
    /// A protected VM lets the host see its page.
    VmShare(VmId),
    /// A protected VM takes that back.
    VmUnshare(VmId),
}

/// What a run of granules goes through: a [`Transition`], or a step of the way back from a VM, which
/// only the tokens of [`super::ownership`] can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Ordinary(Transition),
    /// The VM is gone, or gives the page up.
    Take(VmId),
    /// The page has been scrubbed.
    GiveBack,
}

/// Why a granule can't make a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The table does not name the pair.
    State,
    /// The count of mappings is at its end.
    Overflow,
}

/// The transition table.
pub(super) fn next(state: State, step: Step) -> Result<State, Refused> {
    use State::{Dirty, Host, HostShared, Hypervisor, Vm, VmShared};
    use Transition as T;
    match (step, state) {
        (Step::Ordinary(T::HostToHypervisor), Host) => Ok(Hypervisor),
        (Step::Ordinary(T::HypervisorToHost), Hypervisor) => Ok(Host),
        (Step::Ordinary(T::DonateToVm(vm)), Host) => Ok(Vm(vm)),
        (Step::Ordinary(T::ShareWithVm), Host) => Ok(HostShared(1)),
        (Step::Ordinary(T::ShareWithVm), HostShared(n)) => {
            n.checked_add(1).map(HostShared).ok_or(Refused::Overflow)
        }
        (Step::Ordinary(T::UnshareWithVm), HostShared(n)) => match n.checked_sub(1) {
            None => Err(Refused::State),
            Some(0) => Ok(Host),
            Some(left) => Ok(HostShared(left)),
        },
        (Step::Ordinary(T::VmShare(vm)), Vm(owner)) if owner == vm => Ok(VmShared(vm)),
        (Step::Ordinary(T::VmUnshare(vm)), VmShared(owner)) if owner == vm => Ok(Vm(vm)),
        (Step::Take(vm), Vm(owner) | VmShared(owner)) if owner == vm => Ok(Dirty),
        (Step::GiveBack, Dirty) => Ok(Host),
        _ => Err(Refused::State),
    }
}

/// A state in 32 bits, as the ownership table keeps it: kind in bits 3:0, VM or count in bits 31:16.
/// All zero is [`State::Hypervisor`], so that forgotten memory is nobody else's.
impl State {
    pub(super) const fn encode(self) -> u32 {
        let (kind, value) = match self {
            Self::Hypervisor => (0, 0),
            Self::Host => (1, 0),
            Self::HostShared(n) => (2, n),
            Self::Vm(vm) => (3, vm.0),
            Self::VmShared(vm) => (4, vm.0),
            Self::Dirty => (5, 0),
        };
        kind | (value as u32) << 16
    }

    /// `None` for what [`Self::encode`] never makes.
    pub(super) const fn decode(entry: u32) -> Option<Self> {
        let value = (entry >> 16) as u16;
        Some(match entry & 0xFFFF {
            0 => Self::Hypervisor,
            1 => Self::Host,
            2 => Self::HostShared(value),
            3 => Self::Vm(VmId(value)),
            4 => Self::VmShared(VmId(value)),
            5 => Self::Dirty,
            _ => return None,
        })
    }
}
