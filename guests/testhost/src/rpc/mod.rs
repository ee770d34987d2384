// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Channels: what goes through them ([`messages`]), who may use them ([`rights`]), and what becomes of them as VMs come and go
//! ([`lives`]), what goes with them ([`grants`]), and what it takes ([`costs`]). The VMs do what the test tells them ([`crate::lending::guest`]); [`ends`] has both sides of a channel.

mod costs;
mod ends;
mod grants;
mod lives;
mod messages;
mod rights;

use gzvm_guest_kit::case::Case;
use gzvm_guest_kit::cases;

use costs::*;
use grants::*;
use lives::*;
use messages::*;
use rights::*;

pub const CASES: &[Case] = cases!["rpc":
    calls_and_replies, notices_in_order, with_the_host, flood_hurts_the_sender_alone, deadlines, cancelled_at_each_point, messages_in_memory, doorbell,
    foreign_wrong_and_stale_handles, policy, arguments, peer_dies_at_each_point, host_closes, guest_closes, as_many_as_a_vm_may_have,
    grant_is_back_with_the_reply, grant_is_back_however_a_call_ends, grant_and_peer_that_dies, grants_that_are_refused, grant_withdrawn, grants_overlap, grants_race,
    two_cpus, destroyed_while_calling, many_calls, with_the_host_many_calls, instructions,
];
