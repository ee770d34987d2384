// SPDX-License-Identifier: GPL-2.0-only
//! Checks `/dev/gzvm` from user space, with guests of a few instructions.
//!
//! Runs in the host VM and prints a result line a check:
//!
//! ```text
//! [PASS] name
//! [FAIL] name: reason
//! [DONE] passed=N failed=N skipped=N
//! ```
//!
//! An argument runs only the checks whose names contain it. Exit status 1 if one fails.
//! `crosvm VCPUS KERNEL INITRD COMMAND...` boots a Linux as crosvm does instead, see [`crosvm`]; `vectors SECONDS`
//! watches this process's own registers, see [`vectors`]; `search` reads all memory, see [`kernels_map`];
//! `hold SECONDS` has a VM for so long; `calls COUNT BYTES` calls a guest, see [`channels`];
//! `serve DEVICE`, `caller DEVICE` and `lender DEVICE` run in guests, see [`guest_channels`], [`guest_grants`]; `scale` is what many VMs cost, see [`scale`].

mod arguments;
mod channels;
mod conformance;
mod crosvm;
mod eventfds;
mod guest_channels;
mod guest_grants;
mod guest_memory;
mod kernels_map;
mod machine;
mod memory;
mod processes;
mod runs;
mod scale;
mod sys;
mod vectors;

use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// A check's result: why it failed.
type Check = Result<(), String>;

/// Fails the check unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($reason:tt)*) => {
        if !$condition {
            return Err(format!("{} (line {})", format_args!($($reason)*), line!()));
        }
    };
}
pub(crate) use ensure;

/// Longest time a check may take; emulated machines are slow.
const LIMIT: Duration = Duration::from_secs(120);

type Named = (&'static str, fn() -> Check);

const CHECKS: &[Named] = &[
    ("check_extension", arguments::check_extension),
    ("vcpu_ids", arguments::vcpu_ids),
    ("unknown_ioctls", arguments::unknown_ioctls),
    ("run_arguments", arguments::run_arguments),
    ("registers", arguments::registers),
    ("irq_line", arguments::irq_line),
    ("slots", arguments::slots),
    ("other_process", arguments::other_process),
    ("fork", processes::fork),
    ("passed_through_a_socket", processes::passed_through_a_socket),
    ("mmio_read_and_write", runs::mmio_read_and_write),
    ("signal_ends_a_busy_guest", runs::signal_ends_a_busy_guest),
    ("signal_ends_an_idle_guest", runs::signal_ends_an_idle_guest),
    ("signals_cost_no_exit", runs::signals_cost_no_exit),
    ("threads_share_a_vcpu", runs::threads_share_a_vcpu),
    ("vcpu_outlives_vm_file", runs::vcpu_outlives_vm_file),
    ("mapped_run_page", runs::mapped_run_page),
    ("pages_come_on_demand", memory::pages_come_on_demand),
    ("hole_in_the_memory", memory::hole_in_the_memory),
    ("read_only_memory", memory::read_only_memory),
    ("content_is_shared", memory::content_is_shared),
    ("discard_gives_pages_back", memory::discard_gives_pages_back),
    ("slot_goes_under_a_running_guest", memory::slot_goes_under_a_running_guest),
    ("guest_memory_arguments", guest_memory::arguments),
    ("guest_memory_is_ordinary_until_given", guest_memory::ordinary_until_given),
    ("guest_memory_leaves_every_mapping", guest_memory::leaves_every_mapping),
    ("guest_memory_stays_the_guests", guest_memory::stays_the_guests),
    ("guest_memory_is_not_in_the_kernels_map", guest_memory::not_in_the_kernels_map),
    ("guest_memory_sharing_races", guest_memory::sharing_races),
    ("ioeventfd", eventfds::ioeventfd),
    ("irqfd_arguments", eventfds::irqfd_arguments),
    ("irqfd_closed_while_armed", eventfds::closed_while_armed),
    ("resampled_line", eventfds::resampled_line),
    ("driven_level", eventfds::driven_level),
    ("irqfd_storm", eventfds::storm),
    ("files_closed_in_any_order", eventfds::closed_in_any_order),
    ("channel_with_the_host", channels::with_the_host),
    ("channel_many_calls", channels::many_calls),
    ("channel_hangs_up", channels::hangs_up),
    ("channel_between_vms", channels::between_vms),
    ("many_vms_at_once", runs::many_vms_at_once),
    ("crosvm_protected_sequence", crosvm::protected_sequence),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [name, rest @ ..] if name == "vectors" => vectors::main(rest),
        [name, rest @ ..] if name == "search" => kernels_map::main(rest),
        [name, rest @ ..] if name == "crosvm" => crosvm::main(rest.iter().cloned()),
        [name, rest @ ..] if name == "scale" => scale::main(rest),
        [name, seconds] if name == "hold" => hold(seconds),
        [name, count, bytes] if name == "calls" => channels::main(count, bytes),
        [name, device] if name == "serve" => guest_channels::serve(device),
        [name, device, question] if name == "lender" => guest_grants::lender(device, question),
        [name, device] if name == "caller" => guest_channels::run(device, device, guest_channels::CHECKS),
        [only, ..] => check(only),
        [] => check(""),
    }
}

/// Runs the checks whose names contain `only`.
fn check(only: &str) -> ExitCode {
    let (mut passed, mut failed) = (0, 0);
    for (name, check) in CHECKS.iter().chain(conformance::CHECKS).filter(|(name, _)| name.contains(only)) {
        let (sender, receiver) = channel();
        // A thread of its own, so that one that hangs is one that fails. It is left behind then.
        std::thread::spawn(move || {
            let _ = sender.send(check());
        });
        let result = receiver.recv_timeout(LIMIT).unwrap_or_else(|e| {
            Err(match e {
                RecvTimeoutError::Timeout => format!("not done after {} s", LIMIT.as_secs()),
                RecvTimeoutError::Disconnected => "panicked".to_owned(),
            })
        });
        match result {
            Ok(()) => {
                passed += 1;
                println!("[PASS] {name}");
            }
            Err(reason) => {
                failed += 1;
                println!("[FAIL] {name}: {reason}");
            }
        }
    }
    println!("[DONE] passed={passed} failed={failed} skipped=0");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A VM, with no other file of the driver open.
fn hold(seconds: &str) -> ExitCode {
    match (machine::vm(), seconds.parse()) {
        (Ok(_vm), Ok(seconds)) => {
            std::thread::sleep(Duration::from_secs(seconds));
            ExitCode::SUCCESS
        }
        (vm, _) => {
            println!("hold: {:?}", vm.err());
            ExitCode::FAILURE
        }
    }
}
