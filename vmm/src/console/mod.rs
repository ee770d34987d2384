// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest's console: from standard input, and from clients of the control socket, to the UART ([`keys`] in between); the
//! guest's output to standard output and to [`Followers`].

mod followers;
pub mod keys;
mod output;

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

pub use followers::Followers;
pub use output::Output;
use rustix::event::Timespec;

use crate::devices::serial::Terminal;
use crate::events;
use crate::exit::EndReason;
use crate::sandbox::{self, Role};
use keys::{Command, Escape};

const HELP: &str = "\r\ngz: Ctrl-A x ends the VM, Ctrl-A Ctrl-A sends Ctrl-A\r\n";

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
        sandbox::narrow(Role::Helper);
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
        send(uart, &mut output, || false)?;
    }
}

/// What a client types goes to the guest, `typed` first, until it says no more.
///
/// # Errors
/// Those of read(2).
pub fn from_client(mut client: &UnixStream, mut typed: Vec<u8>, current: &Current) -> io::Result<()> {
    let mut input = [0; 256];
    loop {
        send(current, &mut typed, || followers::has_gone(client).unwrap_or(true))?;
        match client.read(&mut input) {
            Ok(0) => return Ok(()),
            Ok(count) => typed.extend(input.iter().take(count)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Queues all of `output`, waiting for the guest to read; unless who typed it has `gone`.
fn send(current: &Current, output: &mut Vec<u8>, gone: impl Fn() -> bool) -> io::Result<()> {
    while !gone() {
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
    Ok(())
}
