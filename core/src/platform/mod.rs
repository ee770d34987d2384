// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The virtual platform that a guest finds, and what the host may ask of the firmware.
//!
//! | module | what |
//! |---|---|
//! | [`psci`] | a guest's power states and calls (PSCI 1.1) |
//! | [`smccc`] | which firmware and hypervisor calls a guest is answered |
//! | [`lending`] | a protected guest's calls about memory that it shares with others |
//! | [`trng`], [`entropy`] | random numbers for guests: the calls, and what tests and conditions the source |
//! | [`timer`] | the physical timer that a guest is shown |
//! | [`host_calls`] | which SMCs of the host go to the firmware |
//! | [`redistributor`] | what the host may do to its GIC where that is kept from memory |
//! | [`id_registers`] | what of the CPU a guest is told |
//! | [`watch`] | which of a guest's exceptions somebody wants to know of |

pub mod entropy;
pub mod host_calls;
pub mod id_registers;
pub mod lending;
pub mod psci;
pub mod redistributor;
pub mod smccc;
pub mod timer;
pub mod trng;
pub mod watch;
