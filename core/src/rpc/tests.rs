// SPDX-License-Identifier: Apache-2.0 OR MIT
//! [`Exchange`] against an [`Oracle`] that knows no slots, only lists; handles; arguments.

use gzvm_abi::rpc::{MOST_BYTES, SLOTS, bell, peer, received};
use proptest::prelude::*;

use super::call::{Buffer, Call, deadline, decode, is_rpc, time_left};
use super::channel::{Channel, End, Handle, Who};
use super::exchange::{Exchange, Grant, NEVER, NoCall, Owed};
use super::{Bell, Side};
use crate::addr::{Ipa, VmId};
use crate::memory::loans::{self, Party};

/// A message of `from`, and how far it is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Sent,
    WithServer,
    Answered,
    /// Only its caller has still to be told that it lapsed.
    Lapsed,
    /// Only its server has still to be told that nobody waits.
    Withdrawn,
}

#[derive(Clone, Copy, Debug)]
struct Message {
    from: Side,
    /// 0: a notice.
    token: u64,
    bytes: usize,
    deadline: u64,
    stage: Stage,
    /// Memory that goes with it, until its caller has it back.
    grant: Option<Grant>,
}

/// What the two ends have under way, in the order in which it came to its stage.
#[derive(Default)]
struct Oracle {
    messages: Vec<Message>,
    told_nothing: [bool; 2],
    told_full: [bool; 2],
}

impl Oracle {
    fn count(&self, side: Side) -> usize {
        self.messages.iter().filter(|m| m.from == side).count()
    }

    fn find(&self, from: Side, token: u64) -> Option<usize> {
        self.messages.iter().position(|m| m.from == from && m.token == token && token != 0)
    }

    fn restage(&mut self, at: usize, stage: Stage) {
        let mut message = self.messages.remove(at);
        message.stage = stage;
        self.messages.push(message);
    }

    /// What `side` would receive of a message.
    fn kind(m: &Message, side: Side, now: u64) -> Option<u32> {
        match (m.from == side, m.stage) {
            (false, Stage::Sent) if m.token == 0 => Some(received::NOTICE),
            (false, Stage::Sent) if now < m.deadline => Some(received::CALL),
            (false, Stage::Withdrawn) => Some(received::CANCELLED),
            (true, Stage::Answered) => Some(received::REPLY),
            (true, Stage::Lapsed) => Some(received::LAPSED),
            (true, Stage::Sent | Stage::WithServer) if m.deadline <= now => Some(received::LAPSED),
            _ => None,
        }
    }

    /// What `side` receives; what has lapsed is for its caller from then on.
    fn next(&mut self, side: Side, now: u64) -> Option<(usize, u32)> {
        let lapsed = |m: &Message| m.from != side && m.stage == Stage::Sent && m.deadline <= now;
        while let Some(at) = self.messages.iter().position(lapsed) {
            self.messages[at].stage = Stage::Lapsed;
        }
        self.messages.iter().enumerate().find_map(|(n, m)| Some((n, Self::kind(m, side, now)?)))
    }

