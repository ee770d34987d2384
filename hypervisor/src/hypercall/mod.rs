// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Hypercalls of the host's driver: one dispatch table, one service a file.
//!
//! Each handler takes the argument registers as the host left them, trusts none of them, and
//! returns the values of x1..x3 or an error. Errors become status codes in [`Error::status`] and
//! nowhere else. No handler blocks, loops without a bound, or panics.

mod capability;
mod control;
#[cfg(feature = "crash-test")]
pub mod crash;
mod device;
mod features;
mod host_access;
mod info;
mod measurement;
mod memory;
mod rpc;
mod vcpu;
mod vm;
mod watch;

use gzvm_abi::hypercall::{Function, Status, Tuple};
use gzvm_core::platform::smccc::NOT_SUPPORTED;

use crate::arch::frame::HostFrame;
use crate::guest::memory::MapFailure;
use crate::guest::registry::{self, LookupError, VmRef};
use crate::guest::vm::CreateError;

/// x1..x7.
type Args = [u64; 7];
/// x1..x3.
type Results = [u64; 3];

/// What a call can fail with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Error {
    /// An argument is no good.
    Invalid,
    /// It is in use, or not finished.
    Busy,
    /// Out of memory, ids or quota.
    NoMemory,
    /// An address is not the host's to use.
    Fault,
    /// There is no such thing.
    NotSupported,
    /// A reserved function.
    NotImplemented,
}

impl Error {
    /// The one place where errors become status codes.
    const fn status(self) -> Status {
        match self {
            Self::Invalid => Status::InvalidArgs,
            Self::Busy => Status::Busy,
            Self::NoMemory => Status::NoMemory,
            Self::Fault => Status::Fault,
            Self::NotSupported => Status::NotSupported,
            Self::NotImplemented => Status::NotImplemented,
        }
    }
}

impl From<LookupError> for Error {
    fn from(e: LookupError) -> Self {
        match e {
            LookupError::NoVm => Self::Invalid,
            LookupError::Busy => Self::Busy,
        }
    }
}

impl From<CreateError> for Error {
    fn from(e: CreateError) -> Self {
        match e {
            CreateError::NoMemory | CreateError::TooMany => Self::NoMemory,
            CreateError::Exists => Self::Invalid,
            CreateError::BadPages => Self::Fault,
        }
    }
}

impl From<MapFailure> for Error {
    fn from(e: MapFailure) -> Self {
        match e {
            MapFailure::Invalid => Self::Invalid,
            MapFailure::NotHosts => Self::Fault,
            MapFailure::NoMemory => Self::NoMemory,
            MapFailure::Protected | MapFailure::Dma => Self::NotSupported,
        }
    }
}

/// An HVC #0 of the host.
pub fn dispatch(frame: &mut HostFrame) {
    #[cfg(feature = "crash-test")]
    if crash::intercept(&mut frame.x) {
        return;
    }
    let Some(function) = Function::from_fid(frame.x[0]) else {
        // Not ours: SMCCC's "unknown function".
        frame.x[0] = NOT_SUPPORTED;
        return;
    };
    let args: Args = core::array::from_fn(|n| frame.x[n + 1]);
    let outcome = match function {
        Function::CreateVm => vm::create(args),
        Function::DestroyVm => vm::destroy(args),
        Function::CreateVcpu => vcpu::create(args),
        Function::DestroyVcpu => vcpu::destroy(args),
        Function::Run => vcpu::run(args),
        Function::GetOneReg => vcpu::get_register(args),
        Function::SetOneReg => vcpu::set_register(args),
        Function::IrqLine => device::irq_line(args),
        Function::IrqLevel => device::irq_level(args),
        Function::CreateDevice => device::create(args),
        Function::VgicSpis => device::set_spis(args),
        Function::SetMemregion => memory::set_region(args),
        Function::MemregionPurpose => memory::announce(args),
        Function::MapGuest => memory::map(args),
        Function::MapGuestBlock => memory::map_block(args),
        Function::UnmapGuest => memory::unmap(args),
        Function::RemoveMemregion => memory::remove_region(args),
        Function::GiveMemory => memory::give(args),
        Function::SetDtbConfig => memory::device_tree(args),
        Function::GetStatistics => vm::statistics(args),
        Function::InformExit => vm::inform_exit(args),
        Function::Probe => info::probe(args),
        Function::ExtInfo => info::extensions(args),
        Function::ExtCounter => info::counter(args),
        Function::Control => control::control(args),
        Function::SetWatch => watch::set(args),
        Function::HostAccess => host_access::host_access(args),
        Function::Measurement => measurement::measurement(args),
        Function::VmFeatures => features::give(args),
        Function::RpcPolicy => rpc::set_policy(args),
        Function::RpcConnect => rpc::connect(args),
        Function::RpcMessage => rpc::message(args),
        Function::RpcClose => rpc::close(args),
        Function::EnableCap => capability::enable(args),
        Function::GetRegs | Function::SetRegs => Err(Error::NotImplemented),
    };
    let (status, [x1, x2, x3]) = match outcome {
        Ok(results) => (Status::Success, results),
        Err(e) => (e.status(), [0; 3]),
    };
    frame.x[0] = status.to_x0();
    frame.x[1] = x1;
    frame.x[2] = x2;
    frame.x[3] = x3;
}

/// The VM and vCPU number of a tuple argument.
fn tuple(x1: u64) -> Result<(VmRef, u16), Error> {
    let tuple = Tuple::from_reg(x1).ok_or(Error::Invalid)?;
    Ok((registry::get(u64::from(tuple.vm))?, tuple.vcpu))
}
