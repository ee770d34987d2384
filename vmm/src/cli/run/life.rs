// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the guest's deeds come to.

use clap::Args;

use crate::watch::{OnException, Watch};

/// What the guest's deeds come to.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(next_help_heading = "Life")]
pub struct LifeOptions {
    /// What a reset of the guest comes to
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = OnReset::Exit)]
    pub on_reset: OnReset,

    /// Exceptions of the guest to be told of, without its help: undefined, abort, serror, breakpoint (of its kernel),
    /// external (an access where nothing is), stall=TIME (a vCPU runs that long without waiting for or taking an
    /// interrupt), user-undefined, user-abort, user-breakpoint (of its programs; slow)
    #[arg(long, value_name = "LIST")]
    pub watch: Option<Watch>,

    /// What one of them comes to
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = OnException::Report, requires = "watch")]
    pub on_exception: OnException,
}

/// What a guest's reset comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum OnReset {
    /// The run ends with exit code 3.
    Exit,
    /// The guest starts again in fresh memory, with fresh vCPUs and interrupt controller.
    Restart,
}
