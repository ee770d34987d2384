// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The key store in a guest of its own: receives a call, has [`keystore::store`] answer it, replies. `docs/rpc.md` goes through it.
//!
//! In a protected VM the keys are out of the host's reach: they are made of the platform's random numbers inside it, and no
//! answer has a place for one.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
gzvm_guest_kit::entry!(serve);

#[cfg(target_os = "none")]
fn serve() {
    use gzvm_guest_kit::rpc::{Doorbell, Granted, Message, PeerKind, Service};
    use gzvm_guest_kit::spin::Mutex;
    use gzvm_guest_kit::{gic, println, trng};
    use keystore::protocol::{Caller, MOST_GRANTED, Refusal};
    use keystore::store::Store;

    // Not on the stack, which is small.
    static STORE: Mutex<Store> = Mutex::new(Store::new());
    static QUESTION: Mutex<Message> = Mutex::new(Message::new());
    static ANSWER: Mutex<Message> = Mutex::new(Message::new());
    static DOCUMENT: Mutex<[u8; MOST_GRANTED]> = Mutex::new([0; MOST_GRANTED]);
    let (mut store, mut question, mut answer) = (STORE.lock(), QUESTION.lock(), ANSWER.lock());
    let mut document = DOCUMENT.lock();

    /// The document that came with a call, copied: its caller may change what it has lent.
    fn copy<'a>(granted: Option<&Granted>, bytes: usize, to: &'a mut [u8]) -> Result<&'a [u8], Refusal> {
        let granted = granted.ok_or(Refusal::NotGranted)?;
        let to = to.get_mut(..bytes).filter(|_| bytes <= granted.bytes()).ok_or(Refusal::TooLong)?;
        granted.view().and_then(|view| view.read(0, to)).map_err(|_| Refusal::NotGranted)?;
        Ok(to)
    }

    gic::init_distributor();
    gic::init_cpu();
    let bell = match Doorbell::new() {
        Ok(bell) => bell,
        Err(error) => return println!("keystore: no channels: {error:?}; gz run --rpc keys"),
    };
    let mut service = Service::new("keys");
    println!("keystore: serving {} callers at a time", service.places());
    loop {
        let asked = service.next(&bell, &mut question);
        // Who calls is what the hypervisor says, not what the message says.
        let caller = match asked.caller.kind {
            PeerKind::Host => Caller::Host,
            PeerKind::Protected(measurement) => Caller::Protected(measurement),
            PeerKind::Plain | PeerKind::Open => {
                Caller::Plain { vm: asked.caller.vm, generation: asked.caller.generation }
            }
        };
        let (granted, room) = (asked.granted.as_ref(), &mut *document);
        let _ = answer.fill(|to| {
            let said =
                store.answer(caller, question.bytes(), |bytes| copy(granted, bytes, room), trng::fill, to);
            Ok::<_, ()>(said.len())
        });
        // One that has gone, or waits no longer, gets none.
        let _ = service.reply(asked, &answer);
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    println!("This is a guest: it runs in a virtual machine.");
}
