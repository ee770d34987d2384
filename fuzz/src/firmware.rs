// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The body of the fuzz target for what the firmware of protected VMs checks, as [`bodies`](crate::bodies) are.

use dtoolkit::fdt::Fdt;
use ed25519_dalek::SigningKey;
use gzvm_firmware_verify::manifest::{Payload, SIZE, has_digest, sign};
use gzvm_firmware_verify::tree::{self, Given, MEMORY_FROM, PAGE, Range};

/// A target's name and body.
pub const TARGETS: [(&str, fn(&[u8])); 1] = [("firmware", firmware)];

/// The owner's key. It is in the corpus' signatures.
const KEY: [u8; 32] = [1; 32];
/// What the firmware asks for.
const MINIMUM: u64 = 3;

/// Two bytes each: how long the payload, the initrd and the boot arguments are; these; the device tree.
pub fn firmware(data: &[u8]) {
    let Some((lengths, mut rest)) = data.split_at_checked(6) else { return };
    let mut parts = [&[][..]; 3];
    for (part, length) in parts.iter_mut().zip(lengths.chunks(2)) {
        let length = usize::from(length[0]) | usize::from(length[1]) << 8;
        (*part, rest) = rest.split_at(length.min(rest.len()));
    }
    payload(parts);
    device_tree(rest);
}

/// What is accepted is what the owner signs, to the last bit.
fn payload([kernel, initrd, bootargs]: [&[u8]; 3]) {
    let key = SigningKey::from_bytes(&KEY);
    let payload = Payload { kernel, initrd, bootargs };
    if let Ok(verified) = payload.verify(&key.verifying_key(), MINIMUM, has_digest) {
        let (image, manifest) = kernel.split_at(kernel.len() - SIZE);
        assert!(verified.version >= MINIMUM, "version {}", verified.version);
        let signed = sign(&key, &Payload { kernel: image, ..payload }, verified.version);
        assert_eq!(manifest, signed, "nobody has signed this");
    }
}

/// Where the plan has things, they are in memory and apart; and devices are not.
fn device_tree(blob: &[u8]) {
    // An allocation is aligned, as a tree in memory is; the input may not be.
    let blob = blob.to_vec();
    let Ok(fdt) = Fdt::new(&blob) else { return };
    let uart = tree::uart(&fdt);
    assert!(uart.is_none_or(|at| at < MEMORY_FROM), "a UART in memory");
    for (at, length) in tree::seeds(&fdt, &blob) {
        assert!(at.checked_add(length).is_some_and(|end| end <= blob.len()), "a seed outside of the tree");
    }
    let range = |start, size| Range::new(start, size).expect("a range");
    let given = Given {
        tree: range(0x8FE0_0000, 0x1000),
        kernel: range(0x8000_0000, 0x200_0200),
        firmware: range(0x7FC0_0000, 0x10_0000),
    };
    let Ok(plan) = tree::read(&fdt, &given) else { return };
    let mut parts = vec![given.tree, given.kernel];
    parts.extend(plan.initrd.iter().chain(&plan.pool));
    for (n, part) in parts.iter().enumerate() {
        assert!(
            plan.memory.start() <= part.start() && part.end() <= plan.memory.end(),
            "{part:?} is not in memory"
        );
        let apart = |other: &Range| other.end() <= part.start() || part.end() <= other.start();
        assert!(parts[..n].iter().chain([&given.firmware]).all(apart), "{part:?} is on top of another");
    }
    assert!(
        plan.memory.start() >= MEMORY_FROM
            && plan.devices.iter().all(|device| device.registers.end() <= MEMORY_FROM)
    );
    assert!(
        plan.pool.is_none_or(|pool| pool.start() % PAGE == 0 && pool.size() % PAGE == 0),
        "half a page is shared"
    );
}
