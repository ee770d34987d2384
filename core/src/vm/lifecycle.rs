// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The life of a VM. Every end of a VM or vCPU, whatever the cause, is an [`Event`] here; what RUN
//! does follows from the state alone.
//!
//! ```text
//!             first RUN              SYSTEM_SUSPEND
//!   Created ------------> Running <------------------> Suspended
//!      |                     |            wake-up          |
//!      +----------+----------+-----------------+-----------+
//!           pause |  ^ resume                  | power-off, reset, crash
//!                 v  |                         v
//!               Paused ---------------------> Ended { cause }
//!                 |                            |
//!                 +------ DESTROY_VM ----------+----> Dying (from every state, for good)
//! ```
//! - `Paused` remembers what it came from and goes back there.
//! - `Ended` keeps its first cause: whoever comes later is told that one.
//! - Only [`Gate::Open`] (and [`Gate::First`], which the first RUN turns into it) lets a vCPU into the guest. The hypervisor keeps the gate in one atomic, which RUN reads after
//!   it has announced itself as running; whoever closes the gate kicks the vCPUs that run. So a vCPU either sees the
//!   gate closed or is kicked.
//!
//! Lock order: the state's lock is a leaf; nothing else is taken under it.

/// Why a VM ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The guest turned itself off (PSCI SYSTEM_OFF).
    PowerOff,
    /// The guest wants to start anew. For PSCI SYSTEM_RESET2: type and cookie.
    Reset {
        /// x1 and x2 of SYSTEM_RESET2; zeros otherwise.
        data: [u64; 2],
    },
    /// A policy gave it up after an exception that was watched.
    Crash,
}

/// What a paused VM goes back to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Before {
    /// [`State::Created`].
    Created,
    /// [`State::Running`].
    Running,
    /// [`State::Suspended`].
    Suspended,
}

/// A VM's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum State {
    /// No vCPU has run yet.
    #[default]
    Created,
    /// vCPUs may run.
    Running,
    /// The host holds it: vCPUs park.
    Paused(Before),
    /// The guest sleeps as a whole; a vCPU that runs waits for the wake-up inside.
    Suspended,
    /// Over: RUN tells why.
    Ended(Cause),
    /// Being taken apart.
    Dying,
}

/// What happens to a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A vCPU is run.
    Run,
    /// The host pauses it.
    Pause,
    /// The host lets it go on.
    Resume,
    /// The guest suspends itself.
    Suspend,
    /// The guest woke up.
    Wake,
    /// It ends.
    End(Cause),
    /// DESTROY_VM.
    Condemn,
}

/// The event is not for this state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused;

/// What RUN does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Gate {
    /// Enters the guest.
    Open = 0,
    /// Parks the vCPU.
    Parked = 1,
    /// Tells the cause of the end.
    Over = 2,
    /// Refuses.
    Gone = 3,
    /// Enters the guest for the first time.
    First = 4,
}

impl Gate {
    /// The gate with this number; an unknown one is shut.
    pub const fn from_number(n: u32) -> Self {
        match n {
            0 => Self::Open,
            1 => Self::Parked,
            2 => Self::Over,
            4 => Self::First,
            _ => Self::Gone,
        }
    }
}

impl State {
    /// The transition table. An event that asks for what is already so is fine.
    pub const fn step(self, event: Event) -> Result<Self, Refused> {
        Ok(match (self, event) {
            (_, Event::Condemn) => Self::Dying,
            (Self::Dying, _) => return Err(Refused),

            // The first cause stays.
            (Self::Ended(cause), Event::End(_)) => Self::Ended(cause),
            (Self::Ended(_), _) => return Err(Refused),
            (_, Event::End(cause)) => Self::Ended(cause),

            (Self::Created | Self::Running, Event::Run) => Self::Running,
            (Self::Suspended, Event::Run) => Self::Suspended,
            (Self::Paused(_), Event::Run) => return Err(Refused),

            (Self::Created, Event::Pause) => Self::Paused(Before::Created),
            (Self::Running, Event::Pause) => Self::Paused(Before::Running),
            (Self::Suspended, Event::Pause) => Self::Paused(Before::Suspended),
            (Self::Paused(before), Event::Pause) => Self::Paused(before),

            (Self::Paused(Before::Created), Event::Resume) => Self::Created,
            (Self::Paused(Before::Running), Event::Resume) => Self::Running,
            (Self::Paused(Before::Suspended), Event::Resume) => Self::Suspended,
            (state, Event::Resume) => state,

            (Self::Running | Self::Suspended, Event::Suspend) => Self::Suspended,
            // Its last vCPU was on the way out as the pause came.
            (Self::Paused(Before::Running | Before::Suspended), Event::Suspend) => {
                Self::Paused(Before::Suspended)
            }
            (Self::Created | Self::Paused(Before::Created), Event::Suspend | Event::Wake) => {
                return Err(Refused);
            }

            (Self::Running | Self::Suspended, Event::Wake) => Self::Running,
            (Self::Paused(Before::Running | Before::Suspended), Event::Wake) => Self::Paused(Before::Running),
        })
    }

    /// What RUN does in this state.
    pub const fn gate(self) -> Gate {
        match self {
            Self::Created => Gate::First,
            Self::Running | Self::Suspended => Gate::Open,
            Self::Paused(_) => Gate::Parked,
            Self::Ended(_) => Gate::Over,
            Self::Dying => Gate::Gone,
        }
    }

