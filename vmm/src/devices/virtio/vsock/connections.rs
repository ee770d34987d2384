// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The connections between a guest and one of its peers, as far as the packets between them tell.
//!
//! The guests' own kernels make connections, and end them. What is kept here is what it takes to tell the one that the other has gone, and
//! to end a connection whose guest sends more than it was granted: its peer's memory is not its own.
//!
//! ```text
//!            REQUEST                  RESPONSE (of the other side)
//!   (none) ──────────► requested ─────────────────────────────────► established
//!      ▲                   │ RST, a mistake, the peer's end                │
//!      └───────────────────┴───────────────────────────────────────────────┘
//! ```
//!
//! # Invariants
//! What one side has sent is at most `limit`, the highest that the other has granted: a grant that shrinks holds for what is sent
//! after it was seen, which only the sender knows.

use std::collections::HashMap;

use super::request::{Header, SEQPACKET, STREAM, op};

/// Most connections with one peer.
pub const CONNECTIONS_MAX: usize = 4096;

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// From our guest.
    Out,
    /// To it.
    In,
}

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Its receiver gets it.
    Forward,
    /// Nobody does.
    Drop,
    /// Its sender is told that there is no such connection.
    Refuse,
    /// Both are: its sender has broken the rules.
    CutOff,
}

/// A connection, from our guest's view.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    /// Type of the sockets.
    pub kind: u16,
    /// Port of our guest.
    pub ours: u32,
    /// Port of the peer.
    pub theirs: u32,
}

/// Payload in one direction, from the start of the connection.
#[derive(Default, Debug)]
struct Flow {
    sent: u64,
    /// Up to where may be sent.
    limit: u64,
    /// What the receiver has consumed; the low half is what it says.
    consumed: u64,
}

impl Flow {
    /// The receiver has told of its buffer.
    fn grant(&mut self, header: &Header) {
        let more = header.fwd_cnt.wrapping_sub(self.consumed as u32);
        // Else it is from before: threads of the sender's overtake one another.
        if more < 1 << 31 {
            self.consumed += u64::from(more);
        }
        self.limit = self.limit.max(self.consumed + u64::from(header.buf_alloc));
    }

    /// Payload is sent. False: more than was granted.
    fn send(&mut self, len: u32) -> bool {
        self.sent += u64::from(len);
        self.sent <= self.limit
    }
}

#[derive(Debug)]
struct Connection {
    /// Who has asked for it, until the other side has answered.
    asked: Option<Way>,
    out: Flow,
    inward: Flow,
}

/// All of them.
#[derive(Default, Debug)]
pub struct Connections(HashMap<Key, Connection>);

impl Connections {
    /// What becomes of a packet, which is counted. `seqpacket`: our guest knows them.
    pub fn judge(&mut self, way: Way, header: &Header, seqpacket: bool) -> Verdict {
        let (ours, theirs) = match way {
            Way::Out => (header.src_port, header.dst_port),
            Way::In => (header.dst_port, header.src_port),
        };
        let key = Key { kind: header.kind, ours, theirs };
        let known = header.kind == STREAM || header.kind == SEQPACKET && seqpacket;
        match header.op {
            op::RST if self.0.remove(&key).is_some() => return Verdict::Forward,
            op::RST => return Verdict::Drop,
            _ if !known => return Verdict::Refuse,
            op::REQUEST if !self.0.contains_key(&key) => {
                if self.0.len() >= CONNECTIONS_MAX || header.len != 0 {
                    return Verdict::Refuse;
                }
                let none = Flow::default;
                self.0.insert(key, Connection { asked: Some(way), out: none(), inward: none() });
            }
            _ => {}
        }
        let Some(connection) = self.0.get_mut(&key) else { return Verdict::Refuse };
        let (flow, other) = match way {
            Way::Out => (&mut connection.out, &mut connection.inward),
            Way::In => (&mut connection.inward, &mut connection.out),
        };
        // What the sender says of its own buffer is a grant to the other side.
        other.grant(header);
        let right = match header.op {
            // Again, it is no request of this connection any more.
            op::REQUEST => connection.asked == Some(way) && flow.limit == 0 && flow.sent == 0,
            op::RESPONSE => connection.asked.take().is_some_and(|asked| asked != way) && header.len == 0,
            op::RW => flow.send(header.len),
            op::SHUTDOWN | op::CREDIT_UPDATE | op::CREDIT_REQUEST => header.len == 0,
            _ => false,
        };
        if right {
            return Verdict::Forward;
        }
        self.0.remove(&key);
        Verdict::CutOff
    }

