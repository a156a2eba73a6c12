//! The words that the producers of a queue share: the tail, and what is published of a place.
//!
//! Positions count entries since the queue was made and never repeat; a place of the ring is a position modulo
//! the number of entries. At twenty million entries a second they last for 14 years.

/// The word that every reservation goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tail(u64);

const WEDGED: u64 = 1 << 63;
const OPEN: u64 = 1 << 62;
const HELD: u64 = 1 << 61;
const RINGING: u64 = 1 << 60;
const LEFT: u64 = 1 << 59;
const REFUSED: u64 = 1 << 58;
const EPOCH_SHIFT: u32 = 53;
const EPOCH: u64 = 0x1f << EPOCH_SHIFT;
const POSITION: u64 = (1 << EPOCH_SHIFT) - 1;

/// What `wedge` sets and `revive` clears.
pub(super) const WEDGED_BIT: u64 = WEDGED;
/// What `hold` sets, and who mends clears.
pub(super) const HELD_BIT: u64 = HELD;
/// What is cleared by who lets go of the bell.
pub(super) const RINGING_BIT: u64 = RINGING;
/// What is set by who publishes, and does not wait any longer for the doorbell.
pub(super) const LEFT_BIT: u64 = LEFT;
/// What `repair` sets when it takes the first command out since the ring began.
pub(super) const REFUSED_BIT: u64 = REFUSED;

impl Tail {
    pub(super) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(super) const fn into_bits(self) -> u64 {
        self.0
    }

    /// The first position that nobody has reserved.
    pub(super) const fn position(self) -> u64 {
        self.0 & POSITION
    }

    /// Whether every request is refused.
    pub(super) const fn is_wedged(self) -> bool {
        self.0 & WEDGED != 0
    }

    /// Whether nobody reserves, and nothing counts as complete, until what stands unanswered was mended.
    pub(super) const fn is_held(self) -> bool {
        self.0 & HELD != 0
    }

    /// Whether there are commands behind the last sync: one more sync is owed.
    pub(super) const fn is_open(self) -> bool {
        self.0 & OPEN != 0
    }

    /// Whether a CPU has the bell.
    pub(super) const fn is_ringing(self) -> bool {
        self.0 & RINGING != 0
    }

    /// Whether something may have been published since the bell was taken that nobody waits for.
    pub(super) const fn is_left(self) -> bool {
        self.0 & LEFT != 0
    }

    /// Whether a command was taken out of the ring since it began, which hardware refused: a ticket may not count then.
    pub(super) const fn has_refused(self) -> bool {
        self.0 & REFUSED != 0
    }

    /// Whether no reset came between the two.
    pub(super) const fn is_of(self, other: Self) -> bool {
        self.0 & EPOCH == other.0 & EPOCH
    }

    /// With `entries` more reserved for commands; the sync behind them is owed.
    pub(super) const fn with_commands(self, entries: u64) -> Self {
        Self((self.0 + entries) | OPEN)
    }

    /// With `entries` more reserved for commands and one for the sync behind them and all before.
    pub(super) const fn with_commands_and_sync(self, entries: u64) -> Self {
        Self((self.0 + entries + 1) & !OPEN)
    }

    /// With `entries` more reserved for commands and one for the sync behind them and all before, and the bell taken.
    pub(super) const fn with_commands_and_bell(self, entries: u64) -> Self {
        Self((self.0 + entries + 1) & !(OPEN | LEFT) | RINGING)
    }

    /// With the bell taken, and the sync reserved if one is owed.
    pub(super) const fn with_bell(self) -> Self {
        Self((self.0 + self.is_open() as u64) & !(OPEN | LEFT) | RINGING)
    }

    /// With the bell taken and nothing else.
    pub(super) const fn with_bell_alone(self) -> Self {
        Self(self.0 | RINGING)
    }

    pub(super) const fn wedged(self) -> Self {
        Self(self.0 | WEDGED)
    }

    pub(super) const fn held(self) -> Self {
        Self(self.0 | HELD)
    }

    /// For a ring that starts anew at `position`, wedged until it is revived, its bell free. Nobody's idea of the tail
    /// from before equals it.
    pub(super) const fn restarted(self, position: u64) -> Self {
        let epoch = (self.0 & EPOCH).wrapping_add(1 << EPOCH_SHIFT) & EPOCH;
        Self(WEDGED | epoch | position & POSITION)
    }
}

/// What is published at a place: entries from one position on.
///
/// # Invariants
/// There is at least one entry; zero stands for nothing published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn(u64);

