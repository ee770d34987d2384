// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A running VM in the hands of others: each `gz run` has a name in the run directory ([`names`]) and listens at a control
//! socket ([`server`]); `gz ps`, `info`, `pause` and their like ([`client`], [`commands`](crate::commands)) talk to it in
//! [`schema`].

pub mod client;
mod line;
pub mod names;
pub mod schema;
pub mod server;