    fn take(&mut self, at: usize, kind: u32) {
        match (kind, self.messages[at].stage) {
            (received::CALL, _) => self.restage(at, Stage::WithServer),
            (received::LAPSED, Stage::WithServer) => self.restage(at, Stage::Withdrawn),
            _ => drop(self.messages.remove(at)),
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Call(Side, usize, u64),
    /// With memory: so many pages.
    CallWith(Side, u64),
    /// What a side would have to take back to leave.
    Owes(Side),
    Notice(Side, usize),
    Receive(Side),
    Peek(Side),
    /// A reply to one of the calls that there were.
    Reply(Side, prop::sample::Index),
    Cancel(Side, prop::sample::Index),
    Time(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let side = || prop_oneof![Just(Side::A), Just(Side::B)];
    let bytes = 0usize..=MOST_BYTES;
    let time = prop_oneof![3 => Just(u64::MAX), 1 => 1u64..20];
    let token = any::<prop::sample::Index>;
    let step = prop_oneof![
        4 => (side(), bytes.clone(), time).prop_map(|(s, b, t)| Step::Call(s, b, t)),
        3 => (side(), 1u64..17).prop_map(|(s, p)| Step::CallWith(s, p)),
        1 => side().prop_map(Step::Owes),
        1 => (side(), bytes).prop_map(|(s, b)| Step::Notice(s, b)),
        5 => side().prop_map(Step::Receive),
        1 => side().prop_map(Step::Peek),
        3 => (side(), token()).prop_map(|(s, t)| Step::Reply(s, t)),
        1 => (side(), token()).prop_map(|(s, t)| Step::Cancel(s, t)),
        1 => (1u64..12).prop_map(Step::Time),
    ];
    prop::collection::vec(step, 1..400)
}

const SIDES: [Side; 2] = [Side::A, Side::B];

struct Pair {
    real: Exchange,
    oracle: Oracle,
    now: u64,
    tokens: Vec<u64>,
    /// What a caller has been told of each call: at most one thing.
    ended: Vec<u64>,
    /// Loans made, and those that came back.
    loans: u64,
    back: Vec<loans::Handle>,
}

impl Pair {
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Time(ticks) => self.now += ticks,
            Step::Call(side, bytes, time) => self.call(side, bytes, time, None),
            Step::CallWith(side, pages) => {
                self.loans += 1;
                let loan = loans::Handle::new(self.loans, VmId(1));
                let grant = Grant { loan, pages, write: pages % 2 == 0 };
                let time = if pages % 4 == 0 { pages } else { u64::MAX };
                self.call(side, 8, time, Some(grant));
            }
            Step::Owes(side) => {
                let owed = self.real.owes(side, None);
                let of_side = || self.oracle.messages.iter().filter(|m| m.from == side);
                let any = of_side().any(|m| m.grant.is_some());
                assert_eq!(owed.is_err(), any, "whether {side:?} has granted anything");
                if let Err(Owed(loan)) = owed {
                    let its = |m: &Message| m.grant.is_some_and(|grant| grant.loan == loan);
                    assert!(of_side().any(its), "{loan:?} is not granted by {side:?}");
                }
            }
            Step::Notice(side, bytes) => {
                if let Some(place) = self.room(side) {
                    self.real.notice(place, bytes);
                    let message = Message {
                        from: side,
                        token: 0,
                        bytes,
                        deadline: NEVER,
                        stage: Stage::Sent,
                        grant: None,
                    };
                    self.oracle.messages.push(message);
                }
            }
            Step::Receive(side) => self.receive(side),
            Step::Peek(side) => {
                let before = self.real.next(side, self.now);
                assert_eq!(self.real.next(side, self.now), before, "a look changes nothing");
                let _ = self.oracle.next(side, self.now);
                *side.of_mut(&mut self.oracle.told_nothing) = before.is_none();
            }
            Step::Reply(side, ref index) => self.reply(side, self.token(index)),
            Step::Cancel(side, ref index) => self.cancel(side, self.token(index)),
        }
    }

    fn call(&mut self, side: Side, bytes: usize, time: u64, grant: Option<Grant>) {
        let deadline = self.now.saturating_add(time);
        if let Some(place) = self.room(side) {
            let token = self.real.call(place, bytes, deadline, grant);
            assert!(token != 0 && !self.tokens.contains(&token), "token {token} comes again");
            self.tokens.push(token);
            let message = Message { from: side, token, bytes, deadline, stage: Stage::Sent, grant };
            self.oracle.messages.push(message);
        }
    }

    /// The caller takes back what goes with the call at `at`, and nobody else ever has.
    fn take_back(&mut self, side: Side, at: usize, owed: Owed) {
        let grant = self.oracle.messages[at].grant.take();
        assert_eq!(Some(owed.0), grant.map(|grant| grant.loan), "what {side:?} owes");
        assert!(!self.back.contains(&owed.0), "{owed:?} comes back twice");
        self.back.push(owed.0);
        // The other side can't say so.
        self.real.settle(side.other(), owed);
        let token = self.oracle.messages[at].token;
        assert_eq!(self.real.owes(side, Some(token)), Err(owed));
        self.real.settle(side, owed);
        assert_eq!(self.real.owes(side, Some(token)), Ok(()));
    }

    fn token(&self, index: &prop::sample::Index) -> u64 {
        if self.tokens.is_empty() { 0 } else { *index.get(&self.tokens) }
    }

    fn room(&mut self, side: Side) -> Option<super::exchange::Place> {
        let place = self.real.room(side);
        assert_eq!(place.is_some(), self.oracle.count(side) < SLOTS, "room of {side:?}");
        *side.of_mut(&mut self.oracle.told_full) = place.is_none();
        place
    }

    fn receive(&mut self, side: Side) {
        let wanted = self.oracle.next(side, self.now);
        let event = self.real.next(side, self.now);
        assert_eq!(event.map(|e| e.kind), wanted.map(|w| w.1), "what {side:?} receives");
        let (Some(event), Some((at, kind))) = (event, wanted) else {
            *side.of_mut(&mut self.oracle.told_nothing) = true;
            return;
        };
        let message = self.oracle.messages[at];
        assert_eq!((event.token, event.place.side), (message.token, message.from));
        if !matches!(kind, received::LAPSED | received::CANCELLED) {
            assert_eq!(event.bytes, message.bytes);
        }
        let told = matches!(kind, received::LAPSED | received::REPLY);
        assert_eq!(event.grant, message.grant, "what goes with {event:?}");
        if told && let Err(owed) = event.settled() {
            self.take_back(side, at, owed);
            let again = self.real.next(side, self.now);
            assert_eq!(again, Some(super::exchange::Event { grant: None, ..event }), "once it is settled");
            return self.receive(side);
        }
        assert_eq!(event.settled(), Ok(()), "{event:?}");
        if told {
            assert!(!self.ended.contains(&event.token), "call {} ends twice", event.token);
            self.ended.push(event.token);
        }
        self.oracle.take(at, kind);
        let more = self.real.taken(side, &event, self.now);
        assert_eq!(more, self.oracle.next(side, self.now).is_some(), "whether there is more");
        *side.of_mut(&mut self.oracle.told_nothing) = !more;
    }

    fn reply(&mut self, side: Side, token: u64) {
        let found = self.oracle.find(side.other(), token).filter(|at| {
            let message = &self.oracle.messages[*at];
            message.stage == Stage::WithServer
        });
        let in_time = found.filter(|at| self.now < self.oracle.messages[*at].deadline);
        let place = self.real.reply_place(side, token, self.now);
        assert_eq!(place.is_ok(), in_time.is_some(), "a reply to {token}");
        match (place, found) {
            (Ok(place), Some(at)) => {
                self.real.reply(place, 7);
                self.oracle.messages[at].bytes = 7;
                self.oracle.restage(at, Stage::Answered);
            }
            (_, Some(at)) => self.oracle.messages[at].stage = Stage::Lapsed,
            _ => {}
        }
    }

    fn cancel(&mut self, side: Side, token: u64) {
        let found = self.oracle.find(side, token);
        let found = found.filter(|at| self.oracle.messages[*at].stage != Stage::Withdrawn);
        let owed = self.real.owes(side, Some(token));
        let granted = found.and_then(|at| self.oracle.messages[at].grant);
        assert_eq!(owed.err().map(|Owed(loan)| loan), granted.map(|grant| grant.loan), "what {token} owes");
        if let (Err(owed), Some(at)) = (owed, found) {
            self.take_back(side, at, owed);
        }
        assert_eq!(self.real.cancel(side, token).is_ok(), found.is_some(), "cancelling {token}");
        if let Some(at) = found {
            assert!(!self.ended.contains(&token));
            self.ended.push(token);
            if self.oracle.messages[at].stage == Stage::WithServer {
                self.oracle.restage(at, Stage::Withdrawn);
            } else {
                self.oracle.messages.remove(at);
            }
        }
    }

    /// Whoever was told that there is nothing, or no room, hears of it exactly when there is; what is due by time alone is
    /// nobody's bell.
    fn bells(&mut self) {
        for side in SIDES {
            let Bell(rings) = self.real.take_bell(side);
            let something = self.oracle.messages.iter().any(|m| Oracle::kind(m, side, 0).is_some());
            let told = side.of_mut(&mut self.oracle.told_nothing);
            if rings & bell::MESSAGE != 0 {
                assert!(*told, "{side:?}'s bell rings though it knows");
                *told = false;
            }
            assert!(!(*told && something), "{side:?}'s bell does not ring");
            let room = self.oracle.count(side) < SLOTS;
            let told = side.of_mut(&mut self.oracle.told_full);
            assert_eq!(rings & bell::ROOM != 0, *told && room, "{side:?}'s bell for room");
            *told &= !room;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_oracle(steps in steps()) {
        let oracle = Oracle { told_nothing: [true; 2], ..Oracle::default() };
        let mut pair = Pair {
            real: Exchange::default(),
            oracle,
            now: 1,
            tokens: Vec::new(),
            ended: Vec::new(),
            loans: 0,
            back: Vec::new(),
        };
        for step in &steps {
            pair.step(step);
            pair.bells();
        }
    }
}

fn party(id: u16, generation: u64) -> Who {
    Who::Vm(Party { id: VmId(id), generation })
}

fn end(who: Who, port: u32) -> End {
    End { who, port, protected: false }
}

#[test]
fn a_handle_is_good_for_its_vm_alone() {
    let (a, b) = (party(3, 7), party(4, 8));
    let mut channel = Channel::new(9, 1000, [end(a, 1), end(b, 2)]);
    let (of_a, of_b) = (channel.handle(Side::A), channel.handle(Side::B));
    assert_eq!((of_a.index(), of_b.index()), (9, 9));
    assert_eq!((channel.side(of_a, a), channel.side(of_b, b)), (Ok(Side::A), Ok(Side::B)));
    for who in [b, Who::Host, party(3, 8), party(5, 7)] {
        assert!(channel.side(of_a, who).is_err(), "{who:?}");
    }
    for bit in 0..64 {
        assert!(channel.side(Handle(of_a.0 ^ 1 << bit), a).is_err(), "bit {bit}");
    }
    assert_eq!((channel.at(a, 1), channel.at(a, 2), channel.at(b, 1)), (Some(of_a), None, None));
    assert_eq!(channel.leave(Side::A), Bell(bell::GONE));
    assert!(channel.side(of_a, a).is_err() && channel.side(of_b, b).is_ok());
    assert!(!channel.is_open() && !channel.is_over() && channel.at(b, 2).is_none());
    assert_eq!(channel.leave(Side::B), Bell(0));
    assert!(channel.is_over());
}

#[test]
fn the_hosts_end_goes_with_its_vm() {
    let vm = party(3, 7);
    let new = || Channel::new(0, 1, [end(vm, 1), end(Who::Host, 2)]);
    let mut channel = new();
    assert_eq!(channel.leave(Side::A), Bell(bell::GONE));
    assert!(channel.is_over() && channel.side(channel.handle(Side::B), Who::Host).is_err());
    let mut channel = new();
    assert_eq!(channel.leave(Side::B), Bell(bell::GONE));
    assert!(!channel.is_over() && channel.side(channel.handle(Side::A), vm).is_ok());
    assert_eq!(end(Who::Host, 0).id_and_flags(), peer::HOST);
    assert_eq!(End { protected: true, ..end(vm, 0) }.id_and_flags(), 3 | peer::PROTECTED);
}

#[test]
fn arguments_at_their_ends() {
    let buffer = |at, bytes| Buffer::new(at, bytes);
    for (at, bytes) in [(0, 4096), (0x1FFF, 1), (0x1000, 0), (0x1FFF, 0), (u64::MAX, 1), (u64::MAX, 0)] {
        assert_eq!(buffer(at, bytes), Some(Buffer { at: Ipa(at), bytes: bytes as usize }));
    }
    for (at, bytes) in [(0, 4097), (1, 4096), (0x1FFF, 2), (0, u64::MAX), (u64::MAX, 2)] {
        assert_eq!(buffer(at, bytes), None, "{bytes} at {at:#x}");
    }
    use gzvm_abi::rpc;
    assert_eq!(decode(rpc::OPEN, [u32::MAX.into(), 0, 0, 0, 0]), Some(Call::Open(u32::MAX)));
    assert_eq!(decode(rpc::OPEN, [1 << 32, 0, 0, 0, 0]), None);
    for fid in rpc::INFO - 2..rpc::CALL_WITH + 4 {
        let known = (rpc::INFO..=rpc::CALL_WITH).contains(&fid);
        assert_eq!((is_rpc(fid), decode(fid, [0; 5]).is_some()), (known, known), "{fid:#x}");
    }
}

#[test]
fn time_is_in_microseconds() {
    const MHZ: u64 = 1_000_000;
    assert_eq!(deadline(0, 5, MHZ), NEVER);
    assert_eq!(deadline(7, 5, MHZ), 12);
    assert_eq!(deadline(7, 5, 62 * MHZ), 5 + 7 * 62);
    assert_eq!(deadline(1, 5, 1), 6, "never already over");
    assert_eq!(deadline(u64::MAX, u64::MAX, u64::MAX), NEVER);
    assert_eq!(time_left(NEVER, 5, MHZ), 0);
    assert_eq!((time_left(12, 5, MHZ), time_left(5, 12, MHZ)), (7, 1));
    assert_eq!(time_left(12, 5, 0), 1);
}

#[test]
fn a_reply_never_waits_for_room() {
    let mut x = Exchange::default();
    let mut tokens = Vec::new();
    for side in SIDES {
        while let Some(place) = x.room(side) {
            tokens.push((side, x.call(place, 1, NEVER, None)));
        }
    }
    assert_eq!(tokens.len(), 2 * SLOTS);
    for side in SIDES {
        while let Some(event) = x.next(side, 1) {
            x.taken(side, &event, 1);
        }
    }
    for (side, token) in tokens {
        let place = x.reply_place(side.other(), token, 1).unwrap();
        x.reply(place, 1);
        assert_eq!(x.reply_place(side.other(), token, 1), Err(NoCall));
    }
}
