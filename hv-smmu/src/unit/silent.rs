//! Devices that were told to forget and do not say that they did: who it is, and how it is kept from everything.
//!
//! A unit that has waited for such a device stops at the sync (CERROR_ATC_INV_SYNC; IHI 0070, 3.9.1.4 and 7.1), without a
//! word on whose answer is missing. [`hv_iommu::queue`] has one CPU mend that, with the queue to itself; what it finds
//! out here is which device it is. Each stream that is noted is told to forget everything, alone, with a sync behind it:
//!
//! | at that sync the unit | so its device | and its stream |
//! |---|---|---|
//! | goes on | has forgotten all it had, with whatever any flush of before asked it to | stays as it is |
//! | stops once more | does not answer | aborts from now on: word 0 of its entry, CFGI_STE, a sync |
//!
//! Behind an entry that aborts nothing passes that says it is translated (CR0.ATSCHK; 3.9.1.3), nor anything else, so
//! what the device keeps is of no use to it, and the sync behind CFGI_STE says that what it had sent by that is over. So
//! every ticket of before holds, and the unit goes on. A function that is not there (its configuration space reads as all
//! ones) is not asked: that would take as long as the bus gives it.
//!
//! What a silent device costs the others is time: what the bus gives a device, at the first sync, and once more here, for each
//! that does not answer. Further ATC_INVs that stood in the queue cost nothing, for they are taken out of it
//! (`QueuePort::spare`), nor do those that come late for a device that is given up (`Port::unless_gone`). What one of those was about is forgotten all the same before its ticket counts. Its stream is noted, and
//! asked here to forget everything, behind the unit's own invalidation, which stood in front of it with a sync. Or its stream is
//! noted no more: then what closed its entry stood in the queue when it was struck out, and has been done by now, with a
//! sync, and before the entry lets the device ask again the device is told to forget everything
//! ([`device_tlbs`](crate::device_tlbs)). Each of these steps has a deadline of its own (`DEVICE_DEADLINE`), and who waits for
//! all of it begins to wait anew with each, so that a few dead functions of a card do not wedge the unit.
//!
//! Where all of them answer, one had not answered before and does when it is asked alone. That is counted, of the unit
//! ([`UnitTroubles`]) and of the device, if it was the only one that was asked in front of the sync
//! at which the unit stood. If it was not, each is asked with a sync of its own from then on. A device that does so
//! [again and again](crate::device_tlbs::ALONE_MOST) is closed like one that never answers.
//!
//! The entry of a device that was only about to be let ask stays as it is, and so does its group: it stays noted, and
//! [`open_device_tlb`](super::Unit::open_device_tlb) refuses. It is the opener who strikes it out, once its entry says for
//! sure that it may not ask: the opener may be storing the opposite right here.

use hv_core::PciAddress;
use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_iommu::{FlushSpan, UnitError, UnitIndex, UnitTroubles};
use log::error;

use super::device_tlb::forget_in;
use super::{Enabled, Unit};
use crate::StreamId;
use crate::device_tlbs::{DeviceTlbs, Noted, Verdict};
use crate::frames::Reach;
use crate::spec::command::{Command, Depth};
use crate::spec::stream_entry::is_asking;
use crate::stream_table::StreamTable;

/// What the commands of a unit that translates wait for beside the unit.
#[derive(Clone, Copy)]
pub(crate) struct Behind<'a> {
    pub(crate) devices: &'a DeviceTlbs,
    pub(crate) streams: &'a StreamTable,
    pub(crate) coherent: bool,
    pub(crate) phys_bits: u8,
}

impl Behind<'_> {
    /// Closes the streams of all devices that do not answer. `ask` hands commands over, alone, and says whether all who were
    /// told to forget did; one of the devices of the streams `asked` did not before.
    pub(crate) fn settle<P: Platform>(
        &self,
        platform: &P,
        unit: UnitIndex,
        asked: &[StreamId],
        ask: impl Fn(&[Command], &'static str) -> Result<bool, UnitError>,
    ) -> Result<(), UnitError> {
        let reach = Reach {
            platform,
            unit,
            coherent: self.coherent,
            phys_bits: self.phys_bits,
        };
        let mut is_found = false;
        // Who is noted later has not told its device anything yet.
        for noted in self.devices.noted() {
            let is_here = platform.config_read32(noted.requester, 0) != u32::MAX;
            let forget = [forget_in(noted.stream, FlushSpan::Domain)];
            let what = "forgetting in a device (ATC_INV)";
            if is_here && ask(&forget, what)? || Fault::SilentIsBelieved.is_on() {
                continue;
            }
            is_found = true;
            self.close(&reach, noted, &ask)?;
        }
        match is_found {
            true => Ok(()),
            false => match self.devices.answered_alone(asked) {
                Verdict::GoesOn => Ok(()),
                Verdict::TooOften(noted) => self.close(&reach, noted, &ask),
            },
        }
    }

    /// Sees to it that nothing of a stream passes any more.
    fn close<P: Platform>(
        &self,
        reach: &Reach<'_, P>,
        noted: Noted,
        ask: impl Fn(&[Command], &'static str) -> Result<bool, UnitError>,
    ) -> Result<(), UnitError> {
        error!(
            "SMMUv3 {}: {} does not answer: {:?} is closed",
            reach.unit, noted.requester, noted.stream
        );
        let entry = self.streams.entry(reach, noted.stream)?;
        let was_asking = entry.as_ref().is_some_and(|entry| is_asking(&entry.read()));
        if let Some(entry) = entry.filter(|_| was_asking)
            && !Fault::SilentKeepsEntry.is_on()
        {
            // Its owner may be at it, or who cuts it off: that it aborts is what stays.
            entry.abort_now(reach);
        }
        if !Fault::SilentEntryNotReread.is_on() {
            let reread = [Command::config_stream(noted.stream, Depth::Leaves)];
            ask(&reread, "forgetting a stream table entry (CFGI_STE)")?;
        }
        match was_asking {
            // Who is told cuts the stream off as well, which would hide that it was not closed here.
            true => self
                .devices
                .give_up(noted, !Fault::SilentKeepsEntry.is_on()),
            false => self.devices.refuse(noted),
        }
        Ok(())
    }
}

impl<P: Platform> Unit<P, Enabled> {
    /// See [`hv_iommu::Backend::waits_for_devices`].
    pub(crate) fn waits_for_devices(&self) -> bool {
        self.state.commands.waits_for(&self.state.devices)
    }

    /// See [`hv_iommu::Backend::mending_steps`].
    pub(crate) fn mending_steps(&self) -> u64 {
        self.state.commands.mending_steps()
    }

    /// See [`hv_iommu::Backend::troubles`].
    pub(crate) fn troubles(&self) -> UnitTroubles {
        let (commands_read_again, commands_refused) = self.state.commands.refusals();
        UnitTroubles {
            commands_read_again,
            commands_refused,
            answered_alone: self.state.devices.times_alone(),
            false_stalls: self.state.events.false_stalls(),
        }
    }

    /// See [`hv_iommu::Backend::has_silent`].
    pub(crate) fn has_silent(&self) -> bool {
        self.state.devices.has_silent()
    }

    /// See [`hv_iommu::Backend::take_silent`].
    pub(crate) fn take_silent(&self) -> Option<PciAddress> {
        self.state.devices.take_silent()
    }
}
