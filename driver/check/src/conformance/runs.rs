// SPDX-License-Identifier: GPL-2.0-only
//! RUN: its buffer of 264 bytes, and signals.

use std::time::Duration;

use libc::{EFAULT, EINTR, EINVAL};

use super::{gives, needs_memory, nr, programs};
use crate::machine::{BUSY, DEVICE, IDLE, Machine, Run};
use crate::sys::{self, Kicker, Mapping, errno};
use crate::{Check, ensure};

/// Results and errnos.
pub fn run() -> Check {
    let machine = Machine::new(programs::ACCESS, &[(19, DEVICE)])?;
    needs_memory(&machine.vcpu, nr::RUN)?;
    for byte in 0..3 {
        for value in [1, 0x80, 0xFF] {
            let mut run = Run::new();
            run.0.padding1[byte] = value;
            gives(errno(&run.run(&machine.vcpu)), EINVAL, format_args!("padding byte {byte} = {value:#x}"))?;
        }
    }
    let mut run = Run::new();
    run.0.immediate_exit = 1;
    gives(errno(&run.run(&machine.vcpu)), EINTR, "immediate_exit")?;
    // Only 1 means that. What stood in the buffer otherwise is no input.
    let mut run = Run::new();
    run.0.exit_reason = 0xFFFF_FFFF;
    run.0.payload = [u64::MAX; 32];
    run.0.immediate_exit = 2;
    let result = run.run(&machine.vcpu).map_err(|e| format!("RUN with immediate_exit = 2: {e}"))?;
    ensure!(result == 0 && run.0.exit_reason == 0x9292_0001, "{result}, exit {:#x}", run.0.exit_reason);
    Ok(())
}

/// A pointer to 264 bytes, of any alignment; bytes 4 to 7 are user space's, the rest is written.
pub fn run_buffer() -> Check {
    let machine = Machine::new(programs::ACCESS, &[(19, DEVICE)])?;
    let memory = Mapping::new(8192, true);
    memory.replace(4096, 4096, false);
    let end = memory.address() + 4096;
    let run = |at: u64| errno(&sys::ioctl(&machine.vcpu, nr::RUN, at));
    for short in [1, 8, 256, 263] {
        gives(run(end - short), EFAULT, format_args!("{short} bytes"))?;
    }
    gives(run(end - 264), 0, "264 bytes")?;
    ensure!(memory.get(4096 - 264) == 0x9292_0001, "exit_reason @0");
    ensure!(memory.get(4096 - 260) == 0, "immediate_exit and padding @4");
    ensure!(memory.get(4096 - 256) == DEVICE as u32 + 0x11, "the union @8");
    // In the middle of a word, among other data.
    memory.put(0, 0xAAAA_AAAA);
    memory.put(268, 0xAAAA_AAAA);
    gives(run(memory.address() + 2), 0, "an odd address")?;
    ensure!(memory.get(0) & 0xFFFF == 0xAAAA, "bytes before the buffer");
    ensure!(memory.get(268) == 0xAAAA_AAAA, "bytes behind the buffer");
    Ok(())
}

/// crosvm's kick: SA_RESTART, and a handler that sets immediate_exit, so that the restarted call ends. Without
/// SA_RESTART the call ends by itself. Differs: an exit is never given up for a signal (`signals_cost_no_exit`).
pub fn run_signals() -> Check {
    for code in [BUSY, IDLE] {
        for restart in [true, false] {
            let machine = Machine::new(code, &[])?;
            let mut run = Run::new();
            sys::handle_signal(restart);
            if restart {
                sys::flag_on_signal(&raw mut run.0.immediate_exit);
            }
            let kicker = Kicker::start(Duration::from_millis(200), Duration::from_millis(100));
            let error = errno(&run.run(&machine.vcpu));
            drop(kicker);
            sys::flag_on_signal(std::ptr::null_mut());
            gives(error, EINTR, format_args!("a signal, restart {restart}"))?;
            ensure!(run.0.immediate_exit == u8::from(restart), "immediate_exit {}", run.0.immediate_exit);
            // It stays so until user space takes it back.
            if restart {
                gives(errno(&run.run(&machine.vcpu)), EINTR, "the next RUN")?;
            }
        }
    }
    Ok(())
}
