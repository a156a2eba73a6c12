//! Translations that devices keep themselves (ATS): how a stream's entry lets its device ask, and takes that back.
//!
//! An entry that does not let its device ask is the gate: behind it nothing passes that says it is translated, whatever the
//! device still holds (CR0.ATSCHK, which bring-up sets; IHI 0070, 3.9.1.3). So what is forgotten before a gate opens is what
//! counts, and a device that does not answer has its gate closed: [`silent`](super::silent).
//!
//! A device is told to forget before it is set to ask, as Linux has it (`arm_smmu_enable_ats`), and once it is set not to any
//! more, as IHI 0070, 3.9.2 has it. A function that is not set to may end such a message as an Unsupported Request: that counts
//! as an answer, and nothing need have been forgotten (3.9.1.5). What it keeps is of no use to it then, for its gate is closed;
//! and before it asks again it is set to, from off to on, which makes it forget everything (PCI Express Base 6.2, 10.3.7,
//! "Implicit Invalidation Events"; so quoted by the maintainer of Linux's PCI, lore.kernel.org
//! 20240229210640.GA362869@bhelgaas). One that leaves the message unanswered is refused, like any that does not answer.
//!
//! All of this is about requests of PCI Express. Nothing has to look at those of CXL.cache, whatever the entry says (3.9.3):
//! `hv_iommu` attaches no function that can send them without somebody's word.

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_iommu::{FlushSpan, FlushTicket, HwDomainId, UnitError, Unmet};

use super::{Enabled, Stream, Unit};
use crate::StreamId;
use crate::device_tlbs::{MOST, Noted};
use crate::frames::Reach;
use crate::invalidate::{Batch, Filed};
use crate::spec::command::{AtcScope, AtcSpan, Command, SyncSignal};
use crate::spec::id_registers::Idr5;
use crate::spec::stream_entry::{Config, WORDS, asking, is_asking};
use crate::stream_table::EntryWords;

/// Whether the smallest pages that a unit knows are those that devices are set to ask for, all over the machine: 4 KiB. Of
/// others devices would have to ask for more at once, and be told to forget as much (IHI 0070, 3.9.1, 4.5.1).
fn asks_by_pages(idr5: Idr5) -> Result<(), Unmet> {
    match idr5.gran4k() {
        true => Ok(()),
        false => Err(Unmet::absent(
            "translation requests of 4 KiB pages (IDR5.GRAN4K)",
        )),
    }
}

impl<P: Platform> Unit<P, Enabled> {
    /// Whether the unit translates ahead for devices, and looks at what they send by that.
    pub(crate) fn serves_device_tlb(&self) -> Result<(), Unmet> {
        if self.info.idr0.translation_requests().is_none() {
            return Err(Unmet::absent("translation requests (IDR0.ATS)"));
        }
        asks_by_pages(self.info.idr5)?;
        if self.info.always_stalls() {
            // IHI 0070, 5.2, EATS: illegal beside S2S.
            return Err(Unmet::absent(
                "translation requests where faults always stall",
            ));
        }
        match self.regs.control().atschk() {
            true => Ok(()),
            false => Err(Unmet::absent(
                "looks at translated requests (CR0ACK.ATSCHK)",
            )),
        }
    }

