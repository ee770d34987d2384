// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `--net`: what is at the other end of the cable, and the interface's address.

use std::fmt;
use std::str::FromStr;

use rustix::rand::{GetRandomFlags, getrandom};

/// Most pairs of queues of an interface.
pub const QUEUES_MAX: u16 = 16;

/// One network interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetOption {
    /// The other end.
    pub end: End,
    /// Its address, if it matters.
    pub mac: Option<Mac>,
    /// The kernel's vhost_net serves the queues.
    pub vhost: bool,
    /// Pairs of queues.
    pub queues: u16,
}

/// The other end of the cable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// A tap interface of this name.
    Tap(String),
    /// passt, with these options of its own.
    Passt(Vec<String>),
}

impl FromStr for NetOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',').map(|word| word.split_once('=').unwrap_or((word, "")));
        let mut end = match words.next() {
            Some(("tap", name)) if !name.is_empty() => End::Tap(name.into()),
            Some(("passt", "")) => End::Passt(Vec::new()),
            _ => return Err("begins with `tap=NAME` or `passt`".into()),
        };
        let (mut mac, mut vhost, mut queues) = (None, false, 1);
        for (word, value) in words {
            match (word, &mut end) {
                ("mac", _) => mac = Some(value.parse()?),
                ("vhost", End::Tap(_)) if value.is_empty() => vhost = true,
                ("queues", End::Tap(_)) => queues = number(value)?,
                ("queues", End::Passt(_)) => {
                    return Err(
                        "passt has one stream of frames, so its interfaces have one pair of queues: \
                                `queues` is for `tap=NAME`"
                            .into(),
                    );
                }
                ("tcp", End::Passt(options)) => options.extend(["-t".into(), value.into()]),
                ("udp", End::Passt(options)) => options.extend(["-u".into(), value.into()]),
                _ => return Err(format!("unknown: {word}")),
            }
        }
        Ok(Self { end, mac, vhost, queues })
    }
}

/// A number of pairs of queues.
fn number(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|number| (1..=QUEUES_MAX).contains(number));
    number.ok_or_else(|| format!("queues={text}: from 1 to {QUEUES_MAX}"))
}

/// An Ethernet address of one interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mac([u8; 6]);

impl Mac {
    /// As in a frame.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// One of those that anybody may use.
    pub fn random() -> Self {
        let mut mac = [0; 6];
        // Too early for entropy, it is one that anybody may use nevertheless.
        let _ = getrandom(&mut mac, GetRandomFlags::empty());
        let [first, ..] = &mut mac;
        // Locally administered, not multicast.
        *first = *first & !1 | 2;
        Self(mac)
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no Ethernet address of one interface, such as 02:00:00:00:00:01");
        let bytes: Result<Vec<u8>, _> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
        let mac: [u8; 6] = bytes.map_err(|_| wrong())?.try_into().map_err(|_| wrong())?;
        if mac == [0; 6] || mac.first().is_some_and(|first| first & 1 != 0) {
            return Err(wrong());
        }
        Ok(Self(mac))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cables() {
        let parse = |text: &str| text.parse::<NetOption>();
        let tap = NetOption { end: End::Tap("tap0".into()), mac: None, vhost: false, queues: 1 };
        assert_eq!(parse("tap=tap0"), Ok(tap.clone()));
        assert_eq!(parse("tap=tap0,queues=1"), Ok(tap.clone()));
        assert_eq!(parse("tap=tap0,vhost"), Ok(NetOption { vhost: true, ..tap.clone() }));
        assert_eq!(parse("tap=tap0,queues=16,vhost"), Ok(NetOption { vhost: true, queues: 16, ..tap }));
        let passt = parse("passt,mac=02:11:22:33:44:5f,tcp=2222:22,udp=53").unwrap();
        assert_eq!(passt.end, End::Passt(["-t", "2222:22", "-u", "53"].map(String::from).into()));
        assert_eq!(passt.mac.unwrap().to_string(), "02:11:22:33:44:5f");
        for wrong in [
            "",
            "tap",
            "tap=",
            "passt=x",
            "bridge=br0",
            "tap=t,tcp=22",
            "tap=t,mac=1",
            "passt,mtu=9",
            "passt,vhost",
            "tap=t,vhost=1",
            "tap=t,queues",
            "tap=t,queues=0",
            "tap=t,queues=17",
            "tap=t,queues=65537",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        let refused = parse("passt,queues=2").unwrap_err();
        assert!(refused.contains("passt has one stream"), "{refused}");
    }

    #[test]
    fn addresses() {
        for wrong in
            ["", "00:00:00:00:00:00", "01:00:00:00:00:00", "02:00:00:00:00", "02:00:00:00:00:100", "x"]
        {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
        let (one, other) = (Mac::random(), Mac::random());
        assert_ne!(one, other);
        assert_eq!((one.0[0] & 3, one.to_string().parse()), (2, Ok(one)));
    }
}
