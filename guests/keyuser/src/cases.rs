// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What it may do, and what not.

use core::fmt::Write;
use core::time::Duration;

use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::rpc::{self, Channel, Doorbell, Error, Message, PeerKind};
use gzvm_guest_kit::spin::Mutex;
use gzvm_guest_kit::{ArrayString, cases, check, check_eq, fail, machine, measurement, timer};
use keystore::protocol::{Answer, Caller, Listed, PublicKey, Refusal, Reply, Request};
use keystore::store::verify;

pub const CASES: &[Case] = cases!["keyuser":
    peer_is_the_store, store_knows_who_calls, makes_a_key_and_signs, others_keys_are_not_for_us, no_answer_in_no_time,
    many_calls, gone_is_told,
];

const TIME: Option<Duration> = Some(Duration::from_secs(20));

static CHANNEL: Mutex<Option<(Channel, Doorbell)>> = Mutex::new(None);
static QUESTION: Mutex<Message> = Mutex::new(Message::new());
static ANSWER: Mutex<Message> = Mutex::new(Message::new());

fn error<T>(result: Result<T, Error>, what: &str) -> Result<T, Verdict> {
    result.map_err(|error| Verdict::fail(format_args!("{what}: {error:?}")))
}

fn with_channel<T>(act: impl FnOnce(&Channel, &Doorbell) -> Result<T, Verdict>) -> Result<T, Verdict> {
    let mut channel = CHANNEL.lock();
    if channel.is_none() {
        let bell = error(Doorbell::new(), "the doorbell")?;
        let Some(port) = rpc::places("keys").first().copied() else {
            fail!("the device tree names no place \"keys\"")
        };
        *channel = Some((error(Channel::open(port), "OPEN")?, bell));
    }
    let Some((channel, bell)) = &*channel else { fail!("there is no channel") };
    act(channel, bell)
}

fn ask(request: Request) -> Result<Answer, Verdict> {
    with_channel(|channel, bell| {
        let (mut question, mut answer) = (QUESTION.lock(), ANSWER.lock());
        let written = question.fill(|to| postcard::to_slice(&request, to).map(|bytes| bytes.len()));
        check!(written.is_ok(), "the request has no room");
        error(channel.exchange(bell, &question, &mut answer, TIME), "the call")?;
        postcard::from_bytes(answer.bytes())
            .map_err(|_| Verdict::fail(format_args!("an answer that is none")))
    })
}

fn keys() -> Result<impl Iterator<Item = Listed>, Verdict> {
    match ask(Request::List)? {
        Ok(Reply::Keys(keys)) => Ok(keys.into_iter().flatten()),
        other => fail!("List: {other:?}"),
    }
}

/// Before it is told anything: a VM that only says so has another measurement than the one that this guest was signed with.
fn peer_is_the_store() -> Outcome {
    let peer = with_channel(|channel, _| error(channel.peer(), "PEER"))?;
    let PeerKind::Protected(measurement) = peer.kind else { fail!("{peer:?}") };
    if let Some(expected) = machine::get().arg("store") {
        let mut digits = ArrayString::<64>::new();
        let written = measurement.iter().try_for_each(|byte| write!(digits, "{byte:02x}"));
        check!(written.is_ok() && *digits == *expected, "the peer is {digits}, not {expected}");
    }
    Ok(())
}

fn store_knows_who_calls() -> Outcome {
    match (ask(Request::WhoAmI)?, measurement::read()) {
        (Ok(Reply::You(Caller::Protected(told))), Some(own)) if told == own.value => Ok(()),
        (Ok(Reply::You(Caller::Plain { .. })), None) => Ok(()),
        (told, own) => fail!("{told:?}, and we are {own:?}"),
    }
}

fn sign(key: PublicKey, message: &[u8]) -> Outcome {
    match ask(Request::Sign { key, message })? {
        Ok(Reply::Signature(signature)) => {
            check!(verify(&key, message, &signature), "a bad signature of {} bytes", message.len());
            let request = Request::Verify { key, message, signature };
            check_eq!(ask(request)?, Ok(Reply::Verified(true)), "Verify");
            let request = Request::Verify { key, message: b"other words", signature };
            check_eq!(ask(request)?, Ok(Reply::Verified(false)), "Verify of other words");
            Ok(())
        }
        other => fail!("Sign: {other:?}"),
    }
}

/// A protected VM; a plain one is refused.
fn makes_a_key_and_signs() -> Outcome {
    let made = ask(Request::Make)?;
    if measurement::read().is_none() {
        check_eq!(made, Err(Refusal::NotForYou), "Make of a plain VM");
        return Ok(());
    }
    let Ok(Reply::Key(key)) = made else { fail!("Make: {made:?}") };
    check!(keys()?.any(|listed| listed.key == key), "it is not listed");
    sign(key, b"words of a guest")?;
    sign(key, &[0x5A; 3000])
}

fn others_keys_are_not_for_us() -> Outcome {
    let Some(hosts) = keys()?.find(|listed| listed.owner == Caller::Host) else {
        fail!("the host has no key")
    };
    let key = hosts.key;
    check_eq!(ask(Request::Sign { key, message: b"words" })?, Err(Refusal::NotYours), "Sign");
    check_eq!(ask(Request::Forget { key })?, Err(Refusal::NotYours), "Forget");
    check!(keys()?.any(|listed| listed.key == key), "it is gone");
    Ok(())
}

/// A call lapses; what is answered too late is not taken for another answer.
fn no_answer_in_no_time() -> Outcome {
    let lapsed = with_channel(|channel, bell| {
        let (mut question, mut answer) = (QUESTION.lock(), ANSWER.lock());
        check!(question.set(&[0]), "no room");
        let begin = timer::now();
        let got = channel.exchange(bell, &question, &mut answer, Some(Duration::from_micros(1)));
        check!(timer::now() - begin < 10 * timer::frequency(), "it took its time");
        Ok(got)
    })?;
    check!(matches!(lapsed, Err(Error::Lapsed) | Ok(_)), "{lapsed:?}");
    store_knows_who_calls()
}

fn many_calls() -> Outcome {
    for n in 0..500 {
        let Ok(Reply::You(_)) = ask(Request::WhoAmI)? else { fail!("call {n}") };
    }
    Ok(())
}

/// An end that is closed is not there any more, and the host can be asked for nothing.
fn gone_is_told() -> Outcome {
    let channel = CHANNEL.lock().take();
    let Some((channel, _)) = channel else { fail!("there is no channel") };
    drop(channel);
    let again = rpc::places("keys").first().map(|port| Channel::open(*port).map(drop));
    check_eq!(again, Some(Err(Error::Invalid)), "OPEN of a channel that was closed");
    Ok(())
}
