// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The node that tells the payload where it finds its channels (`docs/abi.md`, "RPC"). The payload goes by it, and reads it with less
//! care than is taken here: so it has this form and no other.

use dtoolkit::fdt::FdtNode;
use dtoolkit::{Node, Property};

use crate::broken::{Mistake, broken};

/// Channels of a VM at the most.
const MOST_CHANNELS: usize = 16;
/// SPIs that a virtual GIC can have.
const MAX_SPIS: u32 = 988;
/// Longest name.
const NAME_MAX: usize = 31;
const RISING_EDGE: u32 = 1;

/// What the node says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rpc<'a> {
    ports: &'a [u8],
    names: &'a [u8],
}

impl<'a> Rpc<'a> {
    /// None, if it says anything else, or more.
    pub(super) fn read(node: &FdtNode<'a>) -> Option<Self> {
        if node.name() != "rpc" || node.children().next().is_some() {
            return None;
        }
        let (mut compatible, mut doorbell, mut ports, mut names) = (false, false, None, None);
        for property in node.properties() {
            let value = property.value_as::<&[u8]>().ok()?;
            match property.name() {
                "compatible" => compatible = value == b"gzvm,rpc\0",
                "interrupts" => doorbell = is_doorbell(value),
                "gzvm,ports" => ports = Some(value),
                "gzvm,port-names" => names = Some(value),
                _ => return None,
            }
        }
        let rpc = Self { ports: ports?, names: names? };
        (compatible && doorbell && rpc.is_sound()).then_some(rpc)
    }

    /// Each port once, and a name for each.
    fn is_sound(&self) -> bool {
        let count = self.ports.len() / 4;
        let ports = || self.ports.chunks(4);
        let distinct = ports().enumerate().all(|(n, port)| ports().take(n).all(|other| other != port));
        let named = self.names.ends_with(&[0]) && self.names().count() == count && self.names().all(is_name);
        let whole = self.ports.len().is_multiple_of(4) && (1..=MOST_CHANNELS).contains(&count);
        whole && ((distinct && named) || broken(Mistake::AnyRpc))
    }

    fn names(&self) -> impl Iterator<Item = &'a [u8]> {
        // Each ends with a zero, the last one too.
        self.names.split_last().map_or(&[][..], |(_, names)| names).split(|byte| *byte == 0)
    }

    /// The ports as numbers, in the tree's order.
    pub fn ports(&self) -> impl Iterator<Item = u32> {
        self.ports.chunks(4).filter_map(|cell| cell.try_into().ok().map(u32::from_be_bytes))
    }

    /// Their names, each with a zero behind it.
    pub const fn all_names(&self) -> &'a [u8] {
        self.names
    }
}

/// One SPI, by its rising edge.
fn is_doorbell(value: &[u8]) -> bool {
    let mut cells = value.chunks(4).map(|cell| cell.try_into().map(u32::from_be_bytes));
    let mut next = || cells.next().and_then(Result::ok);
    let (kind, number, trigger) = (next(), next(), next());
    value.len() == 12
        && kind == Some(0)
        && number.is_some_and(|spi| spi < MAX_SPIS)
        && trigger == Some(RISING_EDGE)
}

fn is_name(name: &[u8]) -> bool {
    let good = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    (1..=NAME_MAX).contains(&name.len()) && name.iter().all(good) && name.first() != Some(&b'-')
}
