// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Links the guest where a VM's memory begins, by the linker script of crate aarch64-rt behind an Image header.

fn main() {
    println!("cargo:rerun-if-changed=memory.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/memory.ld");
        for arg in ["-Timage.ld", "-T", script] {
            println!("cargo:rustc-link-arg-bins={arg}");
        }
    }
}
