// SPDX-License-Identifier: GPL-2.0-only
//! Calls of the hypervisor.
//!
//! A status becomes an errno in one place, [`errno`].

use gzvm_abi::hypercall::{Function, Status, Tuple, host_access};

use crate::kernel::{Error, Result, code, hvc, task};

/// x1..x3 of a call that succeeded.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    /// x1.
    pub x1: u64,
    /// x2.
    pub x2: u64,
    /// x3.
    pub x3: u64,
}

/// The errno for x0 of a call that failed. What is no status of the ABI is EINVAL.
fn errno(x0: u64) -> Result {
    Err(match Status::from_x0(x0) {
        Some(Status::Success) => return Ok(()),
        Some(Status::NoMemory) => code::ENOMEM,
        Some(Status::InvalidArgs) | None => code::EINVAL,
        Some(Status::NotSupported | Status::NotImplemented) => code::EOPNOTSUPP,
        Some(Status::Busy) => code::EAGAIN,
        Some(Status::Fault) => code::EFAULT,
    })
}

fn raw<const N: usize>(function: Function, args: [u64; N]) -> (u64, Reply) {
    const { assert!(N <= 7) };
    let x = |n: usize| args.get(n).copied().unwrap_or(0);
    let mut regs = [function.fid().into(), x(0), x(1), x(2), x(3), x(4), x(5), x(6)];
    hvc(&mut regs);
    let [x0, x1, x2, x3, ..] = regs;
    (x0, Reply { x1, x2, x3 })
}

/// Calls `function` with `args` in x1 and up.
pub fn call<const N: usize>(function: Function, args: [u64; N]) -> Result<Reply> {
    let (x0, reply) = raw(function, args);
    errno(x0).map(|()| reply)
}

/// RUN: the status, and the exit reason, which counts even if the status is an error.
pub fn run(vcpu: Tuple) -> (Result, u32) {
    let (x0, reply) = raw(Function::Run, [vcpu.to_reg(), 0]);
    (errno(x0), reply.x1 as u32)
}

/// `f` until it is not [`EAGAIN`](code::EAGAIN), at most `tries` times, with `pause` between.
pub fn retry<T>(
    tries: u32,
    mut f: impl FnMut() -> Result<T>,
    mut pause: impl FnMut() -> Result,
) -> Result<T> {
    let mut left = tries;
    loop {
        match f() {
            Err(code::EAGAIN) if left > 1 => {
                left -= 1;
                pause()?;
            }
            other => return other,
        }
    }
}

/// Makes a call that the hypervisor works off in steps until it is done. ERESTARTSYS: a signal came first; the same
/// call again goes on where this one stopped.
pub fn in_steps(mut f: impl FnMut() -> Result<Reply>) -> Result {
    loop {
        match f() {
            Err(code::EAGAIN) => {}
            other => return other.map(drop),
        }
        if task::signal_pending() {
            return Err(code::ERESTARTSYS);
        }
        task::cond_resched();
    }
}

/// Whether the host may access a page just now, and whether it is the host's alone. Where the hypervisor can't say: neither.
pub fn host_access(pfn: u64) -> (bool, bool) {
    call(Function::HostAccess, [host_access::QUERY, pfn, 1])
        .map_or((false, false), |reply| (reply.x1 & 1 != 0, reply.x2 & 1 != 0))
}

/// The negative number user space sees.
pub fn to_long(result: Result<i64>) -> i64 {
    result.unwrap_or_else(|e: Error| e.to_errno().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_becomes_errno() {
        let of = |x0: i32| errno(x0 as u32 as u64);
        assert_eq!(of(0), Ok(()));
        assert_eq!(of(-5), Err(code::ENOMEM));
        assert_eq!(of(-8), Err(code::EINVAL));
        assert_eq!(of(-24), Err(code::EOPNOTSUPP));
        assert_eq!(of(-27), Err(code::EOPNOTSUPP));
        assert_eq!(of(-33), Err(code::EAGAIN));
        assert_eq!(of(-40), Err(code::EFAULT));
        assert_eq!(of(-1), Err(code::EINVAL));
        assert_eq!(of(7), Err(code::EINVAL));
        // Only the low half counts.
        assert_eq!(errno(0xFFFF_FFFF_0000_0000), Ok(()));
    }
}
