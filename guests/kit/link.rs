// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The build script of the guests that use the kit: links a position-independent arm64 Image.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../kit/image.ld");
    println!("cargo:rerun-if-changed={script}");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        // -z notext: constants with pointers lie in .rodata; the entry code relocates them before
        // the MMU is on.
        for arg in [
            "-T",
            script,
            "-pie",
            "--no-dynamic-linker",
            "-znotext",
            "-znorelro",
            "--no-apply-dynamic-relocs",
        ] {
            println!("cargo:rustc-link-arg-bins={arg}");
        }
    }
}
