// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is said: a [`Request`] a call, an [`Answer`] to each, both in postcard's form. A variant's place in its enum is its number
//! there, so new ones go to the end.

use serde::{Deserialize, Serialize};

/// An ed25519 public key; a key is named by it.
pub type PublicKey = [u8; 32];

/// An ed25519 signature: R and s.
pub type Signature = [[u8; 32]; 2];

/// Most keys that the store has.
pub const MOST_KEYS: usize = 16;
/// Most keys that one caller has.
pub const MOST_OF_ONE: usize = 6;
/// Longest message to sign: what a call has room for, beside the rest of a request.
pub const MOST_BYTES: usize = 3900;
/// Longest document to sign: what a call can bring along.
pub const MOST_GRANTED: usize = 64 << 10;

/// What a caller wants.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request<'a> {
    /// To be told who it is: [`Reply::You`].
    WhoAmI,
    /// All keys: [`Reply::Keys`].
    List,
    /// A new key: [`Reply::Key`].
    Make,
    /// A signature by a key that is the caller's: [`Reply::Signature`].
    Sign {
        /// Which.
        key: PublicKey,
        /// Of what.
        message: &'a [u8],
    },
    /// Whether a signature is good: [`Reply::Verified`].
    Verify {
        /// Of which key; it need not be in the store.
        key: PublicKey,
        /// Of what.
        message: &'a [u8],
        /// The signature.
        signature: Signature,
    },
    /// A key of the caller's is destroyed: [`Reply::Forgotten`].
    Forget {
        /// Which.
        key: PublicKey,
    },
    /// A signature, as of [`Sign`](Self::Sign), of what is in the memory that goes with the call.
    SignGranted {
        /// Which.
        key: PublicKey,
        /// So many bytes of it.
        bytes: u32,
    },
}

/// What comes of it.
pub type Answer = Result<Reply, Refusal>;

/// What a caller gets.
#[expect(clippy::large_enum_variant, reason = "there is no heap to put it on")]
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Who it is.
    You(Caller),
    /// The keys that there are.
    Keys([Option<Listed>; MOST_KEYS]),
    /// The new key.
    Key(PublicKey),
    /// The signature.
    Signature(Signature),
    /// Whether it is good.
    Verified(bool),
    /// It is gone.
    Forgotten,
}

/// Why not.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// That is no request.
    Malformed,
    /// There is no such key.
    NoSuchKey,
    /// The key is another's.
    NotYours,
    /// Such callers have no keys.
    NotForYou,
    /// No room for one more of this caller's, or of anybody's.
    Full,
    /// The platform has no random numbers to make a key of.
    NoEntropy,
    /// No memory came with the call, or it is not there any more.
    NotGranted,
    /// There are fewer bytes.
    TooLong,
}

/// A key, as everybody may know it.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Itself.
    pub key: PublicKey,
    /// Whose it is.
    pub owner: Caller,
}

/// A caller, as the hypervisor knows it.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caller {
    /// The host, with all who use it.
    Host,
    /// A VM that the host reads and writes, or one whose measurement is not sealed yet.
    Plain {
        /// Its id.
        vm: u16,
        /// Which of the VMs that had this id.
        generation: u64,
    },
    /// A protected VM, by its measurement: the same payload with the same devices is the same caller, today and tomorrow.
    Protected([u8; 32]),
}
