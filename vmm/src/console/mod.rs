// SPDX-License-Identifier: Apache-2.0 OR MIT
//! From standard input to the guest's UART, with an escape key as QEMU has it:
//!
//! | keys | effect |
//! |---|---|
//! | Ctrl-A x | ends the VM |
//! | Ctrl-A Ctrl-A, Ctrl-A a | sends one Ctrl-A |
//! | Ctrl-A h | tells these keys |

mod output;

use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

pub use output::Output;
use rustix::event::Timespec;

use crate::devices::serial::Terminal;
use crate::events;
use crate::exit::EndReason;

const ESCAPE: u8 = 1;

const HELP: &str = "\r\ngz: Ctrl-A x ends the VM, Ctrl-A Ctrl-A sends Ctrl-A\r\n";

/// What the keys typed so far ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Command {
    Quit,
    Help,
}

/// Finds the escape sequences in what is typed.
#[derive(Default)]
struct Escape {
    /// The last key was the escape key.
    pending: bool,
}

impl Escape {
    /// Takes one key; what the guest shall get goes to `output`.
    fn key(&mut self, key: u8, output: &mut Vec<u8>) -> Option<Command> {
        if !std::mem::take(&mut self.pending) {
            if key == ESCAPE {
                self.pending = true;
            } else {
                output.push(key);
            }
            return None;
        }
        match key {
            b'x' | b'X' => return Some(Command::Quit),
            b'h' | b'H' | b'?' => return Some(Command::Help),
            ESCAPE | b'a' => output.push(ESCAPE),
            // As QEMU: an unknown sequence is swallowed.
            _ => {}
        }
        None
    }
}

/// The UART that input goes to: another one after each reset of the guest.
#[derive(Clone, Default)]
pub struct Current(Arc<Mutex<Option<Arc<dyn Terminal>>>>);

impl Current {
    /// Input goes to `uart` from now on.
    pub fn set(&self, uart: Option<Arc<dyn Terminal>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = uart;
    }

    fn get(&self) -> Option<Arc<dyn Terminal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Starts the thread that reads standard input. It ends with its input, or with the process.
///
/// # Errors
/// No thread left.
pub fn start(uart: Current, end: Sender<EndReason>) -> io::Result<()> {
    thread::Builder::new().name("gz-console".into()).spawn(move || {
        if let Err(error) = pump(&uart, &end) {
            tracing::warn!("standard input: {error}; the guest's console gets no more");
        }
    })?;
    Ok(())
}

fn pump(uart: &Current, end: &Sender<EndReason>) -> io::Result<()> {
    let stdin = io::stdin();
    let mut escape = Escape::default();
    let (mut input, mut output) = ([0; 256], Vec::new());
    loop {
        // Standard input may be non-blocking: that is a property of the open file, which others
        // share.
        events::wait(&mut [events::readable(stdin.as_fd())], None)?;
        let count = match rustix::io::read(&stdin, &mut input) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => continue,
            Err(error) => return Err(error.into()),
        };
        for &key in input.get(..count).unwrap_or_default() {
            match escape.key(key, &mut output) {
                Some(Command::Quit) => {
                    let _ = end.send(EndReason::Quit);
                    return Ok(());
                }
                Some(Command::Help) => eprint!("{HELP}"),
                None => {}
            }
        }
        send(uart, &mut output)?;
    }
}

/// Queues all of `output`, waiting for the guest to read.
fn send(current: &Current, output: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let Some(uart) = current.get() else {
            // Between two lives of the guest.
            thread::sleep(std::time::Duration::from_millis(100));
            continue;
        };
        output.drain(..uart.receive(output));
        if output.is_empty() {
            return Ok(());
        }
        // A guest that starts to listen, or resets the FIFO, signals nothing: look now and then.
        let drained = uart.drained();
        let look_again = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        events::wait(&mut [events::readable(events::as_fd(drained))], Some(&look_again))?;
        let _ = drained.read();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn type_keys(keys: &[u8]) -> (Vec<u8>, Vec<Command>) {
        let (mut escape, mut output) = (Escape::default(), Vec::new());
        let commands = keys.iter().filter_map(|&key| escape.key(key, &mut output)).collect();
        (output, commands)
    }

    #[test]
    fn escape_sequences() {
        assert_eq!(type_keys(b"ls\r"), (b"ls\r".to_vec(), vec![]));
        assert_eq!(type_keys(b"a\x01xb"), (b"ab".to_vec(), vec![Command::Quit]));
        assert_eq!(type_keys(b"\x01\x01x"), (b"\x01x".to_vec(), vec![]));
        assert_eq!(type_keys(b"\x01a\x01h"), (b"\x01".to_vec(), vec![Command::Help]));
        assert_eq!(type_keys(b"\x01qz\x01"), (b"z".to_vec(), vec![]));
    }
}
