// SPDX-License-Identifier: GPL-2.0-only
//! COM1: a 16550 whose output is ours, and whose input is a list of commands, typed when the guest's shell asks.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, MutexGuard};

use crate::sys::signal;

/// Guest address; eight registers of a byte.
pub const BASE: u64 = 0x3F8;
/// What the guest's shell says when it waits.
const PROMPT: &[u8] = b"root@guest:/root# ";

// Interrupt enable.
const IER_RECEIVED: u8 = 1;
const IER_EMPTY: u8 = 2;
// Interrupt identification.
const IIR_NONE: u8 = 1;
const IIR_EMPTY: u8 = 2;
const IIR_RECEIVED: u8 = 4;
const IIR_FIFO: u8 = 0xC0;
// Line control, modem control, line status.
const LCR_DIVISOR: u8 = 0x80;
const MCR_LOOP: u8 = 0x10;
const LSR_RECEIVED: u8 = 1;
const LSR_EMPTY: u8 = 0x60;

#[derive(Default)]
struct State {
    enabled: u8,
    divisor: [u8; 2],
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    /// The transmitter's interrupt is due.
    empty: bool,
    received: VecDeque<u8>,
    /// The last bytes sent, to see the prompt.
    tail: VecDeque<u8>,
    commands: VecDeque<String>,
}

pub struct Uart {
    line: File,
    state: Mutex<State>,
}

impl Uart {
    pub fn new(line: File, commands: Vec<String>) -> Self {
        Self { line, state: Mutex::new(State { commands: commands.into(), ..State::default() }) }
    }

    pub fn into_line(self) -> File {
        self.line
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn read(&self, offset: u64) -> u8 {
        let mut state = self.state();
        let divisor = state.line_control & LCR_DIVISOR != 0;
        match offset {
            0 | 1 if divisor => state.divisor[offset as usize],
            0 => state.received.pop_front().unwrap_or(0),
            1 => state.enabled,
            2 => {
                let reason = state.reason();
                // Telling of it is taking it back.
                if reason == IIR_EMPTY {
                    state.empty = false;
                }
                IIR_FIFO | reason
            }
            3 => state.line_control,
            4 => state.modem_control,
            5 => LSR_EMPTY | if state.received.is_empty() { 0 } else { LSR_RECEIVED },
            // Looped back, the outputs are the inputs; else all is well at the other end.
            6 if state.modem_control & MCR_LOOP != 0 => {
                let out = state.modem_control;
                (out & 0xC) << 4 | (out & 1) << 5 | (out & 2) << 3
            }
            6 => 0xB0,
            _ => state.scratch,
        }
    }

    pub fn write(&self, offset: u64, value: u8) {
        let mut state = self.state();
        let divisor = state.line_control & LCR_DIVISOR != 0;
        match offset {
            0 | 1 if divisor => state.divisor[offset as usize] = value,
            0 => {
                state.send(value);
                state.empty = true;
            }
            1 => {
                state.empty |= value & !state.enabled & IER_EMPTY != 0;
                state.enabled = value & 0xF;
            }
            3 => state.line_control = value,
            4 => state.modem_control = value,
            7 => state.scratch = value,
            _ => return,
        }
        if state.reason() != IIR_NONE {
            signal(&self.line);
        }
    }
}

impl State {
    fn reason(&self) -> u8 {
        if self.enabled & IER_RECEIVED != 0 && !self.received.is_empty() {
            IIR_RECEIVED
        } else if self.enabled & IER_EMPTY != 0 && self.empty {
            IIR_EMPTY
        } else {
            IIR_NONE
        }
    }

    fn send(&mut self, byte: u8) {
        if self.modem_control & MCR_LOOP != 0 {
            self.received.push_back(byte);
            return;
        }
        let mut out = std::io::stdout();
        let _ = out.write_all(&[byte]).and_then(|()| out.flush());
        self.tail.push_back(byte);
        if self.tail.len() > PROMPT.len() {
            self.tail.pop_front();
        }
        if self.tail.iter().eq(PROMPT)
            && let Some(command) = self.commands.pop_front()
        {
            self.received.extend(command.bytes().chain([b'\n']));
        }
    }
}
