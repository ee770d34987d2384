// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `--fs`: a folder's tag in the guest, and the socket of the program that serves it.

use std::path::PathBuf;
use std::str::FromStr;

use super::TAG_SIZE;

/// One shared folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FsOption {
    /// What the guest mounts.
    pub tag: String,
    /// Where the program listens.
    pub socket: PathBuf,
}

impl FromStr for FsOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (tag, socket) = text.split_once('=').ok_or("must be TAG=SOCKET")?;
        if !(1..=TAG_SIZE).contains(&tag.len()) || tag.contains('\0') {
            return Err(format!("{tag:?}: a tag has 1 to {TAG_SIZE} bytes"));
        }
        if socket.is_empty() {
            return Err("no socket named".into());
        }
        Ok(Self { tag: tag.into(), socket: socket.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_sockets() {
        let fs: FsOption = "home=/run/vm=1".parse().unwrap();
        assert_eq!((fs.tag.as_str(), fs.socket.to_str()), ("home", Some("/run/vm=1")));
        let long = format!("{}=x", "t".repeat(37));
        for wrong in ["", "home", "home=", "=x", &long] {
            assert!(wrong.parse::<FsOption>().is_err(), "{wrong}");
        }
    }
}
