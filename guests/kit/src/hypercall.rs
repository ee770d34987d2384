// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The hypercalls of a GenieZone host, by HVC.

use gzvm_abi::counter::Counter;
use gzvm_abi::hypercall::{Function, Status};

use crate::smccc::Conduit;

/// x0..x3 of a finished call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// x0.
    pub x0: u64,
    /// x1 to x3.
    pub values: [u64; 3],
}

impl Reply {
    /// x0 as a status, if it is one.
    pub fn status(&self) -> Option<Status> {
        Status::from_x0(self.x0)
    }

    /// Whether x0 says success.
    pub fn ok(&self) -> bool {
        self.status() == Some(Status::Success)
    }
}

/// Calls `function` with up to seven arguments in x1...
pub fn call(function: Function, args: &[u64]) -> Reply {
    let x = Conduit::Hvc.call(function.fid().into(), args);
    Reply { x0: x[0], values: [x[1], x[2], x[3]] }
}

/// Value of a counter of the hypervisor.
pub fn counter(counter: Counter) -> Option<u64> {
    let reply = call(Function::ExtCounter, &[counter.index() as u64]);
    reply.ok().then_some(reply.values[0])
}
