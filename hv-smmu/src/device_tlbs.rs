//! The streams of one unit whose devices keep translations themselves: where its flushes have to go beside the unit.
//!
//! Read without a lock by every flush. A stream is noted before its entry lets its device ask, and stays until what takes
//! the entry's word back stands in the command queue: a flush that does not see it any more comes behind that there.

use arrayvec::ArrayVec;
use hv_core::fault::Fault;
use hv_core::sync::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use hv_core::{PciAddress, Segment};
use hv_iommu::{FlushTicket, HwDomainId};
use log::warn;
use spin::mutex::SpinMutex;

use crate::StreamId;

/// How many streams of a unit may have one at once: as many commands as a flush may take beside its own.
pub(crate) const MOST: usize = 64;

/// How often a device may not answer, and answer when it is asked alone, before it counts as one that does not answer. Each
/// time everybody behind the unit waits for as long as the bus gives a device, which is a minute or more. A link that retrains
/// while its device is told to forget may cost that once, and a function that is reset behind our back once more; who does
/// so again and again does not do what it says.
pub(crate) const ALONE_MOST: u8 = 4;

/// What becomes of devices that answered when they were asked alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// They go on.
    GoesOn,
    /// This one has done so too often.
    TooOften(Noted),
}

/// The streams.
///
/// # Invariants
/// `open` is at least the number of slots that are not [`NONE`]; no two slots name one stream. Slots change under `edit`.
pub(crate) struct DeviceTlbs {
    open: AtomicUsize,
    slots: [AtomicU64; MOST],
    edit: SpinMutex<Edit>,
    /// Whether somebody is to be told of.
    has_silent: AtomicBool,
    /// The last sync that may wait for a device which is noted no more.
    last: AtomicU64,
    /// How many submitters are about to have devices told, of whom some may be noted no more by then.
    asking: AtomicUsize,
    /// Whether the unit may wait for devices that were told before its queue was turned off.
    outlives: AtomicBool,
    /// Whether each device is asked with a sync of its own, see [`DeviceTlbs::answered_alone`].
    apart: AtomicBool,
    /// How often one did not answer that did when it was asked alone.
    alone: AtomicU64,
}

/// A submitter that has devices told, see [`DeviceTlbs::asks`].
#[must_use = "it counts for as long as it lives"]
pub(crate) struct Asks<'a>(&'a DeviceTlbs);

impl Drop for Asks<'_> {
    fn drop(&mut self) {
        // ORDERING: Release: the sync that it waits for is noted, or was waited for, before it counts no more.
        self.0.asking.fetch_sub(1, Ordering::Release);
    }
}

/// A stream whose entry is about to let its device ask, until the value is dropped: see [`DeviceTlbs::note`].
#[must_use = "it counts for as long as it lives"]
pub(crate) struct Opening<'a> {
    devices: &'a DeviceTlbs,
    stream: StreamId,
}

impl Opening<'_> {
    /// Whether the entry may go on letting its device ask, said after that was stored: it is noted, and nobody has refused
    /// it. From here on a reset closes it.
    pub(crate) fn stays(&self) -> bool {
        let mut alone = self.devices.edit.lock();
        let stays = self.devices.has(self.stream) && !alone.refused.contains(&self.stream);
        if stays {
            alone.opening.retain(|opening| *opening != self.stream);
        }
        stays
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        let mut alone = self.devices.edit.lock();
        alone.opening.retain(|opening| *opening != self.stream);
    }
}

/// What is only looked at under the lock.
struct Edit {
    /// Who the stream of a slot is, where it is one's.
    requesters: [PciAddress; MOST],
    /// How often that one did not answer, and did when it was asked alone.
    alone: [u8; MOST],
    /// Those that were closed because they do not answer, and were not told of.
    silent: ArrayVec<PciAddress, MOST>,
    /// Those that did not answer while their entries did not let them ask. They stay noted, since somebody may be about to
    /// let them: until that is taken back, flushes wait for them too.
    refused: ArrayVec<StreamId, MOST>,
    /// Those whose entries are about to let them ask.
    opening: ArrayVec<StreamId, MOST>,
}

/// A stream that is noted, and who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    pub(crate) stream: StreamId,
    pub(crate) requester: PciAddress,
}