    /// Whether a vCPU has run, or none will: what a VM is does not change from here on.
    pub const fn has_begun(self) -> bool {
        !matches!(self, Self::Created | Self::Paused(Before::Created))
    }

    /// Whether parts (vCPUs) may still be added.
    pub const fn can_grow(self) -> bool {
        !matches!(self, Self::Ended(_) | Self::Dying)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAUSES: [Cause; 4] =
        [Cause::PowerOff, Cause::Reset { data: [0; 2] }, Cause::Reset { data: [1 << 31, 7] }, Cause::Crash];
    const EVENTS: [Event; 10] = [
        Event::Run,
        Event::Pause,
        Event::Resume,
        Event::Suspend,
        Event::Wake,
        Event::End(CAUSES[0]),
        Event::End(CAUSES[1]),
        Event::End(CAUSES[2]),
        Event::End(CAUSES[3]),
        Event::Condemn,
    ];

    fn states() -> Vec<State> {
        let paused = [Before::Created, Before::Running, Before::Suspended].map(State::Paused);
        let mut all = vec![State::Created, State::Running, State::Suspended, State::Dying];
        all.extend(paused);
        all.extend(CAUSES.map(State::Ended));
        all
    }

    /// The table, said a second time: rows are states, columns Run, Pause, Resume, Suspend, Wake. `-` is refused.
    #[test]
    fn every_state_with_every_event() {
        let table = [
            (State::Created, "R PC C - -"),
            (State::Running, "R PR R S R"),
            (State::Suspended, "S PS S S R"),
            (State::Paused(Before::Created), "- PC C - -"),
            (State::Paused(Before::Running), "- PR R PS PR"),
            (State::Paused(Before::Suspended), "- PS S PS PR"),
            (State::Ended(Cause::PowerOff), "- - - - -"),
            (State::Dying, "- - - - -"),
        ];
        let named = |name: &str| match name {
            "C" => Ok(State::Created),
            "R" => Ok(State::Running),
            "S" => Ok(State::Suspended),
            "PC" => Ok(State::Paused(Before::Created)),
            "PR" => Ok(State::Paused(Before::Running)),
            "PS" => Ok(State::Paused(Before::Suspended)),
            _ => Err(Refused),
        };
        for (state, row) in table {
            for (event, cell) in EVENTS.iter().zip(row.split(' ')) {
                assert_eq!(state.step(*event), named(cell), "{state:?} {event:?}");
            }
        }
    }

    #[test]
    fn ends_are_final_and_the_first_cause_stays() {
        for state in states() {
            for event in EVENTS {
                let next = state.step(event);
                match (state, event) {
                    (_, Event::Condemn) => assert_eq!(next, Ok(State::Dying)),
                    (State::Dying, _) => assert_eq!(next, Err(Refused)),
                    (State::Ended(_), Event::End(_)) => assert_eq!(next, Ok(state)),
                    (State::Ended(_), _) => assert_eq!(next, Err(Refused)),
                    (_, Event::End(cause)) => assert_eq!(next, Ok(State::Ended(cause))),
                    _ => assert!(!matches!(next, Ok(State::Ended(_) | State::Dying)), "{state:?} {event:?}"),
                }
            }
        }
    }

    #[test]
    fn asking_twice_is_as_asking_once() {
        for state in states() {
            for event in EVENTS {
                if let Ok(next) = state.step(event) {
                    assert_eq!(next.step(event), Ok(next), "{state:?} {event:?}");
                }
            }
        }
    }

    #[test]
    fn pause_and_resume_change_nothing_else() {
        for state in [State::Created, State::Running, State::Suspended] {
            let paused = state.step(Event::Pause).unwrap();
            assert_eq!(paused.gate(), Gate::Parked);
            assert_eq!(paused.step(Event::Resume), Ok(state));
        }
    }

    #[test]
    fn what_has_begun_never_begins_again() {
        for state in states() {
            let created = matches!(state, State::Created | State::Paused(Before::Created));
            assert_eq!(state.has_begun(), !created, "{state:?}");
            for next in EVENTS.iter().filter_map(|event| state.step(*event).ok()) {
                assert!(next.has_begun() || !state.has_begun(), "{state:?} to {next:?}");
            }
        }
        assert_eq!(State::Created.step(Event::Run).map(State::has_begun), Ok(true));
    }

    #[test]
    fn only_living_states_are_open() {
        for state in states() {
            let open = matches!(state, State::Created | State::Running | State::Suspended);
            assert_eq!(matches!(state.gate(), Gate::Open | Gate::First), open, "{state:?}");
            assert_eq!(Gate::from_number(state.gate() as u32), state.gate());
            assert_eq!(state.can_grow(), !matches!(state, State::Ended(_) | State::Dying));
            // A first RUN leads to where RUN is open for good.
            if state.gate() == Gate::First {
                assert_eq!(state.step(Event::Run).map(State::gate), Ok(Gate::Open));
            }
            assert_eq!(state.step(Event::Run).is_ok(), open, "{state:?}");
        }
        assert_eq!(Gate::from_number(99), Gate::Gone);
    }
}