    /// Lets a stream's device ask. See [`hv_iommu::DeviceTlbBackend::open_device_tlb`].
    ///
    /// What the unit holds of the domain is forgotten as well: a flush that did not see the stream noted may still be
    /// under way, and the device must not be given what that is about.
    pub(crate) fn open_device_tlb(
        &self,
        platform: &P,
        stream: Stream,
        domain: HwDomainId,
    ) -> Result<FlushTicket, UnitError> {
        let (unit, commands) = (self.index, &self.state.commands);
        commands.check_alive(unit)?;
        let requests = self.info.idr0.translation_requests();
        let lacking = |what, expected| UnitError::Hardware {
            unit,
            what,
            expected,
            found: 0,
        };
        if requests.is_none() || stream.is_shared {
            return Err(lacking(
                "a stream whose device may not ask for translations",
                1,
            ));
        }
        let reach = self.reach(platform);
        let not_bound = UnitError::NotBound {
            requester: stream.requester,
            domain,
        };
        let entry = self
            .state
            .streams
            .entry(&reach, stream.id)?
            .ok_or(not_bound)?;
        let before = entry.read();
        // Again when it is stored: its stream may have been made quiet, or its device given up, during the wait.
        let want = |before: &[u64; WORDS]| {
            let translates = matches!(Config::of(before), Some(Config::First | Config::Second));
            match translates && self.domain_of(&reach, stream, before) == Some(domain) {
                true => Ok(asking(before, requests)),
                false => Err(not_bound),
            }
        };
        want(&before)?;
        let noted = Noted {
            stream: stream.id,
            requester: stream.requester,
        };
        let room = lacking("room for one more TLB of a device; at most", MOST as u64);
        let opening = self.state.devices.note(noted, domain).ok_or(room)?;
        let context = self.queue_with(platform);
        let devices = &self.state.devices;
        let _asks = devices.asks();
        if !Fault::LeaveOldTranslations.is_on() {
            let forget = [
                Filed::of(domain, self.stage_of(domain)).all(),
                Command::sync(SyncSignal::None),
                forget_in(stream.id, FlushSpan::Domain),
            ];
            self.wait_between(&context, &forget, "forgetting in a device (ATC_INV)")?;
        }
        let given_up = UnitError::NoAnswer {
            requester: stream.requester,
        };
        let is_refused = !devices.has(stream.id) || devices.is_refused(stream.id);
        if is_refused && !Fault::SilentIsOpened.is_on() {
            // Its entry never let it ask.
            devices.forget(stream.id);
            return Err(given_up);
        }
        let opened = self.update(platform, stream.id, &entry, want);
        if opened.is_err() || !opening.stays() && !Fault::SilentIsOpened.is_on() {
            // A reset has closed all that were open meanwhile, and may not have seen this one. Or it does not answer any more.
            // Between the store and this it could ask, so it was noted all the time, and stays so until it is closed, with
            // all that takes: the unit may go by the entry still.
            shut(&reach, &entry);
            return opened.and(Err(given_up));
        }
        opened
    }

    /// Takes that back. See [`hv_iommu::DeviceTlbBackend::close_device_tlb`].
    ///
    /// In the order of IHI 0070, 3.9.2: the device was told, what it keeps is forgotten and what it sent has arrived, then
    /// the entry.
    pub(crate) fn close_device_tlb(
        &self,
        platform: &P,
        stream: Stream,
        domain: HwDomainId,
    ) -> Result<FlushTicket, UnitError> {
        let reach = self.reach(platform);
        let not_bound = UnitError::NotBound {
            requester: stream.requester,
            domain,
        };
        let entry = self
            .state
            .streams
            .entry(&reach, stream.id)?
            .ok_or(not_bound)?;
        let before = entry.read();
        if self.domain_of(&reach, stream, &before) != Some(domain) {
            return Err(not_bound);
        }
        let context = self.queue_with(platform);
        let _asks = self.state.devices.asks();
        if self.state.devices.has(stream.id) {
            let forget = [forget_in(stream.id, FlushSpan::Domain)];
            let forgotten =
                self.wait_between(&context, &forget, "forgetting in a device (ATC_INV)");
            if let Err(error) = forgotten {
                // The gate all the same, which can only help. It stays noted: a reset has the unit read the entry anew.
                shut(&reach, &entry);
                return Err(error);
            }
        }
        let ticket = self.update(platform, stream.id, &entry, |before| {
            Ok(match Fault::CloseKeepsEntry.is_on() {
                true => *before,
                false => asking(before, None),
            })
        })?;
        self.state.devices.forget(stream.id);
        Ok(ticket)
    }

