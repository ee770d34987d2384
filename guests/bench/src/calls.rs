// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a call to another VM takes, and its answer: this guest runs in both (`calls=serve`, `calls=call`), with channels of the name
//! "echo". Each VM's vCPU sleeps while the other's works, so the figure has the hypervisor, both drivers' exits and wake-ups of the
//! host's kernel in it.

use core::time::Duration;

use gzvm_guest_kit::rpc::{self, Channel, Doorbell, Message, Service};
use gzvm_guest_kit::spin::Mutex;
use gzvm_guest_kit::{gic, println};

use super::operations::Bench;

const NAME: &str = "echo";
/// Not for ever, should the other end be gone.
const TIME: Option<Duration> = Some(Duration::from_secs(20));

static QUESTION: Mutex<Message> = Mutex::new(Message::new());
static ANSWER: Mutex<Message> = Mutex::new(Message::new());

/// Plays its part.
pub fn main(part: &str, bench: &Bench) {
    gic::init_distributor();
    gic::init_cpu();
    let bell = match Doorbell::new() {
        Ok(bell) => bell,
        Err(error) => return println!("[FAIL] calls: {error:?}"),
    };
    if part == "serve" { serve(&bell) } else { call(&bell, bench) }
}

/// Answers each call with what it says.
fn serve(bell: &Doorbell) {
    let mut service = Service::new(NAME);
    let mut message = QUESTION.lock();
    loop {
        let asked = service.next(bell, &mut message);
        let _ = service.reply(asked, &message);
    }
}

fn call(bell: &Doorbell, bench: &Bench) {
    let channel = rpc::places(NAME).first().ok_or(rpc::Error::Invalid).and_then(|port| Channel::open(*port));
    let channel = match channel {
        Ok(channel) => channel,
        Err(error) => return println!("[FAIL] calls: {error:?}"),
    };
    let (mut question, mut answer) = (QUESTION.lock(), ANSWER.lock());
    for (name, bytes) in [("rpc-null", &[][..]), ("rpc-4096", &[0x5A; 4096])] {
        let mut failed = !question.set(bytes);
        let cost = bench.time(|| {
            failed |= channel.exchange(bell, &question, &mut answer, TIME).is_err();
        });
        if failed || answer.bytes() != bytes {
            return println!("[FAIL] {name}: no answer, or another");
        }
        bench.report(name, cost, 0);
    }
}
