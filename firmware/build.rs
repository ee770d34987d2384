// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Links the firmware as a position-independent arm64 Image, and puts in the key that verifies payloads and the oldest version
//! of one that starts.

use std::{env, fs, path::Path};

fn main() {
    let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let script = format!("{folder}/image.ld");
    println!("cargo:rerun-if-changed={script}");
    println!("cargo:rerun-if-env-changed=GZVM_PAYLOAD_KEY");
    let key = env::var("GZVM_PAYLOAD_KEY").unwrap_or_else(|_| format!("{folder}/keys/development.pub"));
    println!("cargo:rerun-if-changed={key}");
    println!("cargo:rerun-if-env-changed=GZVM_PAYLOAD_MIN_VERSION");
    let minimum = env::var("GZVM_PAYLOAD_MIN_VERSION").unwrap_or_else(|_| "1".to_owned());
    println!("cargo:rustc-env=GZVM_PAYLOAD_MIN_VERSION={minimum}");
    let text = fs::read_to_string(&key).unwrap_or_else(|e| panic!("{key}: {e}"));
    let bytes: Vec<u8> = (0..32)
        .map(|n| {
            let digits = text.trim().get(2 * n..2 * n + 2).unwrap_or_default();
            u8::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("{key}: not 64 hexadecimal digits"))
        })
        .collect();
    let out = env::var("OUT_DIR").expect("cargo sets it");
    fs::write(Path::new(&out).join("payload.key"), bytes).expect("the folder is there");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        // -z notext: constants with pointers lie in .rodata; the entry code relocates them before the MMU is on.
        let arguments = [
            "-T",
            &script,
            "-pie",
            "--no-dynamic-linker",
            "-znotext",
            "-znorelro",
            "--no-apply-dynamic-relocs",
        ];
        for argument in arguments {
            println!("cargo:rustc-link-arg-bins={argument}");
        }
    }
}