/// A slot of nobody.
const NONE: u64 = 0;

/// The word of a stream that is bound to a domain. Id 0 is never given to a domain, so it is not [`NONE`].
fn word(stream: StreamId, domain: HwDomainId) -> u64 {
    u64::from(domain.get()) << u32::BITS | u64::from(stream.get())
}

/// The stream in a word.
fn stream_in(word: u64) -> StreamId {
    // The lower half.
    StreamId::new(word as u32)
}

impl DeviceTlbs {
    /// None.
    pub(crate) fn new() -> Self {
        Self {
            open: AtomicUsize::new(0),
            slots: core::array::from_fn(|_| AtomicU64::new(NONE)),
            edit: SpinMutex::new(Edit {
                requesters: [PciAddress::from_requester(Segment(0), 0); MOST],
                alone: [0; MOST],
                silent: ArrayVec::new(),
                refused: ArrayVec::new(),
                opening: ArrayVec::new(),
            }),
            outlives: AtomicBool::new(false),
            apart: AtomicBool::new(false),
            alone: AtomicU64::new(0),
            has_silent: AtomicBool::new(false),
            last: AtomicU64::new(0),
            asking: AtomicUsize::new(0),
        }
    }

    /// Notes a stream, before its entry is changed. `None` when there are too many.
    ///
    /// For as long as the value lives, a reset does not strike the stream out, but refuses it: the entry may be stored after
    /// the reset has looked at it, and lets the device ask then until its opener has found that out.
    pub(crate) fn note(&self, noted: Noted, domain: HwDomainId) -> Option<Opening<'_>> {
        let Noted { stream, requester } = noted;
        // Held for a look through the slots; nothing is waited for.
        let mut alone = self.edit.lock();
        let alone = &mut *alone;
        alone.refused.retain(|refused| *refused != stream);
        let (mut free, mut is_new) = (None, 1);
        let whose = alone.requesters.iter_mut().zip(&mut alone.alone);
        for (slot, whose) in self.slots.iter().zip(whose) {
            // ORDERING: Relaxed, slots change under the lock that is held.
            match slot.load(Ordering::Relaxed) {
                NONE => free = free.or(Some((slot, whose))),
                word if stream_in(word) == stream => {
                    (free, is_new) = (Some((slot, whose)), 0);
                    break;
                }
                _ => {}
            }
        }
        let (slot, (who, times)) = free?;
        // One whose slot was struck out meanwhile may count still.
        if !alone.opening.contains(&stream) && alone.opening.try_push(stream).is_err() {
            return None;
        }
        *who = requester;
        if is_new != 0 {
            *times = 0;
        }
        // ORDERING: Release, both, ordered for readers by the fence below.
        self.open.fetch_add(is_new, Ordering::Release);
        // ORDERING: as above.
        slot.store(word(stream, domain), Ordering::Release);
        // ORDERING: SeqCst: the slot is set before anything is forgotten for the stream, and so before its device asks.
        // Pairs with the fence of `hv_iommu::order`: a flush whose fence came first has stored its words before that,
        // and what the device is given comes from walks after it; any other flush finds the slot.
        fence(Ordering::SeqCst);
        Some(Opening {
            devices: self,
            stream,
        })
    }

    /// Strikes a stream out, whose device was told to forget before the sync with `ticket`.
    pub(crate) fn forget_behind(&self, stream: StreamId, ticket: FlushTicket) {
        self.told_before(ticket);
        self.forget(stream);
    }

    /// Notes that devices were told to forget before the sync with `ticket`, whether they are noted still or not.
    pub(crate) fn told_before(&self, ticket: FlushTicket) {
        // ORDERING: Release, before a slot is clear, or the submitter counts no more: who finds that finds this, see
        // `last_to_answer`.
        self.last.fetch_max(ticket.sequence, Ordering::Release);
    }

    /// From now on syncs may wait for devices, until the value is dropped: the caller is about to have some told. One that is
    /// given up before the commands are in the queue is waited for all the same.
    pub(crate) fn asks(&self) -> Asks<'_> {
        // ORDERING: Relaxed: what the caller submits comes after it on this CPU, and who else waits has no part in it.
        self.asking.fetch_add(1, Ordering::Relaxed);
        Asks(self)
    }

    /// The last sync that waits for a device which is noted no more.
    pub(crate) fn last_to_answer(&self) -> FlushTicket {
        // ORDERING: Acquire, as in `forget_behind`.
        FlushTicket::alone(self.last.load(Ordering::Acquire))
    }

    /// Strikes a stream out, after what closes it was put into the queue. Whether it was there.
    pub(crate) fn forget(&self, stream: StreamId) -> bool {
        let mut alone = self.edit.lock();
        alone.refused.retain(|refused| *refused != stream);
        self.strike_out(|word| stream_in(word) == stream)
    }

    /// Strikes every stream out that `which` says.
    fn strike_out(&self, which: impl Fn(u64) -> bool) -> bool {
        let mut found = false;
        for slot in &self.slots {
            // ORDERING: Relaxed, slots change under the lock that the caller holds.
            let word = slot.load(Ordering::Relaxed);
            if word != NONE && which(word) {
                // ORDERING: Release, both: that the stream's closing stands in the queue is seen by who does not see the
                // slot, so that its own commands come behind.
                slot.store(NONE, Ordering::Release);
                // ORDERING: as above.
                self.open.fetch_sub(1, Ordering::Release);
                found = true;
            }
        }
        found
    }

    /// Strikes a stream out whose device does not answer, after its entry was closed and the unit has taken that. With
    /// `tells`, its requester is to be told of.
    pub(crate) fn give_up(&self, noted: Noted, tells: bool) {
        let mut alone = self.edit.lock();
        self.strike_out(|word| stream_in(word) == noted.stream);
        if !tells || alone.silent.contains(&noted.requester) {
            return;
        }
        // As many as there may be at once; who never looks is not told of the rest.
        let _ = alone.silent.try_push(noted.requester);
        // ORDERING: Release, ordered by the queue: who waits for what stood unanswered is let go on after this.
        self.has_silent.store(true, Ordering::Release);
    }

    /// Notes that a device did not answer whose entry does not let it ask. It stays noted.
    pub(crate) fn refuse(&self, noted: Noted) {
        let mut alone = self.edit.lock();
        if Fault::RefusedIsForgotten.is_on() {
            self.strike_out(|word| stream_in(word) == noted.stream);
            return;
        }
        if !alone.refused.contains(&noted.stream) {
            // There are no more than slots.
            let _ = alone.refused.try_push(noted.stream);
        }
    }

    /// Notes that the unit stood at what one of the devices of these streams did not answer, and that all that are noted
    /// answered when each was asked alone.
    ///
    /// Of several nobody knows which it was, so from now on each is asked with a sync of its own, and the next time it is
    /// known.
    pub(crate) fn answered_alone(&self, asked: &[StreamId]) -> Verdict {
        // ORDERING: Relaxed, a number.
        let times = self.alone.fetch_add(1, Ordering::Relaxed) + 1;
        if times.is_power_of_two() {
            warn!(
                "devices answer invalidations (ATS) only when asked alone, {times} times so far; the last was one of {asked:?}"
            );
        }
        let [stream] = *asked else {
            // ORDERING: Relaxed: who asks without seeing it shares a sync once more.
            self.apart.store(true, Ordering::Relaxed);
            return Verdict::GoesOn;
        };
        let mut alone = self.edit.lock();
        let alone = &mut *alone;
        let whose = alone.requesters.iter().zip(&mut alone.alone);
        for (slot, (requester, times)) in self.slots.iter().zip(whose) {
            // ORDERING: Relaxed, slots change under the lock that is held.
            let word = slot.load(Ordering::Relaxed);
            if word == NONE || stream_in(word) != stream {
                continue;
            }
            *times = times.saturating_add(1);
            if *times >= ALONE_MOST && !Fault::AloneIsEnough.is_on() {
                let requester = *requester;
                return Verdict::TooOften(Noted { stream, requester });
            }
        }
        Verdict::GoesOn
    }

    /// How often a device did not answer that did when it was asked alone.
    pub(crate) fn times_alone(&self) -> u64 {
        // ORDERING: Relaxed, a number.
        self.alone.load(Ordering::Relaxed)
    }

    /// Whether each device is asked with a sync of its own.
    pub(crate) fn are_asked_apart(&self) -> bool {
        // ORDERING: Relaxed, as in `answered_alone`.
        self.apart.load(Ordering::Relaxed)
    }

    /// Whether a device that is noted did not answer, so that it must not be let ask.
    pub(crate) fn is_refused(&self, stream: StreamId) -> bool {
        self.edit.lock().refused.contains(&stream)
    }

    /// Whether somebody is to be told of.
    pub(crate) fn has_silent(&self) -> bool {
        // ORDERING: Acquire, as in `give_up`.
        self.has_silent.load(Ordering::Acquire)
    }

    /// Takes one that is to be told of.
    pub(crate) fn take_silent(&self) -> Option<PciAddress> {
        let mut alone = self.edit.lock();
        let taken = alone.silent.pop();
        if alone.silent.is_empty() {
            // ORDERING: Release, as in `give_up`; writers hold the lock.
            self.has_silent.store(false, Ordering::Release);
        }
        taken
    }

    /// All that are noted, with who they are.
    pub(crate) fn noted(&self) -> ArrayVec<Noted, MOST> {
        let alone = self.edit.lock();
        let slots = self.slots.iter().zip(&alone.requesters);
        let noted = slots.filter_map(|(slot, requester)| {
            // ORDERING: Relaxed, slots change under the lock that is held.
            match slot.load(Ordering::Relaxed) {
                NONE => None,
                word => Some(Noted {
                    stream: stream_in(word),
                    requester: *requester,
                }),
            }
        });
        noted.collect()
    }

    /// Whether none is noted, and nobody is about to have one told.
    pub(crate) fn is_empty(&self) -> bool {
        // ORDERING: Acquire pairs with the drop of `Asks`, as in `words`, and with `outlive`.
        self.asking.load(Ordering::Acquire) == 0
            && self.open.load(Ordering::Acquire) == 0
            && !self.outlives.load(Ordering::Acquire)
    }

    /// Notes whether the unit may wait for devices that were told before its queue was turned off: from the beginning of a
    /// reset until one has waited for a sync.
    pub(crate) fn outlive(&self, outlives: bool) {
        // ORDERING: Release; only resets have a part in it, one at a time.
        self.outlives.store(outlives, Ordering::Release);
    }

    /// Strikes all out, for the reset of a wedged unit, and gives each to `closed`. Those that are about to be let ask stay
    /// noted, and are refused.
    pub(crate) fn take_all(&self, mut closed: impl FnMut(StreamId)) {
        let mut alone = self.edit.lock();
        let alone = &mut *alone;
        let all: ArrayVec<StreamId, MOST> = self.all().collect();
        alone.refused.clear();
        if !Fault::ResetForgetsOpening.is_on() {
            alone.refused.clone_from(&alone.opening);
        }
        self.strike_out(|word| !alone.refused.contains(&stream_in(word)));
        // All groups behind the unit were cut off when it was wedged: who has a device next is not the one to be told.
        alone.silent.clear();
        // ORDERING: Release, as in `give_up`.
        self.has_silent.store(false, Ordering::Release);
        // Still under the lock: who opens one meanwhile either stored its entry before it was taken, and that is seen here, or
        // takes the lock afterwards, in `Opening::stays`, and finds itself refused.
        all.into_iter().for_each(&mut closed);
    }

    /// Whether a stream is noted.
    pub(crate) fn has(&self, stream: StreamId) -> bool {
        self.all().any(|open| open == stream)
    }

    fn words(&self) -> impl Iterator<Item = u64> {
        // ORDERING: Acquire pairs with `strike_out`; that none is missed is due to the SeqCst fences, see `note`.
        let most = match self.open.load(Ordering::Acquire) {
            0 => 0,
            _ => MOST,
        };
        // ORDERING: Acquire, as above.
        let words = self.slots.iter().take(most);
        words
            .map(|slot| slot.load(Ordering::Acquire))
            .filter(|word| *word != NONE)
    }

    fn all(&self) -> impl Iterator<Item = StreamId> {
        self.words().map(stream_in)
    }

    /// The streams of a domain.
    pub(crate) fn of(&self, domain: HwDomainId) -> impl Iterator<Item = StreamId> {
        let of = move |word: &u64| *word >> u32::BITS == u64::from(domain.get());
        self.words().filter(of).map(stream_in)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_found_by_their_domain_until_they_are_struck_out() {
        let devices = DeviceTlbs::new();
        let (one, two) = (HwDomainId::new(1), HwDomainId::new(2));
        let noted = |number: u32| Noted {
            stream: StreamId::new(number),
            requester: PciAddress::from_requester(Segment(0), number as u16),
        };
        let notes = |noted, domain| devices.note(noted, domain).is_some();
        let of = |domain| -> Vec<u32> { devices.of(domain).map(StreamId::get).collect() };
        for stream in 0..MOST as u32 {
            let domain = if stream % 2 == 0 { one } else { two };
            assert!(notes(noted(stream), domain));
        }
        assert!(!notes(noted(99), one), "there is no room");
        assert!(of(one).len() == MOST / 2 && of(one).iter().all(|stream| stream % 2 == 0));
        // Once more, of another domain: it has one place.
        assert!(notes(noted(0), two));
        assert_eq!((of(one).len(), of(two).len()), (31, 33));
        assert!(devices.forget(StreamId::new(0)) && !devices.forget(StreamId::new(0)));
        assert!(notes(noted(u32::MAX), HwDomainId::new(u16::MAX)));
        assert_eq!(of(HwDomainId::new(u16::MAX)), [u32::MAX]);
        // Who does not answer is told of once, and is in no domain any more.
        assert!(devices.noted().contains(&noted(3)) && !devices.has_silent());
        for tells in [true, true, false] {
            devices.give_up(noted(if tells { 3 } else { 5 }), tells);
        }
        // One that was refused stays, and may try again.
        devices.refuse(noted(7));
        assert!(devices.is_refused(StreamId::new(7)) && devices.has(StreamId::new(7)));
        assert!(notes(noted(7), two) && !devices.is_refused(StreamId::new(7)));
        assert!(devices.has_silent() && of(two).len() == 30);
        assert_eq!(devices.take_silent(), Some(noted(3).requester));
        assert_eq!((devices.take_silent(), devices.has_silent()), (None, false));
        assert!(notes(noted(3), two) && notes(noted(5), two));
        devices.give_up(noted(3), true);
        assert!(notes(noted(3), two));
        let mut closed = 0;
        devices.take_all(|_| closed += 1);
        assert_eq!((closed, of(one).len(), of(two).len()), (MOST, 0, 0));
        // Nor is anybody told of who was silent before that.
        assert_eq!((devices.take_silent(), devices.has_silent()), (None, false));
        let asks = devices.asks();
        assert!(!devices.is_empty());
        drop(asks);
        assert!(devices.is_empty());
        assert!(!devices.has(StreamId::new(2)));
    }

    #[test]
    fn one_that_is_about_to_be_let_ask_stays_noted_through_a_reset_and_is_refused() {
        let devices = DeviceTlbs::new();
        let (one, stream) = (HwDomainId::new(1), StreamId::new(3));
        let noted = Noted {
            stream,
            requester: PciAddress::from_requester(Segment(0), 3),
        };
        let mut seen = 0;
        let opening = devices.note(noted, one).unwrap();
        devices.take_all(|_| seen += 1);
        assert!(devices.has(stream) && devices.is_refused(stream) && !opening.stays());
        drop(opening);
        // Its opener did not strike it out: the next reset does.
        devices.take_all(|_| seen += 1);
        assert!(!devices.has(stream) && !devices.is_refused(stream));
        // One that was let ask is closed.
        let opening = devices.note(noted, one).unwrap();
        assert!(opening.stays());
        devices.take_all(|_| seen += 1);
        assert!(!devices.has(stream) && !opening.stays());
        drop(opening);
        // One that does not answer is given up by who mends, or refused.
        let opening = devices.note(noted, one).unwrap();
        devices.give_up(noted, true);
        assert!(!opening.stays());
        drop(opening);
        let opening = devices.note(noted, one).unwrap();
        devices.refuse(noted);
        assert!(!opening.stays() && devices.has(stream));
        drop(opening);
        assert!(devices.forget(stream) && devices.is_empty());
        assert_eq!(seen, 3);
    }
}
