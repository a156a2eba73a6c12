//! Answers to devices that wait: none is lost, whatever the command queue does.
//!
//! A record that wants an answer (a request that stands still, the last request of a group of pages) is gone from its
//! queue once it was taken, and its answer exists nowhere but on the CPU that took it. So a place for the answer is had
//! before the record is taken: where there is none, nothing is taken, and the records wait in the unit's own queue. What
//! becomes of those that find no room there is the unit's to say: requests that stand still go on doing so, and their
//! events are written later (IHI 0070, 7.4); groups of pages are answered by the unit (8.1).

use arrayvec::ArrayVec;
use spin::mutex::SpinMutex;

use crate::record_queue::Taken;
use crate::spec::command::Command;

/// How many answers may be owed, those included that a CPU is about to give.
const MOST: usize = 64;

/// The answers of one queue of records.
pub(crate) struct Owed(SpinMutex<Places>);

/// # Invariants
/// `answers` and `underway` are [`MOST`] together at most: whatever is under way fits in when it comes back.
#[derive(Default)]
struct Places {
    /// What the command queue did not take.
    answers: ArrayVec<Command, MOST>,
    /// Places of CPUs that give an answer, or look for a record that may want one.
    underway: usize,
}

/// What a CPU does with the place that it was given.
enum Turn {
    /// It gives this answer.
    Give(Command),
    /// It looks for a record.
    Look,
}

impl Owed {
    pub(crate) const fn new() -> Self {
        // INVARIANT: nothing is owed.
        Self(SpinMutex::new(Places {
            answers: ArrayVec::new_const(),
            underway: 0,
        }))
    }

    /// Gives what is owed; then takes one record by `look`, and gives the answer that it wants. `tell` says whether the
    /// command queue took an answer. It may wait, so no lock is held meanwhile.
    ///
    /// [`Taken::Withheld`] while an answer is not taken: no further record is, until it is.
    pub(crate) fn take<R>(
        &self,
        look: impl FnOnce() -> Option<Taken<R>>,
        answer: impl Fn(&R) -> Option<Command>,
        tell: impl Fn(Command) -> bool,
    ) -> Option<Taken<R>> {
        loop {
            match self.turn() {
                None => return Some(Taken::Withheld),
                Some(Turn::Give(answer)) if !tell(answer) => {
                    self.end(Some(answer));
                    return Some(Taken::Withheld);
                }
                Some(Turn::Give(_)) => self.end(None),
                Some(Turn::Look) => break,
            }
        }
        let taken = look();
        let wanted = match &taken {
            Some(Taken::Record(record)) => answer(record),
            _ => None,
        };
        self.end(wanted.filter(|answer| !tell(*answer)));
        taken
    }

    /// A place, and what it is for. `None` where there is none.
    fn turn(&self) -> Option<Turn> {
        let mut places = self.0.lock();
        // INVARIANT: what leaves `answers` is under way.
        let turn = match places.answers.pop() {
            Some(answer) => Turn::Give(answer),
            None if places.underway < MOST => Turn::Look,
            None => return None,
        };
        places.underway += 1;
        Some(turn)
    }

    /// Gives a place back, for an answer that was not taken, if there is one.
    fn end(&self, left: Option<Command>) {
        let mut places = self.0.lock();
        // INVARIANT: one less under way, and one answer more at most, for which there is room.
        places.underway = places.underway.saturating_sub(1);
        if let Some(answer) = left {
            let _ = places.answers.try_push(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::vec::Vec;

    use super::*;
    use crate::spec::command::Resume;
    use crate::{StallTag, StreamId};

    fn resume(tag: u16) -> Command {
        Command::resume(StreamId::new(8), StallTag::new(tag), Resume::Abort)
    }

    /// A queue of so many records, each of which wants an answer, and a command queue that takes them or not.
    struct Unit {
        owed: Owed,
        records: Cell<u16>,
        told: RefCell<Vec<Command>>,
        takes: Cell<bool>,
    }

    impl Unit {
        fn new(records: u16) -> Self {
            Self {
                owed: Owed::new(),
                records: Cell::new(records),
                told: RefCell::new(Vec::new()),
                takes: Cell::new(false),
            }
        }

        /// One look, of a CPU that is overtaken by `cpus` others in the middle of giving its answer.
        fn look(&self, cpus: u16) -> Option<Taken<u16>> {
            self.owed.take(
                || {
                    let left = self.records.get();
                    self.records.set(left.saturating_sub(1));
                    (left > 0).then_some(Taken::Record(left))
                },
                |tag| Some(resume(*tag)),
                |answer| {
                    if cpus > 0 {
                        self.look(cpus - 1);
                    }
                    if self.takes.get() {
                        self.told.borrow_mut().push(answer);
                    }
                    self.takes.get()
                },
            )
        }
    }

    /// Shows: bc19.
    #[test]
    fn bc19_as_many_cpus_as_there_may_be_lose_no_answer() {
        for cpus in [1, 63, 64, 65, 200] {
            let unit = Unit::new(300);
            assert!(matches!(unit.look(cpus), Some(Taken::Record(300))));
            let taken = 300 - unit.records.get();
            assert_eq!(usize::from(taken), MOST.min(usize::from(cpus) + 1));
            for _ in 0..3 {
                assert!(matches!(unit.look(0), Some(Taken::Withheld)));
            }
            assert_eq!(300 - unit.records.get(), taken, "nothing more is taken");
            unit.takes.set(true);
            assert!(matches!(unit.look(0), Some(Taken::Record(_))));
            let mut told = unit.told.take();
            let mut all: Vec<Command> = (0..=taken).map(|number| resume(300 - number)).collect();
            told.sort_unstable_by_key(|command| command.words());
            all.sort_unstable_by_key(|command| command.words());
            assert_eq!(told, all, "{cpus} CPUs");
        }
    }

    #[test]
    fn a_look_at_an_empty_queue_keeps_no_place() {
        let unit = Unit::new(0);
        for _ in 0..2 * MOST {
            assert!(unit.look(0).is_none());
        }
        unit.records.set(1);
        assert!(matches!(unit.look(0), Some(Taken::Record(1))));
    }
}
