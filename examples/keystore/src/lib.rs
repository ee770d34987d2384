// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A key store: the example that other services are copied from. `docs/rpc.md` goes through it.
//!
//! [`protocol`] is what is said, for both sides. [`store`] is what decides: the service itself without anything that only a guest
//! has, so that its tests run on any PC. The guest is `guests/keystore`, callers are `client/` and `guests/keyuser`.
//!
//! Who calls is not said in a request: the hypervisor tells the service ([`protocol::Caller`]).

#![no_std]
#![forbid(unsafe_code)]

pub mod protocol;
pub mod store;
