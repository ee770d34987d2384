// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory between protected VMs: what two share the host does not reach, nor a third ([`rights`]); and what becomes of it as
//! they come and go ([`ends`]). Both VMs run one [`program`], which the test tells what to do ([`guest`]).

mod ends;
pub mod guest;
pub mod program;
mod rights;

pub use gzvm_abi::guest::{VM_MEM_READ as READ, VM_MEM_READ_WRITE as READ_WRITE};
use gzvm_guest_kit::case::Case;
use gzvm_guest_kit::cases;

use crate::programs::RAM;
use ends::*;
use rights::*;

pub const CASES: &[Case] = cases!["lending":
    two_vms_exchange_what_the_host_cannot_see, read_only_is_read_only, nobody_but_the_named_one, where_it_may_be,
    taken_back_while_mapped, one_thing_at_a_time, borrower_dies, owner_dies, both_die, the_next_vm_of_this_id,
    books_are_full, many_pages_are_shown_at_once, races, taken_away_while_the_other_looks,
];

const OK: u64 = 0;
const NOT_SUPPORTED: u64 = -1i64 as u64;
const INVALID: u64 = -3i64 as u64;
const NO_MEMORY: u64 = -4i64 as u64;
/// Where a guest has no slot, no GIC and no device.
pub const WINDOW: u64 = 0x7000_0000;
const SECRET: u64 = 0x5EC2_E75E_C2E7;
/// The page that guests share, in their memory.
const PAGE: u64 = RAM + 0x4000;
