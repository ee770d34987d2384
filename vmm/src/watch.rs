// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `--watch`: which of the guest's exceptions we want to know of, and what is said about one.

use std::fmt::Write as _;
use std::str::FromStr;

use gzvm_abi::run::Watch as Event;
use gzvm_abi::watch::{action, kind};

/// Names on the command line, kinds, and what is said about them.
const KINDS: [(&str, u32, &str); 9] = [
    ("undefined", kind::UNDEFINED, "an undefined instruction of the guest's kernel"),
    ("abort", kind::ABORT, "an abort of the guest's kernel"),
    ("serror", kind::SERROR, "an SError while the guest ran"),
    ("breakpoint", kind::BREAKPOINT, "a BRK of the guest's kernel"),
    ("stall", kind::STALL, "a vCPU gets nowhere"),
    ("external", kind::EXTERNAL, "an access to an address where nothing is"),
    ("user-undefined", kind::USER_UNDEFINED, "an undefined instruction of a guest's program"),
    ("user-abort", kind::USER_ABORT, "an abort of a guest's program"),
    ("user-breakpoint", kind::USER_BREAKPOINT, "a BRK of a guest's program"),
];

/// What to do about an exception.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum OnException {
    /// Tell it and go on.
    Report,
    /// Pause the guest: `gz resume` lets it go on.
    Pause,
    /// Reset the guest: see --on-reset.
    Reset,
    /// End the run with exit code 6.
    Kill,
}

impl OnException {
    /// Its number for the hypervisor.
    pub fn action(self) -> u32 {
        match self {
            Self::Report => action::REPORT,
            Self::Pause => action::PAUSE,
            Self::Reset => action::RESET,
            Self::Kill => action::KILL,
        }
    }
}

/// The value of `--watch`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watch {
    /// Bits of [`kind`].
    pub kinds: u32,
    /// Milliseconds to a stall, 0 without that kind.
    pub stall_ms: u64,
}

impl FromStr for Watch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut watch = Self { kinds: 0, stall_ms: 0 };
        for part in text.split(',') {
            let (name, value) =
                part.split_once('=').map_or((part, None), |(name, value)| (name, Some(value)));
            let (_, kind, _) = KINDS.iter().find(|(known, ..)| *known == name).ok_or_else(|| {
                format!("unknown exception {name:?}: use {}", KINDS.map(|(name, ..)| name).join(", "))
            })?;
            watch.kinds |= kind;
            match (*kind, value) {
                (kind::STALL, Some(value)) => watch.stall_ms = milliseconds(value)?,
                (kind::STALL, None) => return Err("stall needs a deadline, as in stall=10s".into()),
                (_, Some(_)) => return Err(format!("{name} takes no value")),
                (_, None) => {}
            }
        }
        Ok(watch)
    }
}

/// `10s`, `500ms`: up to an hour.
fn milliseconds(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1),
        None => (text.strip_suffix('s').unwrap_or(text), 1000),
    };
    let ms = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    ms.filter(|ms| (1..=3_600_000).contains(ms))
        .ok_or_else(|| format!("{text:?} is no time from 1ms to 3600s; write it as 10s or 500ms"))
}

/// What the user is told.
pub fn describe(vcpu: u8, event: &Event) -> String {
    let what =
        KINDS.iter().find(|(_, kind, _)| *kind == event.kind).map_or("an exception", |(.., text)| *text);
    let mut text = format!("vCPU {vcpu}: {what}; pc {:#x}, pstate {:#x}", event.pc, event.pstate);
    // Writing to a string does not fail.
    if event.esr != 0 {
        let _ = write!(text, ", esr {:#x}, far {:#x}", event.esr, event.far);
    }
    let _ =
        write!(text, ", sp {:#x}, fp {:#x}, lr {:#x} (number {})", event.sp, event.fp, event.lr, event.count);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        let watch: Watch = "undefined,abort,serror,breakpoint,stall=10s".parse().unwrap();
        let kinds = kind::UNDEFINED | kind::ABORT | kind::SERROR | kind::BREAKPOINT | kind::STALL;
        assert_eq!(watch, Watch { kinds, stall_ms: 10_000 });
        assert_eq!("stall=500ms".parse::<Watch>().unwrap().stall_ms, 500);
        assert_eq!("stall=3".parse::<Watch>().unwrap().stall_ms, 3000);
        let all = KINDS.iter().fold(0, |all, (_, kind, _)| all | kind);
        assert_eq!(all, kind::ALL);
        for wrong in [
            "",
            "abort,",
            "aborts",
            "stall",
            "stall=",
            "stall=0s",
            "stall=2h",
            "stall=3601s",
            "abort=1s",
            "stall=-1s",
        ] {
            assert!(wrong.parse::<Watch>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn events_are_told() {
        let event =
            Event { kind: kind::ABORT, pc: 0xABC, esr: 0x77, far: 0x10, count: 3, ..Event::default() };
        let text = describe(1, &event);
        for part in
            ["vCPU 1", "an abort of the guest's kernel", "pc 0xabc", "esr 0x77", "far 0x10", "number 3"]
        {
            assert!(text.contains(part), "{text}");
        }
        assert!(describe(0, &Event { kind: 1 << 30, ..event }).contains("an exception"));
    }
}
