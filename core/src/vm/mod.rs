// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A VM as a whole: whether it runs, why it stopped.
//!
//! | module | what |
//! |---|---|
//! | [`lifecycle`] | the states of a VM, their transitions, and what RUN answers in each |

pub mod lifecycle;