    /// The peer has gone: all that there were.
    pub fn drain(&mut self) -> impl Iterator<Item = Key> + '_ {
        self.0.drain().map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(op: u16, len: u32) -> Header {
        Header { src_port: 1, dst_port: 2, kind: STREAM, op, len, ..Header::default() }
    }

    /// From the peer, with what it grants.
    fn back(op: u16, len: u32, (buf_alloc, fwd_cnt): (u32, u32)) -> Header {
        Header { src_port: 2, dst_port: 1, buf_alloc, fwd_cnt, ..header(op, len) }
    }

    fn connected(buffer: u32) -> Connections {
        let mut all = Connections::default();
        assert_eq!(all.judge(Way::Out, &header(op::REQUEST, 0), false), Verdict::Forward);
        assert_eq!(all.judge(Way::In, &back(op::RESPONSE, 0, (buffer, 0)), false), Verdict::Forward);
        all
    }

    #[test]
    fn nothing_but_a_request_begins_a_connection() {
        let mut all = Connections::default();
        for way in [Way::Out, Way::In] {
            for op in
                [0, op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 8, 0xFFFF]
            {
                assert_eq!(all.judge(way, &header(op, 0), true), Verdict::Refuse, "{op}");
            }
            assert_eq!(all.judge(way, &header(op::RST, 0), true), Verdict::Drop);
            for kind in [0, 3, 0xFFFF] {
                let header = Header { kind, ..header(op::REQUEST, 0) };
                assert_eq!(all.judge(way, &header, true), Verdict::Refuse, "{kind}");
            }
            let header = Header { kind: SEQPACKET, ..header(op::REQUEST, 0) };
            assert_eq!(all.judge(way, &header, false), Verdict::Refuse, "not negotiated");
        }
        assert_eq!(all.drain().count(), 0);
    }

    #[test]
    fn mistakes_end_a_connection() {
        let wrong = [
            (Way::Out, header(op::RESPONSE, 0)),
            (Way::In, back(op::RESPONSE, 0, (0, 0))),
            (Way::Out, header(op::REQUEST, 0)),
            (Way::In, back(op::REQUEST, 0, (0, 0))),
            (Way::Out, header(op::CREDIT_UPDATE, 1)),
            (Way::Out, header(9, 0)),
        ];
        for (way, header) in wrong {
            let mut all = connected(100);
            assert_eq!(all.judge(way, &header, false), Verdict::CutOff, "{header:?}");
            assert_eq!(all.judge(Way::Out, &self::header(op::RW, 1), false), Verdict::Refuse);
        }
        let mut all = Connections::default();
        all.judge(Way::Out, &header(op::REQUEST, 0), false);
        assert_eq!(all.judge(Way::Out, &header(op::RESPONSE, 0), false), Verdict::CutOff, "its own answer");
    }

    #[test]
    fn a_reset_ends_it_once() {
        let mut all = connected(100);
        assert_eq!(all.judge(Way::In, &back(op::RST, 0, (0, 0)), false), Verdict::Forward);
        assert_eq!(all.judge(Way::In, &back(op::RST, 0, (0, 0)), false), Verdict::Drop);
        let mut all = connected(100);
        let gone: Vec<_> = all.drain().collect();
        assert_eq!(gone, [Key { kind: STREAM, ours: 1, theirs: 2 }]);
        assert_eq!(all.judge(Way::Out, &header(op::SHUTDOWN, 0), false), Verdict::Refuse);
    }

