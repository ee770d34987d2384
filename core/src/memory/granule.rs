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
//!    |  |             |            |   ^
//!    |  +------------ +------------+   |
//!    +--------------->| Hypervisor |---+ spare
//!     HostToHypervisor+------------+
//!
//!  +-------+ VmLend(l)    +---------+ VmRetrieve(l)   +--------------+
//!  | Vm(v) |------------->| Lent(l) |---------------->| Retrieved(l) |    l.owner = v
//!  |       |<-------------|         |<----------------|              |
//!  +-------+ VmReclaim(l) +---------+ VmRelinquish(l) +--------------+
//! ```
//!
//! | state | content is protected by | who holds references |
//! |---|---|---|
//! | Hypervisor | no stage-2 table maps it | the hypervisor |
//! | Host | only the host's table maps it | the host |
//! | HostShared(n) | nothing: the host reads and writes it | the host, and n mappings in unprotected VMs |
//! | Vm(v) | only v's table maps it; annotated in the host's | VM v |
//! | VmShared(v) | nothing, by v's will | VM v and the host |
//! | Lent(l) | only l.owner's table maps it; its borrower may ask for it | VM l.owner |
//! | Retrieved(l) | only the tables of l.owner and l.borrower map it | both |
//! | Dirty | no table maps it | whoever holds the [`super::ownership::Dirty`] token |
//!
//! Every pair that [`next`] does not name is refused; so a page is never lent and shown to the host at once, and what
//! is lent can't be taken from its owner before the borrower has lost it. Devices are not RAM and have no granules here.

use crate::addr::VmId;
use crate::broken::{Mistake, broken};

/// A protected VM's page that another one may see. The owner keeps its access, as in FF-A's FFA_MEM_SHARE (Arm DEN0077A),
/// whose lender and borrower these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Loan {
    /// Whose page it is.
    pub owner: VmId,
    /// Who may map it: another VM, up to [`Loan::MAX_BORROWER`].
    pub borrower: VmId,
    /// The borrower may write.
    pub write: bool,
}

impl Loan {
    /// The largest id of a borrower: what fits an entry of the ownership table.
    pub const MAX_BORROWER: VmId = VmId(0xFFF);

    fn is_sound(&self) -> bool {
        self.owner != self.borrower && self.borrower <= Self::MAX_BORROWER
    }
}

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
    /// A protected VM's, which lets another one map it.
    Lent(Loan),
    /// The same, and the borrower has it mapped.
    Retrieved(Loan),
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
    /// A protected VM lets another one map its page.
    VmLend(Loan),
    /// The borrower maps it.
    VmRetrieve(Loan),
    /// The borrower's mapping is gone, TLB included.
    VmRelinquish(Loan),
    /// The owner takes that back.
    VmReclaim(Loan),
}

/// What a run of granules goes through: a [`Transition`], or a step of the way back from a VM or the hypervisor, which
/// only the tokens of [`super::ownership`] can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Ordinary(Transition),
    /// The VM is gone, or gives the page up.
    Take(VmId),
    /// The page has been scrubbed.
    GiveBack,
    /// The hypervisor does not need the page any more, which was the host's before.
    Spare,
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
#[inline]
pub(super) fn next(state: State, step: Step) -> Result<State, Refused> {
    use State::{Dirty, Host, HostShared, Hypervisor, Lent, Retrieved, Vm, VmShared};
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
        (Step::Ordinary(T::VmLend(loan)), Vm(owner)) if owner == loan.owner && loan.is_sound() => {
            Ok(Lent(loan))
        }
        (Step::Ordinary(T::VmRetrieve(loan)), Lent(lent)) if lent == loan => Ok(Retrieved(loan)),
        (Step::Ordinary(T::VmRelinquish(loan)), Retrieved(lent)) if lent == loan => Ok(Lent(loan)),
        (Step::Ordinary(T::VmReclaim(loan)), Lent(lent)) if lent == loan => Ok(Vm(loan.owner)),
        (Step::Ordinary(T::VmShare(_)), Lent(loan)) if broken(Mistake::LentAndShown) => {
            Ok(VmShared(loan.owner))
        }
        (Step::Take(vm), Vm(owner) | VmShared(owner)) if owner == vm => Ok(Dirty),
        (Step::Spare, Hypervisor) => Ok(Dirty),
        (Step::GiveBack, Dirty) => Ok(Host),
        _ => Err(Refused::State),
    }
}

/// A state in 32 bits, as the ownership table keeps it: kind in bits 3:0, borrower in bits 15:4, VM or count in bits
/// 31:16. All zero is [`State::Hypervisor`], so that forgotten memory is nobody else's.
impl State {
    pub(super) const fn encode(self) -> u32 {
        let (kind, value, borrower) = match self {
            Self::Hypervisor => (0, 0, 0),
            Self::Host => (1, 0, 0),
            Self::HostShared(n) => (2, n, 0),
            Self::Vm(vm) => (3, vm.0, 0),
            Self::VmShared(vm) => (4, vm.0, 0),
            Self::Dirty => (5, 0, 0),
            Self::Lent(loan) => (6 | loan.write as u32, loan.owner.0, loan.borrower.0),
            Self::Retrieved(loan) => (8 | loan.write as u32, loan.owner.0, loan.borrower.0),
        };
        kind | (borrower as u32 & 0xFFF) << 4 | (value as u32) << 16
    }

    /// `None` for what [`Self::encode`] never makes.
    pub(super) const fn decode(entry: u32) -> Option<Self> {
        let value = (entry >> 16) as u16;
        let borrower = (entry >> 4 & 0xFFF) as u16;
        let loan = Loan { owner: VmId(value), borrower: VmId(borrower), write: entry & 1 != 0 };
        Some(match (entry & 0xF, borrower) {
            (0, 0) => Self::Hypervisor,
            (1, 0) => Self::Host,
            (2, 0) => Self::HostShared(value),
            (3, 0) => Self::Vm(VmId(value)),
            (4, 0) => Self::VmShared(VmId(value)),
            (5, 0) => Self::Dirty,
            (6 | 7, _) => Self::Lent(loan),
            (8 | 9, _) => Self::Retrieved(loan),
            _ => return None,
        })
    }
}
