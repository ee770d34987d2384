// SPDX-License-Identifier: GPL-2.0-only
//! Errno values.

/// An errno, stored negative.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Error(i32);

/// Result with an errno.
pub type Result<T = ()> = core::result::Result<T, Error>;

impl Error {
    /// The negative errno.
    pub const fn to_errno(self) -> i32 {
        self.0
    }

    /// From what a C function returned: negative is an error.
    pub const fn check(ret: i32) -> Result<i32> {
        if ret < 0 { Err(Self(ret)) } else { Ok(ret) }
    }
}

/// The errno values used here.
pub mod code {
    use super::Error;

    macro_rules! codes {
        ($($name:ident = $n:literal,)*) => { $(
            #[doc = stringify!($name)]
            pub const $name: Error = Error(-$n);
        )* };
    }

    codes! {
        ENOENT = 2,
        EINTR = 4,
        EIO = 5,
        EBADF = 9,
        EAGAIN = 11,
        ENOMEM = 12,
        EFAULT = 14,
        EBUSY = 16,
        EEXIST = 17,
        ENODEV = 19,
        EINVAL = 22,
        ENOTTY = 25,
        EPIPE = 32,
        EOPNOTSUPP = 95,
        ERESTARTSYS = 512,
    }
}
