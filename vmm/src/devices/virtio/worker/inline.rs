// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Workers without threads, for fuzzing: they serve when the thread that started them says so ([`turn`]). An execution costs no
//! thread then, and is the same each time.

use std::cell::{Cell, RefCell};
use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::Serve;
use crate::devices::virtio::Interrupt;

struct Running {
    number: u64,
    interrupt: Arc<Interrupt>,
    serve: Box<dyn FnMut() -> bool>,
}

thread_local! {
    static RUNNING: RefCell<Vec<Running>> = const { RefCell::new(Vec::new()) };
    static STARTED: Cell<u64> = const { Cell::new(0) };
}

/// Lets all workers of this thread do what there is to do.
pub fn turn() {
    RUNNING.with_borrow_mut(|all| {
        all.retain_mut(|one| {
            let works = (one.serve)();
            if !works {
                one.interrupt.needs_reset();
            }
            works
        });
    });
}

/// A worker; it serves no more when this is dropped.
pub struct Worker(u64);

impl Worker {
    /// Lets `server` serve, until it fails: then the driver is told that it has to reset the device.
    ///
    /// # Errors
    /// None.
    pub fn start(
        _name: &'static str,
        _notifications: Vec<Arc<EventFd>>,
        interrupt: Arc<Interrupt>,
        mut server: impl Serve,
    ) -> io::Result<Self> {
        let serve = Box::new(move || {
            let works = server.serve().is_ok();
            // What a thread would wait for.
            drop(server.sources());
            works
        });
        Ok(Self::watch(interrupt, serve))
    }

    /// The same of what is no queue's.
    pub fn watch(interrupt: Arc<Interrupt>, serve: Box<dyn FnMut() -> bool>) -> Self {
        let number = STARTED.get();
        STARTED.set(number + 1);
        RUNNING.with_borrow_mut(|all| all.push(Running { number, interrupt, serve }));
        Self(number)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The thread may be at its end.
        let _ = RUNNING.try_with(|all| all.borrow_mut().retain(|one| one.number != self.0));
    }
}
