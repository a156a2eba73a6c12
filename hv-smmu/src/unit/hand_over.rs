//! How a unit comes from firmware's hands, where devices that firmware goes on using are kept running.
//!
//! Which stream table is in force may change only while the unit is off (IHI 0070, 6.3.24), and what it does with
//! transactions then is for its gate to say, for all of them alike (6.3.14). So a unit that was off, with its gate open,
//! goes from letting everything pass to translating by entries that are live already, from one transaction to the next
//! (6.3.9.6), and the gate is closed behind that. One that firmware left translating has to be off for a moment, and an
//! open gate would let its devices out of what firmware let them reach: it is closed before, and they are aborted. All
//! else is done before that moment.

use core::fmt;

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_iommu::UnitError;
use log::warn;

use super::regs::Switch;
use super::{Discovered, Enabled, Unit};
use crate::command_queue::Commands;
use crate::spec::registers::{self, Cr0, Cr1, Cr2, Gbpa};
use crate::stream_table::StreamTable;

/// What becomes of requests between firmware and the first moment of translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandOver {
    /// They are aborted: nobody behind the unit is kept running, or the unit was closed already.
    Closed,
    /// They pass as before, whoever sends them, and from one to the next they are translated. Who is not kept running was
    /// told to send none.
    Seamless,
    /// They go by firmware's tables, then they are aborted for as long as it takes to change some registers and have the
    /// unit forget what it cached, then they are translated.
    WithGap,
}

impl fmt::Display for HandOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "nothing passes until it translates",
            Self::Seamless => "everything passes until it translates",
            Self::WithGap => {
                "firmware's tables count until it translates by its own, with a moment in between that aborts everything"
            }
        })
    }
}

impl<P: Platform> Unit<P, Discovered> {
    /// Keeps running what firmware goes on using behind the unit, as the state allows that firmware left it in.
    pub(crate) fn keep_running(mut self) -> Self {
        let read = |register| Cr0::from_bits(self.regs.read32(register));
        let translates = read(registers::CR0).smmuen() || read(registers::CR0ACK).smmuen();
        let gate = Gbpa::from_bits(self.regs.read32(registers::GBPA));
        self.hand_over = match (translates, gate.abort()) {
            (true, _) => HandOver::WithGap,
            (false, true) => HandOver::Closed,
            (false, false) => HandOver::Seamless,
        };
        self
    }
}

impl<P: Platform, S> Unit<P, S> {
    /// How it comes from firmware's hands.
    pub(crate) const fn hand_over(&self) -> HandOver {
        self.hand_over
    }

    /// Gives the unit, which is off, its stream table, and says how it reads tables and queues.
    pub(super) fn give_streams(&self, streams: &StreamTable) {
        let cr1 = self.attributes().into_bits();
        self.regs.write32(registers::CR1, cr1);
        // What CPUs broadcast is none of ours: tables are not shared with them.
        // And nothing is recorded of streams that the table has no entry for (RECINVSID): such a device may send for ever,
        // and no entry is there to make it quiet.
        let unbounded = Fault::RecordUnknownStreams.is_on();
        let cr2 = Cr2::new().with_recinvsid(unbounded).with_ptm(true);
        self.regs.write32(registers::CR2, cr2.into_bits());
        let (base, config) = streams.registers();
        self.regs.write64(registers::STRTAB_BASE, base.into_bits());
        self.regs
            .write32(registers::STRTAB_BASE_CFG, config.into_bits());
    }

    /// Says how the unit reads queues, all of which are off, while it reads firmware's tables as firmware said (IHI 0070,
    /// 6.3.11).
    pub(super) fn give_queue_attributes(&self) {
        let firmwares = Cr1::from_bits(self.regs.read32(registers::CR1));
        let cr1 = self.attributes().with_tables_of(firmwares);
        self.regs.write32(registers::CR1, cr1.into_bits());
    }

    const fn attributes(&self) -> Cr1 {
        match self.info.coherent {
            true => Cr1::COHERENT,
            false => Cr1::NON_COHERENT,
        }
    }

    /// Makes the unit, which does not translate, forget everything that it cached before.
    pub(super) fn forget(&self, platform: &P, commands: &Commands) -> Result<(), UnitError> {
        if self.info.idr0.ats() && !Fault::TranslatedUnchecked.is_on() {
            // Off, requests that say they are translated pass round every entry (IHI 0070, 6.3.9, ATSCHK). It may be
            // cached with configuration, so it comes before that is forgotten.
            self.regs
                .switch(platform, self.index, Switch::CheckTranslated, true)?;
        }
        let context = self.queue_alone(platform);
        let most = if Fault::EnableBeforeForgetting.is_on() {
            0
        } else {
            usize::MAX
        };
        for (command, what) in self.forget_all().into_iter().flatten().take(most) {
            commands.submit_and_wait(&context, &[command], what)?;
        }
        Ok(())
    }
}

impl<P: Platform> Unit<P, Enabled> {
    /// Turns translation on. From here the stream table, not the gate, keeps devices out; the gate is closed for whoever
    /// turns the unit off.
    pub(crate) fn translate(&self, platform: &P) -> Result<(), UnitError> {
        match self.hand_over {
            HandOver::Closed => self.turn_on(platform),
            HandOver::Seamless => {
                self.turn_on(platform)?;
                match Fault::KeptGateStaysOpen.is_on() {
                    true => Ok(()),
                    false => self.regs.close_gate(platform, self.index),
                }
            }
            HandOver::WithGap => self.take_over(platform),
        }
    }

    fn turn_on(&self, platform: &P) -> Result<(), UnitError> {
        if Fault::LeaveTranslationOff.is_on() {
            return Ok(());
        }
        self.regs
            .switch(platform, self.index, Switch::Translation, true)
    }

    /// From firmware's stream table to its own. Each step has a deadline of its own. One that fails leaves the unit as far
    /// as it got: by firmware's table still, where the gate or the switch did not follow, else off behind its closed gate.
    fn take_over(&self, platform: &P) -> Result<(), UnitError> {
        let unit = self.index;
        if !Fault::KeptGapIsOpen.is_on() {
            self.regs.close_gate(platform, unit)?;
        }
        let begun = platform.now();
        self.regs
            .switch(platform, unit, Switch::Translation, false)?;
        // What was recorded until now is of firmware's time, and nobody's here.
        if !Fault::KeepFirmwaresEvents.is_on() {
            let reach = self.reach(platform);
            self.state.events.forget_all(&reach, &self.regs);
        }
        self.give_streams(&self.state.streams);
        self.forget(platform, &self.state.commands)?;
        self.turn_on(platform)?;
        let gap = platform.now().since(begun);
        warn!("KEPT: {unit} aborted what firmware's devices sent, for {gap:?} at most");
        Ok(())
    }
}
