// SPDX-License-Identifier: GPL-2.0-only
//! Structures in user space.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::error::{Error, Result};
use crate::sys;

/// Copies a value in. EFAULT.
pub fn read<T: FromBytes + IntoBytes>(from: u64) -> Result<T> {
    let mut value = T::new_zeroed();
    read_bytes(from, value.as_mut_bytes())?;
    Ok(value)
}

/// Copies bytes in. EFAULT.
pub fn read_bytes(from: u64, to: &mut [u8]) -> Result {
    // SAFETY: pointer and length are those of the slice.
    Error::check(unsafe { sys::gzk_user_read(to.as_mut_ptr().cast(), from, to.len()) }).map(drop)
}

/// Copies a value out. EFAULT.
pub fn write<T: IntoBytes + Immutable>(to: u64, value: &T) -> Result {
    write_bytes(to, value.as_bytes())
}

/// Copies bytes out. EFAULT.
pub fn write_bytes(to: u64, from: &[u8]) -> Result {
    // SAFETY: pointer and length are those of the slice.
    Error::check(unsafe { sys::gzk_user_write(to, from.as_ptr().cast(), from.len()) }).map(drop)
}