const TURN_SHIFT: u32 = 9;
const SYNC: u64 = 1 << 8;
const VOID: u64 = 1 << 7;
const LENGTH: u64 = VOID - 1;

/// How many commands one publication may have, beside the sync behind them.
pub(super) const PUBLICATION_MAX: u64 = LENGTH - 1;

impl Turn {
    /// `entries` commands from `position` on.
    pub(super) const fn commands(position: u64, entries: u64) -> Self {
        Self(position << TURN_SHIFT | entries & LENGTH)
    }

    /// `entries` commands from `position` on, and a sync behind them and all before.
    pub(super) const fn with_sync(position: u64, entries: u64) -> Self {
        Self(position << TURN_SHIFT | SYNC | (entries + 1) & LENGTH)
    }

    /// The same place, which could not be filled: hardware is never told of it.
    pub(super) const fn void(self) -> Self {
        Self(self.0 | VOID)
    }

    pub(super) const fn into_bits(self) -> u64 {
        self.0
    }

    /// What `bits` says of `position`; `None` if that is not published.
    pub(super) const fn at(position: u64, bits: u64) -> Option<Self> {
        if bits >> TURN_SHIFT == position && bits & LENGTH != 0 {
            Some(Self(bits))
        } else {
            None
        }
    }

    /// The position of the first entry.
    pub(super) const fn first(self) -> u64 {
        self.0 >> TURN_SHIFT
    }

    /// The position behind the last.
    pub(super) const fn end(self) -> u64 {
        self.first() + (self.0 & LENGTH)
    }

    /// Whether the last entry is a sync.
    pub(super) const fn ends_in_sync(self) -> bool {
        self.0 & SYNC != 0
    }

    pub(super) const fn is_void(self) -> bool {
        self.0 & VOID != 0
    }
}

#[cfg(all(test, not(hv_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_tail_says_what_it_was_made_of() {
        let tail = Tail::from_bits(41);
        let open = tail.with_commands(3);
        assert_eq!((open.position(), open.is_open()), (44, true));
        let rung = open.with_bell();
        assert_eq!((rung.position(), rung.is_open()), (45, false));
        assert!(rung.is_ringing() && rung.is_of(tail) && !rung.is_wedged());
        assert_eq!(rung.with_bell().position(), 45);
        let led = open.with_commands_and_bell(2);
        assert_eq!((led.position(), led.is_open()), (47, false));
        assert!(led.is_ringing() && !led.is_left());
        let own = led.with_commands_and_sync(2);
        assert_eq!((own.position(), own.is_open()), (50, false));
        assert!(own.is_ringing() && !open.with_commands_and_sync(2).is_ringing());
        let alone = Tail::from_bits(open.into_bits() | LEFT_BIT).with_bell_alone();
        assert!(alone.is_ringing() && alone.is_open() && alone.is_left());
        assert!(!alone.with_bell().is_left());
        assert!(open.wedged().is_wedged() && open.wedged().is_open());
        let held = open.held();
        assert!(held.is_held() && held.is_of(open) && held.with_bell().is_held());
        assert_eq!((held.position(), held.is_open()), (44, true));
        let refused = Tail::from_bits(alone.into_bits() | REFUSED_BIT);
        assert!(refused.has_refused() && refused.is_of(alone) && refused.with_bell().has_refused());
        assert!(!alone.has_refused() && refused.position() == alone.position());
        let anew = refused.held().wedged().restarted(64);
        assert!(!anew.is_held() && !anew.is_ringing() && !anew.is_left() && !anew.has_refused());
        assert_eq!((anew.position(), anew.is_open()), (64, false));
        assert!(anew.is_wedged() && !anew.is_of(open));
    }

    #[test]
    fn a_turn_is_of_one_position() {
        let turn = Turn::commands(7, 3);
        assert_eq!(Turn::at(7, turn.into_bits()), Some(turn));
        assert_eq!(Turn::at(263, turn.into_bits()), None);
        assert_eq!(Turn::at(0, 0), None);
        assert_eq!(
            (turn.end(), turn.ends_in_sync(), turn.is_void()),
            (10, false, false)
        );
        let alone = Turn::with_sync(9, 0);
        assert!(alone.ends_in_sync() && alone.end() == 10);
        let most = Turn::with_sync(9, PUBLICATION_MAX);
        assert!(most.ends_in_sync() && !most.is_void() && most.end() == 10 + PUBLICATION_MAX);
        assert!(turn.void().is_void() && turn.void().end() == 10);
    }
}
