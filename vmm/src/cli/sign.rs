// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `gz sign`, `gz public-key`.

use std::path::PathBuf;

use clap::Args;

/// The kernel command line of a guest that is given none.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 panic=-1";

/// Options of `gz sign`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct SignOptions {
    /// Secret key (ed25519): a file with 64 hexadecimal digits, as from `openssl rand -hex 32`
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// Guest kernel: an uncompressed arm64 Image
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// Initial RAM disk that belongs to it
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line that belongs to it
    #[arg(long, value_name = "STRING", default_value = DEFAULT_CMDLINE)]
    pub cmdline: String,
    /// Security version: firmware refuses those below the minimum that it was built with. Raise it with each fix that older
    /// ones must not run without
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub version: u64,
    /// The signed kernel, for `gz run --protected --kernel`
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
}

/// Options of `gz public-key`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct KeyOptions {
    /// Secret key
    #[arg(value_name = "FILE")]
    pub key: PathBuf,
}