    #[test]
    fn who_sends_more_than_was_granted_is_cut_off() {
        let mut all = Connections::default();
        all.judge(Way::Out, &header(op::REQUEST, 0), false);
        assert_eq!(
            all.judge(Way::Out, &header(op::RW, 1), false),
            Verdict::CutOff,
            "before there is an answer"
        );
        let mut all = connected(100);
        assert_eq!(all.judge(Way::Out, &header(op::RW, 60), false), Verdict::Forward);
        assert_eq!(all.judge(Way::Out, &header(op::RW, 40), false), Verdict::Forward);
        // The peer's program has read 50; then its buffer shrinks, too late for what is under way.
        assert_eq!(all.judge(Way::In, &back(op::CREDIT_UPDATE, 0, (100, 50)), false), Verdict::Forward);
        assert_eq!(all.judge(Way::In, &back(op::CREDIT_UPDATE, 0, (10, 60)), false), Verdict::Forward);
        assert_eq!(all.judge(Way::Out, &header(op::RW, 50), false), Verdict::Forward);
        assert_eq!(all.judge(Way::Out, &header(op::RW, 1), false), Verdict::CutOff);
        let mut all = connected(100);
        assert_eq!(all.judge(Way::In, &back(op::RW, 1, (100, 0)), false), Verdict::CutOff, "we granted none");
    }

    #[test]
    fn counters_wrap() {
        let mut all = connected(1 << 20);
        for n in 1..=10_000_u32 {
            assert_eq!(all.judge(Way::Out, &header(op::RW, 1 << 20), false), Verdict::Forward, "{n}");
            let update = back(op::CREDIT_UPDATE, 0, (1 << 20, n.wrapping_mul(1 << 20)));
            assert_eq!(all.judge(Way::In, &update, false), Verdict::Forward);
            // One from before.
            let late = back(op::CREDIT_UPDATE, 0, (1 << 20, n.wrapping_mul(1 << 20).wrapping_sub(5)));
            assert_eq!(all.judge(Way::In, &late, false), Verdict::Forward);
        }
        assert_eq!(all.judge(Way::Out, &header(op::RW, 1 << 20), false), Verdict::Forward);
        assert_eq!(all.judge(Way::Out, &header(op::RW, 1), false), Verdict::CutOff);
    }

    #[test]
    fn there_are_not_too_many() {
        let mut all = Connections::default();
        let request = |port| Header { src_port: port, ..header(op::REQUEST, 0) };
        for port in 0..CONNECTIONS_MAX as u32 {
            assert_eq!(all.judge(Way::In, &request(port), false), Verdict::Forward);
        }
        assert_eq!(all.judge(Way::In, &request(u32::MAX), false), Verdict::Refuse);
        assert_eq!(all.judge(Way::In, &Header { op: op::RST, ..request(5) }, false), Verdict::Forward);
        assert_eq!(all.judge(Way::In, &request(u32::MAX), false), Verdict::Forward);
    }

    proptest! {
        /// Whatever is sent, what was forwarded of it fits the grants: those of a receiver that says no nonsense.
        #[test]
        fn forwarded_payload_was_granted(
            steps in prop::collection::vec((any::<bool>(), 0..3000_u32, 0..3000_u32), 1..200),
        ) {
            let mut all = connected(1000);
            let (mut sent, mut consumed, mut granted) = (0_u32, 0_u32, 1000_u32);
            for (sends, len, buffer) in steps {
                if sends {
                    let verdict = all.judge(Way::Out, &header(op::RW, len), false);
                    prop_assert_eq!(verdict == Verdict::Forward, sent + len <= granted);
                    if verdict != Verdict::Forward {
                        return Ok(());
                    }
                    sent += len;
                } else {
                    consumed = sent.min(consumed + len);
                    granted = granted.max(consumed + buffer);
                    let update = back(op::CREDIT_UPDATE, 0, (buffer, consumed));
                    prop_assert_eq!(all.judge(Way::In, &update, false), Verdict::Forward);
                }
            }
        }
    }
}
