// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How a run of `gz` ends, and the exit code that says so.
//!
//! The table is part of the command line's contract (it stands in `gz run --help`): scripts tell a
//! guest's power-off from its crash, and both from our own failure.

use std::fmt;

use serde::Serialize;

/// Why the VM stopped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EndReason {
    /// The guest powered off (PSCI SYSTEM_OFF).
    PowerOff,
    /// The guest asked for a reset (PSCI SYSTEM_RESET), a panicking Linux guest included.
    Reset,
    /// The guest can't go on; the text says all that is known.
    Crash(String),
    /// `--on-exception kill` gave the guest up; the text says after what.
    Watched(String),
    /// The VMM or the host's hypervisor failed.
    VmmError(String),
    /// The user typed the escape sequence.
    Quit,
    /// `gz stop`.
    Stopped,
    /// A signal.
    Signal(i32),
    /// A bare-metal guest wrote this code to the test device.
    TestDevice(u8),
}

/// Exit code of [`EndReason::VmmError`].
pub const CODE_VMM_ERROR: u8 = 1;
/// Exit code of a wrong command line; clap's.
pub const CODE_USAGE: u8 = 2;
/// Exit code of [`EndReason::Reset`].
pub const CODE_RESET: u8 = 3;
/// Exit code of [`EndReason::Crash`].
pub const CODE_CRASH: u8 = 4;
/// Exit code of [`EndReason::Quit`] and [`EndReason::Stopped`].
pub const CODE_QUIT: u8 = 5;
/// Exit code of [`EndReason::Watched`].
pub const CODE_WATCHED: u8 = 6;
/// First exit code of [`EndReason::TestDevice`]; 64 of them.
pub const CODE_TEST_DEVICE: u8 = 64;
/// First exit code of [`EndReason::Signal`], as shells have it.
pub const CODE_SIGNAL: u8 = 128;

/// The end of a run for `gz run --json`, which tells it on standard error.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// What kind of end.
    pub end: &'static str,
    /// The exit code.
    pub code: u8,
    /// The same in words.
    pub message: String,
}

impl EndReason {
    /// All about it.
    pub fn report(&self) -> Report {
        let end = match self {
            Self::PowerOff => "power-off",
            Self::Reset => "reset",
            Self::Crash(_) => "crash",
            Self::Watched(_) => "watched",
            Self::VmmError(_) => "error",
            Self::Quit => "quit",
            Self::Stopped => "stopped",
            Self::Signal(_) => "signal",
            Self::TestDevice(_) => "test-device",
        };
        Report { end, code: self.code(), message: self.to_string() }
    }

    /// The process's exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::VmmError(_) => CODE_VMM_ERROR,
            Self::Reset => CODE_RESET,
            Self::Crash(_) => CODE_CRASH,
            Self::Watched(_) => CODE_WATCHED,
            Self::Quit | Self::Stopped => CODE_QUIT,
            Self::TestDevice(value) => CODE_TEST_DEVICE + (value & 0x3F),
            // Signal numbers are below 65.
            Self::Signal(number) => CODE_SIGNAL.saturating_add(u8::try_from(*number).unwrap_or(0)),
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest asked for a reset"),
            Self::Crash(report) => write!(f, "the guest crashed: {report}"),
            Self::Watched(report) => write!(f, "the guest was killed: {report}"),
            Self::VmmError(error) => f.write_str(error),
            Self::Quit => f.write_str("stopped from the console"),
            Self::Stopped => f.write_str("stopped by `gz stop`"),
            Self::Signal(number) => write!(f, "stopped by signal {number}"),
            Self::TestDevice(value) => write!(f, "the guest ended the run with code {value}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_tell_reasons_apart() {
        let reasons = [
            (EndReason::PowerOff, 0),
            (EndReason::VmmError(String::new()), 1),
            (EndReason::Reset, 3),
            (EndReason::Crash(String::new()), 4),
            (EndReason::Quit, 5),
            (EndReason::Watched(String::new()), 6),
            (EndReason::Stopped, 5),
            (EndReason::TestDevice(0), 64),
            (EndReason::TestDevice(0x41), 65),
            (EndReason::TestDevice(0xFF), 127),
            (EndReason::Signal(15), 143),
        ];
        for (reason, code) in reasons {
            assert_eq!(reason.code(), code, "{reason:?}");
        }
    }
}
