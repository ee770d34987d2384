// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `--vsock`: the guest's address, and which guests it talks to.

use std::str::FromStr;

use super::{CID_MAX, CID_MIN};

/// Most guests that one talks to.
const PEERS_MAX: usize = 64;

/// A guest's address, and its policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VsockOption {
    /// Its own address.
    pub cid: u64,
    /// Those of the guests that it may talk to, if they may talk to it.
    pub peers: Vec<u64>,
}

impl FromStr for VsockOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        let mut option = Self { cid: address(words.next().unwrap_or_default())?, peers: Vec::new() };
        for word in words {
            let Some(("peer", peer)) = word.split_once('=') else { return Err(format!("unknown: {word}")) };
            let peer = address(peer)?;
            if peer == option.cid || option.peers.contains(&peer) {
                return Err(format!("{peer} is there twice"));
            }
            option.peers.push(peer);
        }
        if option.peers.len() > PEERS_MAX {
            return Err(format!("more than {PEERS_MAX} peers"));
        }
        Ok(option)
    }
}

/// A guest's.
fn address(text: &str) -> Result<u64, String> {
    let cid = text.parse().ok().filter(|cid| (CID_MIN..=CID_MAX).contains(cid));
    cid.ok_or_else(|| format!("{text:?}: a guest's address is a number from {CID_MIN} to {CID_MAX}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_peers() {
        let parse = |text: &str| text.parse::<VsockOption>();
        assert_eq!(parse("3"), Ok(VsockOption { cid: 3, peers: vec![] }));
        assert_eq!(parse("4294967294,peer=3,peer=7").unwrap().peers, [3, 7]);
        for wrong in [
            "",
            "2",
            "4294967295",
            "x",
            "3,",
            "3,peer",
            "3,peer=2",
            "3,peer=3",
            "3,peer=4,peer=4",
            "3,port=4",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        let many: String = (4..69).map(|cid| format!(",peer={cid}")).collect();
        assert!(parse(&format!("3{many}")).is_err());
    }
}
