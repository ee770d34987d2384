// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System calls, by seccomp: a list for each [`Role`]. No role has execve, sockets of its own but Unix ones of the main
//! thread and of those that look for back ends, or new executable memory.
//!
//! ```text
//!  Main ⊇ Vcpu ⊇ Device, Switch      Main ⊇ BackEnd      Main ⊇ Control      Main ⊇ Helper      all ⊇ COMMON
//! ```

use std::collections::BTreeMap;

use anyhow::Context;
use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::Role;

/// Of every thread: memory, threads, clocks, and files that are open.
const COMMON: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    // Threads start threads. Processes they could only make of themselves: there is no execve.
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_close,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    // Filters only take away.
    libc::SYS_seccomp,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Of older architectures, which have several names for the same.
#[cfg(target_arch = "x86_64")]
const ALSO: &[c_long] = &[libc::SYS_getpgrp, libc::SYS_poll, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const ALSO: &[c_long] = &[];

/// Of devices: data of files and sockets that are open.
const DATA: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    // A qcow2 image grows by clusters.
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];

/// Of the control socket, which listens already.
const CONTROL: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    // With files: of VMs that call this one, and of channels.
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];

/// Of what waits for signals, and asks whose terminal it is.
const HELPER: &[c_long] = &[libc::SYS_getpgid, libc::SYS_rt_sigtimedwait];

/// Of making another VM after a reset, and of the end.
const MAKING: &[c_long] = &[
    // Unix sockets of back ends that run as other programs.
    libc::SYS_connect,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_getcwd,
    // Back ends that gz has started end with it.
    libc::SYS_kill,
    libc::SYS_memfd_create,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pidfd_send_signal,
    libc::SYS_readlinkat,
    libc::SYS_statx,
    libc::SYS_unlinkat,
    libc::SYS_wait4,
    libc::SYS_waitid,
];

#[cfg(target_arch = "x86_64")]
const MAKING_ALSO: &[c_long] =
    &[libc::SYS_open, libc::SYS_readlink, libc::SYS_stat, libc::SYS_lstat, libc::SYS_unlink];
#[cfg(not(target_arch = "x86_64"))]
const MAKING_ALSO: &[c_long] = &[];

/// The type of an ioctl's request: `_IOC_TYPE`.
const IOCTL_TYPE: u64 = 0xFF00;
const TTY: u64 = 0x5400;
const KVM: u64 = 0xAE00;
const GZVM: u64 = 0x9200;
const BLOCK: u64 = 0x1200;
const VHOST: u64 = 0xAF00;

/// `prctl`: a thread's name, memory's name (the C library's), and what filters need.
const PRCTLS: [u64; 3] = [libc::PR_SET_NAME as u64, 0x5356_4D41, libc::PR_SET_NO_NEW_PRIVS as u64];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The filter of a role.
///
/// # Errors
/// None that depends on the machine.
pub fn filter(role: Role) -> anyhow::Result<BpfProgram> {
    let lists: &[&[c_long]] = match role {
        Role::Main => &[COMMON, ALSO, DATA, CONTROL, HELPER, MAKING, MAKING_ALSO],
        Role::Vcpu | Role::Device => &[COMMON, ALSO, DATA],
        Role::BackEnd => &[COMMON, ALSO, DATA, &[libc::SYS_connect]],
        Role::Control => &[COMMON, ALSO, CONTROL],
        Role::Helper => &[COMMON, ALSO, HELPER],
        Role::Switch => &[COMMON, ALSO],
    };
    let ioctls: &[u64] = match role {
        Role::Main => &[TTY, KVM, GZVM, BLOCK, VHOST],
        // A driver that starts a device.
        Role::Vcpu => &[TTY, KVM, GZVM, BLOCK, VHOST],
        // Pages that the guest gave back.
        Role::Device => &[TTY, GZVM, BLOCK],
        Role::BackEnd => &[TTY],
        // Pause and resume.
        Role::Control => &[TTY, GZVM],
        Role::Helper => &[TTY],
        // Taps have the type of terminals.
        Role::Switch => &[TTY, VHOST],
    };
    let mut rules: Rules =
        lists.iter().flat_map(|list| list.iter()).map(|&call| (call, Vec::new())).collect();
    let executable = libc::PROT_EXEC as u64;
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![rule(2, Op::MaskedEq(executable), 0)?]);
    }
    rules.insert(libc::SYS_ioctl, any(1, Op::MaskedEq(IOCTL_TYPE), ioctls)?);
    if matches!(role, Role::Main | Role::BackEnd) {
        rules.insert(libc::SYS_socket, vec![rule(0, Op::Eq, libc::AF_UNIX as u64)?]);
    }
    rules.insert(libc::SYS_prctl, any(0, Op::Eq, &PRCTLS)?);
    rules.insert(libc::SYS_tgkill, vec![rule(0, Op::Eq, std::process::id().into())?]);
    let arch =
        TargetArch::try_from(std::env::consts::ARCH).context("sandbox: no filters for this architecture")?;
    let filter = SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, arch)?;
    Ok(filter.try_into()?)
}

/// One of `values`, in the low half of an argument.
fn any(argument: u8, op: Op, values: &[u64]) -> anyhow::Result<Vec<SeccompRule>> {
    values.iter().map(|&value| rule(argument, op.clone(), value)).collect()
}

fn rule(argument: u8, op: Op, value: u64) -> anyhow::Result<SeccompRule> {
    Ok(SeccompRule::new(vec![SeccompCondition::new(argument, Len::Dword, op, value)?])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_compile() {
        for role in
            [Role::Main, Role::Vcpu, Role::Device, Role::Switch, Role::BackEnd, Role::Control, Role::Helper]
        {
            let program = filter(role).unwrap();
            assert!((50..1000).contains(&program.len()), "{role:?}: {}", program.len());
        }
    }
}
