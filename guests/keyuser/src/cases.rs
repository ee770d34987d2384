// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What it may do, and what not.

use core::fmt::Write;
use core::time::Duration;

use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::rpc::{self, Channel, Doorbell, Error, Message, Pages, PeerKind};
use gzvm_guest_kit::spin::Mutex;
use gzvm_guest_kit::{ArrayString, ArrayVec, cases, check, check_eq, fail, machine, measurement, timer};
use keystore::protocol::{Answer, Caller, Listed, MOST_GRANTED, PublicKey, Refusal, Reply, Request};
use keystore::store::verify;

pub const CASES: &[Case] = cases!["keyuser":
    peer_is_the_store, store_knows_who_calls, makes_a_key_and_signs, others_keys_are_not_for_us, signs_a_document,
    refuses_a_document, no_answer_in_no_time, many_calls, gone_is_told,
];

const TIME: Option<Duration> = Some(Duration::from_secs(20));

static CHANNEL: Mutex<Option<(Channel, Doorbell)>> = Mutex::new(None);
static QUESTION: Mutex<Message> = Mutex::new(Message::new());
static ANSWER: Mutex<Message> = Mutex::new(Message::new());
/// What goes with a call.
static PAGES: Mutex<Pages<16>> = Mutex::new(Pages::new());
/// What is written there.
static DOCUMENT: Mutex<[u8; MOST_GRANTED]> = Mutex::new([0; MOST_GRANTED]);

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

/// Asks by this `exchange` of the channel.
fn ask_by(
    request: Request,
    exchange: impl FnOnce(&Channel, &Doorbell, &Message, &mut Message) -> Result<(), Error>,
) -> Result<Result<Answer, Error>, Verdict> {
    with_channel(|channel, bell| {
        let (mut question, mut answer) = (QUESTION.lock(), ANSWER.lock());
        let written = question.fill(|to| postcard::to_slice(&request, to).map(|bytes| bytes.len()));
        check!(written.is_ok(), "the request has no room");
        if let Err(error) = exchange(channel, bell, &question, &mut answer) {
            return Ok(Err(error));
        }
        let answer = postcard::from_bytes(answer.bytes());
        answer.map(Ok).map_err(|_| Verdict::fail(format_args!("an answer that is none")))
    })
}

fn ask(request: Request) -> Result<Answer, Verdict> {
    let answer = ask_by(request, |channel, bell, question, answer| {
        channel.exchange(bell, question, answer, TIME).map(drop)
    })?;
    error(answer, "the call")
}

/// For a signature of so many bytes of what goes with the call.
fn ask_with(
    key: PublicKey,
    bytes: usize,
    document: &[u8],
    time: Option<Duration>,
) -> Result<Result<Answer, Error>, Verdict> {
    let mut pages = PAGES.lock();
    let Some(grant) = pages.lend(document.len(), |to| to.copy_from_slice(document)) else {
        fail!("{} bytes have no room", document.len())
    };
    let request = Request::SignGranted { key, bytes: bytes as u32 };
    ask_by(request, |channel, bell, question, answer| {
        channel.exchange_with(bell, question, answer, grant, time).map(drop)
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

fn make() -> Result<PublicKey, Verdict> {
    match ask(Request::Make)? {
        Ok(Reply::Key(key)) => Ok(key),
        other => fail!("Make: {other:?}"),
    }
}

/// More than a message has room for. Often, too: nothing stays lent.
fn signs_a_document() -> Outcome {
    if measurement::read().is_none() {
        let refused = ask_with([0; 32], 1, b"words", TIME)?;
        check_eq!(refused, Err(Error::NotSupported), "memory of a plain VM");
        return Ok(());
    }
    let key = make()?;
    let mut document = DOCUMENT.lock();
    for (n, byte) in document.iter_mut().enumerate() {
        *byte = (n ^ n >> 8) as u8;
    }
    for bytes in [1, 4096, 4097, 50_000, MOST_GRANTED].into_iter().chain(5000..5040) {
        let answer = ask_with(key, bytes, &document[..bytes], TIME)?;
        let Ok(Ok(Reply::Signature(signature))) = answer else { fail!("{bytes} bytes: {answer:?}") };
        check!(verify(&key, &document[..bytes], &signature), "a bad signature of {bytes} bytes");
    }
    check_eq!(ask(Request::Forget { key })?, Ok(Reply::Forgotten), "Forget");
    Ok(())
}

fn refuses_a_document() -> Outcome {
    check!(PAGES.lock().lend(MOST_GRANTED + 1, |_| ()).is_none(), "there are no so many pages");
    let Some(hosts) = keys()?.find(|listed| listed.owner == Caller::Host) else {
        fail!("the host has no key")
    };
    let without = ask(Request::SignGranted { key: hosts.key, bytes: 1 })?;
    check_eq!(without, Err(Refusal::NotYours), "the host's key");
    if measurement::read().is_none() {
        return Ok(());
    }
    check_eq!(
        ask_with(hosts.key, 5, b"words", TIME)?,
        Ok(Err(Refusal::NotYours)),
        "the host's key, by grant"
    );
    let key = make()?;
    let without = ask(Request::SignGranted { key, bytes: 1 })?;
    check_eq!(without, Err(Refusal::NotGranted), "without memory");
    for (bytes, lent) in [(4097, 5), (MOST_GRANTED + 1, MOST_GRANTED), (u32::MAX as usize, 1)] {
        let document = &DOCUMENT.lock()[..lent];
        check_eq!(
            ask_with(key, bytes, document, TIME)?,
            Ok(Err(Refusal::TooLong)),
            "{bytes} of {lent} bytes"
        );
    }
    // Before the store has seen it, while it copies it, and afterwards: when nobody waits any more, it is ours.
    for n in 0..40 {
        let time = Some(Duration::from_micros(1 + 100 * n));
        let hurried = ask_with(key, MOST_GRANTED, &DOCUMENT.lock()[..], time)?;
        check!(matches!(hurried, Err(Error::Lapsed) | Ok(Ok(Reply::Signature(_)))), "{hurried:?}");
    }
    check_eq!(ask(Request::Forget { key })?, Ok(Reply::Forgotten), "Forget");
    // Of one that was not even sent, too.
    with_channel(|channel, bell| {
        let (mut pages, question, mut answer) = (PAGES.lock(), QUESTION.lock(), ANSWER.lock());
        // Whose answers nobody receives.
        let calls = core::iter::from_fn(|| channel.call(&question, None).ok());
        let calls = calls.collect::<ArrayVec<_, 8>>();
        for _ in 0..2 {
            let Some(grant) = pages.lend(5, |to| to.fill(1)) else { fail!("no room") };
            let unsent =
                channel.exchange_with(bell, &question, &mut answer, grant, Some(Duration::from_millis(1)));
            check_eq!(unsent, Err(Error::Lapsed), "a call for which there is no room");
        }
        calls.into_iter().try_for_each(|call| error(channel.cancel(call), "CANCEL"))
    })
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
