// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Links the EL2 image as a position-independent arm64 `Image`.

fn main() {
    let here = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo:rerun-if-changed=image.ld");
    for arg in
        ["-pie", "--no-dynamic-linker", "-znotext", "-znorelro", "--pack-dyn-relocs=relr", "--build-id=none"]
    {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
    println!("cargo:rustc-link-arg-bins=-T{here}/image.ld");
}
