// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `--port`: a port's name in the guest, and its socket on the host.

use std::path::PathBuf;
use std::str::FromStr;

/// Longest name that Linux takes.
const NAME_MAX: usize = 63;

/// One port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortOption {
    /// Its name.
    pub name: String,
    /// Where programs of the host find it.
    pub socket: PathBuf,
}

impl FromStr for PortOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, socket) = text.split_once('=').ok_or("must be NAME=SOCKET")?;
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !(1..=NAME_MAX).contains(&name.len()) || !name.bytes().all(good) {
            return Err(format!("{name:?}: a name is up to {NAME_MAX} letters, digits, dots and dashes"));
        }
        if socket.is_empty() {
            return Err("no socket named".into());
        }
        Ok(Self { name: name.into(), socket: socket.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sockets() {
        let port: PortOption = "org.qemu.agent.0=/run/vm=1".parse().unwrap();
        assert_eq!((port.name.as_str(), port.socket.to_str()), ("org.qemu.agent.0", Some("/run/vm=1")));
        for wrong in ["", "name", "name=", "=x", "a b=x", "../x=y"] {
            assert!(wrong.parse::<PortOption>().is_err(), "{wrong}");
        }
    }
}
