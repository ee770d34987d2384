// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What decides: who may do what with which key.
//!
//! | caller | list, verify | make | sign, forget |
//! |---|---|---|---|
//! | the host | yes | yes | keys that it has made |
//! | a protected VM | yes | yes | keys that were made under its measurement |
//! | a plain VM | yes | no | no: the host can speak with its voice, and has one of its own |
//!
//! # Invariants
//! A secret is in its [`Slot`] and nowhere in an answer: [`Reply`] has no place for one.

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};

use crate::protocol::{
    Answer, Caller, Listed, MOST_KEYS, MOST_OF_ONE, PublicKey, Refusal, Reply, Request, Signature,
};

/// A key with its owner.
struct Slot {
    secret: [u8; 32],
    listed: Listed,
}

/// All keys.
pub struct Store {
    slots: [Option<Slot>; MOST_KEYS],
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// None, to begin with: they are gone with the VM.
    pub const fn new() -> Self {
        Self { slots: [const { None }; MOST_KEYS] }
    }

    /// Answers what `caller` has asked: the answer's bytes, in `to`. `granted` has so many bytes of the memory that came with the
    /// call; `random` fills bytes with random ones, or says that it can't.
    ///
    /// What `granted` has must be a copy. A signature reads it twice, and of two documents that were signed as one a caller finds the
    /// key's secret.
    pub fn answer<'a, 'b>(
        &mut self,
        caller: Caller,
        asked: &[u8],
        granted: impl FnOnce(usize) -> Result<&'b [u8], Refusal>,
        random: impl FnOnce(&mut [u8]) -> bool,
        to: &'a mut [u8],
    ) -> &'a [u8] {
        let answer = match postcard::take_from_bytes::<Request>(asked) {
            Ok((request, [])) => self.decide(caller, request, granted, random),
            _ => Err(Refusal::Malformed),
        };
        // It has room: a test says how long answers get.
        postcard::to_slice(&answer, to).map_or(&[], |bytes| &*bytes)
    }

    fn decide<'b>(
        &mut self,
        caller: Caller,
        request: Request<'_>,
        granted: impl FnOnce(usize) -> Result<&'b [u8], Refusal>,
        random: impl FnOnce(&mut [u8]) -> bool,
    ) -> Answer {
        Ok(match request {
            Request::WhoAmI => Reply::You(caller),
            Request::List => Reply::Keys(self.slots.each_ref().map(|slot| Some(slot.as_ref()?.listed))),
            Request::Make => Reply::Key(self.make(caller, random)?),
            Request::Sign { key, message } => Reply::Signature(sign(self.secret(caller, &key)?, message)),
            Request::SignGranted { key, bytes } => {
                // Nobody has anything copied for a key that is not its own.
                let secret = self.secret(caller, &key)?;
                Reply::Signature(sign(secret, granted(bytes as usize)?))
            }
            Request::Verify { key, message, signature } => Reply::Verified(verify(&key, message, &signature)),
            Request::Forget { key } => {
                let is_it =
                    |slot: &&mut Option<Slot>| slot.as_ref().is_some_and(|slot| slot.listed.key == key);
                let place = self.slots.iter_mut().find(is_it).ok_or(Refusal::NoSuchKey)?;
                if let Some(slot) = place {
                    may_use(caller, &slot.listed)?;
                    slot.secret.fill(0);
                }
                *place = None;
                Reply::Forgotten
            }
        })
    }

    fn secret(&self, caller: Caller, key: &PublicKey) -> Result<&[u8; 32], Refusal> {
        let slot = self.slots.iter().flatten().find(|slot| slot.listed.key == *key);
        let slot = slot.ok_or(Refusal::NoSuchKey)?;
        may_use(caller, &slot.listed)?;
        Ok(&slot.secret)
    }

    fn make(&mut self, caller: Caller, random: impl FnOnce(&mut [u8]) -> bool) -> Result<PublicKey, Refusal> {
        if matches!(caller, Caller::Plain { .. }) {
            return Err(Refusal::NotForYou);
        }
        let its = self.slots.iter().flatten().filter(|slot| slot.listed.owner == caller).count();
        let place = self.slots.iter_mut().find(|slot| slot.is_none());
        let place = place.filter(|_| its < MOST_OF_ONE).ok_or(Refusal::Full)?;
        let mut secret = [0; 32];
        if !random(&mut secret) {
            return Err(Refusal::NoEntropy);
        }
        let key = SigningKey::from_bytes(&secret).verifying_key().to_bytes();
        *place = Some(Slot { secret, listed: Listed { key, owner: caller } });
        Ok(key)
    }
}

