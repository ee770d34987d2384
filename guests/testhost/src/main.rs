#![no_std]
#![no_main]
gzvm_guest_kit::entry!(main);
fn main() { gzvm_guest_kit::println!("hi {:?}", gzvm_guest_kit::machine::get().cpus); }
