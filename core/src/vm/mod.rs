// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A VM as a whole: whether it runs, why it stopped, who it is.
//!
//! | module | what |
//! |---|---|
//! | [`identity`] | the measurement of a protected VM, and what EL2 vouches for |
//! | [`images`] | the images that firmware has verified since boot |
//! | [`lifecycle`] | the states of a VM, their transitions, and what RUN answers in each |

pub mod identity;
pub mod images;
pub mod lifecycle;