fn may_use(caller: Caller, listed: &Listed) -> Result<(), Refusal> {
    if listed.owner == caller { Ok(()) } else { Err(Refusal::NotYours) }
}

fn sign(secret: &[u8; 32], message: &[u8]) -> Signature {
    let signature = SigningKey::from_bytes(secret).sign(message);
    [*signature.r_bytes(), *signature.s_bytes()]
}

/// Whether `signature` is `key`'s, of this message.
#[must_use]
pub fn verify(key: &PublicKey, message: &[u8], [r, s]: &Signature) -> bool {
    let signature = ed25519_dalek::Signature::from_components(*r, *s);
    VerifyingKey::from_bytes(key).is_ok_and(|key| key.verify_strict(message, &signature).is_ok())
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::protocol::{MOST_BYTES, MOST_GRANTED};
    use std::vec::Vec;

    const PLAIN: Caller = Caller::Plain { vm: 3, generation: 9 };
    const ONE: Caller = Caller::Protected([1; 32]);
    const OTHER: Caller = Caller::Protected([2; 32]);
    /// Of a message of the hypervisor's.
    const ROOM: usize = 4096;

    struct Service {
        store: Store,
        seed: u8,
        granted: Result<&'static [u8], Refusal>,
    }

    fn nothing(_: usize) -> Result<&'static [u8], Refusal> {
        Err(Refusal::NotGranted)
    }

    impl Service {
        fn new() -> Self {
            Self { store: Store::new(), seed: 0, granted: nothing(0) }
        }

        fn ask(&mut self, caller: Caller, request: Request<'_>) -> Answer {
            let asked = postcard::to_slice(&request, &mut [0; ROOM]).unwrap().to_vec();
            self.seed += 1;
            let seed = self.seed;
            let mut room = [0; ROOM];
            let random = |bytes: &mut [u8]| {
                bytes.fill(seed);
                true
            };
            let granted = self.granted;
            let granted = |bytes| granted?.get(..bytes).ok_or(Refusal::TooLong);
            postcard::from_bytes(self.store.answer(caller, &asked, granted, random, &mut room)).unwrap()
        }

        fn make(&mut self, caller: Caller) -> PublicKey {
            match self.ask(caller, Request::Make) {
                Ok(Reply::Key(key)) => key,
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn each_caller_has_its_own_rights() {
        let mut service = Service::new();
        let keys = [Caller::Host, ONE].map(|caller| (caller, service.make(caller)));
        assert_eq!(service.ask(PLAIN, Request::Make), Err(Refusal::NotForYou));
        for caller in [Caller::Host, ONE, OTHER, PLAIN] {
            assert_eq!(service.ask(caller, Request::WhoAmI), Ok(Reply::You(caller)));
            for (owner, key) in keys {
                let got = service.ask(caller, Request::Sign { key, message: b"words" });
                if caller != owner {
                    assert_eq!(got, Err(Refusal::NotYours), "{caller:?} signs as {owner:?}");
                    assert_eq!(service.ask(caller, Request::Forget { key }), Err(Refusal::NotYours));
                    continue;
                }
                let Ok(Reply::Signature(signature)) = got else { panic!("{got:?}") };
                for (message, good) in [(&b"words"[..], true), (b"other words", false)] {
                    let request = Request::Verify { key, message, signature };
                    assert_eq!(service.ask(PLAIN, request), Ok(Reply::Verified(good)));
                }
            }
            let Ok(Reply::Keys(listed)) = service.ask(caller, Request::List) else { panic!() };
            let listed: Vec<_> = listed.iter().flatten().map(|listed| (listed.owner, listed.key)).collect();
            assert_eq!(listed, keys);
        }
        let key = keys[1].1;
        assert_eq!(service.ask(ONE, Request::Forget { key }), Ok(Reply::Forgotten));
        assert_eq!(service.ask(ONE, Request::Sign { key, message: b"" }), Err(Refusal::NoSuchKey));
        assert_eq!(service.ask(ONE, Request::Forget { key }), Err(Refusal::NoSuchKey));
    }

    #[test]
    fn what_goes_with_a_call_is_signed() {
        let mut service = Service::new();
        let (key, others) = (service.make(ONE), service.make(OTHER));
        let sign = |key, bytes| Request::SignGranted { key, bytes };
        assert_eq!(service.ask(ONE, sign(key, 0)), Err(Refusal::NotGranted));
        let document: &[u8] = &[7; MOST_GRANTED];
        service.granted = Ok(document);
        assert_eq!(service.ask(ONE, sign(key, document.len() as u32 + 1)), Err(Refusal::TooLong));
        assert_eq!(service.ask(ONE, sign(others, 9)), Err(Refusal::NotYours));
        assert_eq!(service.ask(ONE, sign([0; 32], 9)), Err(Refusal::NoSuchKey));
        for bytes in [0, 9, document.len()] {
            let answer = service.ask(ONE, sign(key, bytes as u32));
            let Ok(Reply::Signature(signature)) = answer else { panic!("{answer:?}") };
            assert!(verify(&key, &document[..bytes], &signature), "of {bytes} bytes");
        }
    }

    #[test]
    fn nobody_takes_all_the_room() {
        let mut service = Service::new();
        for caller in [ONE, OTHER] {
            (0..MOST_OF_ONE).for_each(|_| _ = service.make(caller));
            assert_eq!(service.ask(caller, Request::Make), Err(Refusal::Full));
        }
        (0..MOST_KEYS - 2 * MOST_OF_ONE).for_each(|_| _ = service.make(Caller::Host));
        assert_eq!(service.ask(Caller::Host, Request::Make), Err(Refusal::Full));
    }

    #[test]
    fn without_entropy_there_is_no_key() {
        let mut store = Store::new();
        let mut room = [0; ROOM];
        let asked = postcard::to_slice(&Request::Make, &mut [0; 8]).unwrap().to_vec();
        let answer = store.answer(Caller::Host, &asked, nothing, |_| false, &mut room);
        assert_eq!(postcard::from_bytes::<Answer>(answer), Ok(Err(Refusal::NoEntropy)));
        assert!(store.slots.iter().all(Option::is_none));
    }

    #[test]
    fn anything_is_answered_and_no_secret_told() {
        let mut store = Store::new();
        let mut room = [0; ROOM];
        let secret = |bytes: &mut [u8]| {
            bytes.copy_from_slice(b"a secret of thirty-two bytes....");
            true
        };
        let make = postcard::to_slice(&Request::Make, &mut [0; 8]).unwrap().to_vec();
        store.answer(ONE, &make, nothing, secret, &mut room);
        let mut state = 1_u64;
        for round in 0..50_000_u32 {
            let mut bytes = [0_u8; 80];
            for byte in &mut bytes {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (state >> 56) as u8;
            }
            // Half of them begin as a request does.
            if round % 2 == 0 {
                bytes[0] %= 7;
            }
            let length = bytes[79] as usize % 80;
            let answer = store.answer(ONE, &bytes[..length], nothing, |_| false, &mut room);
            assert!(postcard::from_bytes::<Answer>(answer).is_ok());
            assert!(!answer.windows(8).any(|part| part == b"a secret"));
        }
    }

    #[test]
    fn the_longest_have_room() {
        let mut service = Service::new();
        let key = service.make(Caller::Host);
        for _ in 1..MOST_OF_ONE {
            service.make(Caller::Host);
            service.make(ONE);
            service.make(OTHER);
        }
        assert!(matches!(service.ask(ONE, Request::List), Ok(Reply::Keys(_))));
        let message = &[7; MOST_BYTES][..];
        let Ok(Reply::Signature(signature)) = service.ask(Caller::Host, Request::Sign { key, message })
        else {
            panic!()
        };
        let request = Request::Verify { key, message, signature };
        assert_eq!(service.ask(Caller::Host, request), Ok(Reply::Verified(true)));
    }
}
