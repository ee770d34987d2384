// SPDX-License-Identifier: GPL-2.0-only
//! Kernel log and debugfs output, formatted on the stack.

use core::ffi::c_void;
use core::fmt::{self, Write};

use crate::sys;

/// A line being formatted. What does not fit is cut off.
struct Line {
    text: [u8; 200],
    len: usize,
}

impl Line {
    fn new(args: fmt::Arguments<'_>) -> Self {
        let mut line = Self { text: [0; 200], len: 0 };
        let _ = line.write_fmt(args);
        line
    }
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for (to, from) in self.text.iter_mut().skip(self.len).zip(s.bytes()) {
            *to = from;
            self.len += 1;
        }
        Ok(())
    }
}

/// Severity, as the kernel numbers it.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Level {
    /// Something does not work.
    Err = 3,
    /// Something is odd.
    Warn = 4,
    /// Good to know.
    Info = 6,
}

/// Writes a line to the kernel log. Rate limited.
pub fn log(level: Level, args: fmt::Arguments<'_>) {
    let line = Line::new(args);
    // SAFETY: pointer and length are those of a live buffer.
    unsafe { sys::gzk_log(level as u32, line.text.as_ptr(), line.len) }
}

/// Logs an error.
macro_rules! pr_err { ($($arg:tt)*) => {
    $crate::kernel::print::log($crate::kernel::print::Level::Err, format_args!($($arg)*))
} }
/// Logs a warning.
macro_rules! pr_warn { ($($arg:tt)*) => {
    $crate::kernel::print::log($crate::kernel::print::Level::Warn, format_args!($($arg)*))
} }
/// Logs information.
macro_rules! pr_info { ($($arg:tt)*) => {
    $crate::kernel::print::log($crate::kernel::print::Level::Info, format_args!($($arg)*))
} }
pub(crate) use {pr_err, pr_info, pr_warn};

/// Ends in the kernel's BUG.
#[cfg(all(not(test), target_os = "none"))]
pub fn bug(info: &core::panic::PanicInfo<'_>) -> ! {
    let line = Line::new(format_args!("{info}"));
    // SAFETY: pointer and length are those of a live buffer.
    unsafe { sys::gzk_bug(line.text.as_ptr(), line.len) }
}

/// A debugfs file being read.
pub struct SeqFile(*mut c_void);

impl SeqFile {
    /// # Safety
    /// `seq` is the kernel's `seq_file`, valid while this value lives.
    pub unsafe fn from_raw(seq: *mut c_void) -> Self {
        Self(seq)
    }

    /// Writes one line.
    pub fn line(&mut self, args: fmt::Arguments<'_>) {
        let line = Line::new(format_args!("{args}\n"));
        // SAFETY: by the type's invariant, and the buffer is live.
        unsafe { sys::gzk_seq_write(self.0, line.text.as_ptr(), line.len) }
    }
}