    /// Hands `batch`, which has the unit forget, to the unit, and has the domain's devices forget behind it.
    ///
    /// A device that asks is given what the unit holds, so the unit has forgotten before any device is told (IHI 0070,
    /// 4.5.1).
    pub(super) fn submit_to_devices(
        &self,
        platform: &P,
        mut batch: Batch,
        domain: HwDomainId,
        span: FlushSpan,
    ) -> Result<FlushTicket, UnitError> {
        let (commands, context) = (&self.state.commands, self.queue_with(platform));
        let devices = &self.state.devices;
        // Those that are found here may be given up before the commands are in the queue, and be waited for again there.
        let _asks = (!devices.is_empty()).then(|| devices.asks());
        let most = commands.batch_most();
        let mut is_behind = Fault::DeviceForgetsFirst.is_on();
        let apart = devices.are_asked_apart();
        let mut earlier: Option<FlushTicket> = None;
        let mut submit = |batch: &Batch| -> Result<FlushTicket, UnitError> {
            let ticket = commands.submit(&context, batch)?;
            let ticket = earlier.map_or(ticket, |earlier| ticket.and(earlier));
            earlier = Some(ticket);
            Ok(ticket)
        };
        for stream in devices.of(domain) {
            let needed = 1 + usize::from(!is_behind) + usize::from(apart);
            if batch.len() + needed > most {
                // There is a sync behind it.
                submit(&batch)?;
                batch.clear();
                is_behind = true;
            }
            if !is_behind {
                let _ = batch.try_push(Command::sync(SyncSignal::None));
                is_behind = true;
            }
            let _ = batch.try_push(forget_in(stream, span));
            if apart {
                let _ = batch.try_push(Command::sync(SyncSignal::None));
            }
        }
        let ticket = submit(&batch)?;
        if is_behind {
            devices.told_before(ticket);
        }
        Ok(ticket)
    }

    /// Closes every gate, for a reset: what devices hold then leads nowhere once the unit has read the entries anew.
    pub(super) fn close_all_device_tlbs(&self, platform: &P) {
        let reach = self.reach(platform);
        self.state.devices.take_all(|stream| {
            let Ok(Some(entry)) = self.state.streams.entry(&reach, stream) else {
                return;
            };
            // Its owner may be at it: what it stores meanwhile is seen, or it sees that the stream is noted no more.
            shut(&reach, &entry);
        });
    }
}

/// Stores that the device of an entry may not ask, and tells nobody. What others store into the entry meanwhile stays.
fn shut<P: Platform>(reach: &Reach<'_, P>, entry: &EntryWords<'_, P::Cell>) {
    loop {
        let before = entry.read();
        if !is_asking(&before) {
            return;
        }
        let closed = asking(&before, None);
        for (word, (from, to)) in before.into_iter().zip(closed).enumerate() {
            if from != to {
                entry.replace(reach, word, from, to);
            }
        }
    }
}

/// A device forgets what translates these addresses. It has no PASIDs: they are not opened beside its TLB.
pub(super) fn forget_in(stream: StreamId, span: FlushSpan) -> Command {
    let other = u32::from(Fault::ForgetOtherDevice.is_on());
    let stream = StreamId::new(stream.get() ^ other);
    let span = match span {
        FlushSpan::Domain => AtcSpan::ALL,
        FlushSpan::Pages(range) if Fault::DeviceForgetsOnePage.is_on() => {
            AtcSpan::around(range.start(), range.start())
        }
        FlushSpan::Pages(range) => AtcSpan::around(range.start(), range.last()),
    };
    Command::atc_invalidate(stream, AtcScope::WithoutSubstream, &span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_ask_where_the_unit_has_the_pages_that_they_ask_for() {
        assert_eq!(asks_by_pages(Idr5::from_bits(0x74)), Ok(()));
        let large = Idr5::from_bits(0x64);
        assert!(large.gran16k() && large.gran64k());
        let refused = asks_by_pages(large).unwrap_err();
        assert!(refused.what.contains("IDR5.GRAN4K"));
    }
}
