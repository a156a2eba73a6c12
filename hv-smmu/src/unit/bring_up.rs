//! The steps from discovery to running.
//!
//! Order after Linux `arm_smmu_device_reset`, with the gate closed first on every unit, as TF-A has it: what a unit does
//! while it is off is let everything through unless told otherwise.

use hv_core::fault::Fault;
use hv_core::platform::{Mmio, Platform};
use hv_core::{PageCount, PhysRange};
use hv_iommu::{UnitError, UnitIndex};
use log::info;
use spin::mutex::SpinMutex;

use super::looks::Looks;
use super::nested_streams::NestedStreams;
use super::refusal::{check, check_errors};
use super::regs::Switch;
use super::{
    Closed, Discovered, Enabled, Flushed, HandOver, Listening, Ready, Regs, Standing, Telling,
    Unit, UnitInfo,
};
use crate::StreamId;
use crate::caps;
use crate::command_queue::Commands;
use crate::contexts::Contexts;
use crate::device_tlbs::DeviceTlbs;
use crate::error::BringUpError;
use crate::event_queue::Events;
use crate::firmware::SmmuUnit;
use crate::page_queue::Pages;
use crate::spec::command::Command;
use crate::spec::id_registers::{Aidr, Idr0, Idr1, Idr3, Idr5, Iidr};
use crate::spec::queue::QueuePointer;
use crate::spec::quirks::{self, Quirk, Quirks};
use crate::spec::registers::{self, IrqCtrl};
use crate::stream_table::StreamTable;
use crate::vmsa::{Stage, Tables};

/// Says what is done differently for a unit, and why: by what firmware says that it is, or by an erratum of its part.
fn log_quirks(unit: UnitIndex, described: Quirks, iidr: Iidr) {
    for quirk in described.iter() {
        info!("SMMUv3 {unit}: quirk applied: {quirk}, by firmware's description");
    }
    for erratum in quirks::errata(iidr) {
        let (part, number) = (erratum.part, erratum.number);
        for quirk in erratum.quirks.iter() {
            info!("SMMUv3 {unit}: quirk applied: {quirk}, for {part} (IIDR), erratum {number}");
        }
    }
}

impl<P: Platform> Unit<P, Discovered> {
    /// Reads what the unit is, and refuses what this version does not drive with tables of format `F`. Writes nothing.
    /// `last_stream` is the highest of a requester that is known; see [`UnitInfo::no_snoop_is_moot`] for the rest.
    pub(crate) fn discover<F: Tables>(
        platform: &P,
        index: UnitIndex,
        described: &SmmuUnit,
        last_stream: StreamId,
        no_snoop_is_moot: bool,
    ) -> Result<Self, BringUpError> {
        let base = described.registers.start();
        let refused = |why| BringUpError::Refused {
            unit: index,
            base,
            why,
        };
        let one_page = described.quirks.has(Quirk::OnePage);
        let bytes = match one_page {
            true => registers::FRAME_BYTES_ONE_PAGE,
            false => registers::FRAME_BYTES,
        };
        let pages = PageCount::for_bytes(bytes).unwrap_or(PageCount::ONE);
        let range = PhysRange::new(base, pages)?;
        let block = platform
            .map_registers(range)
            .map_err(|why| BringUpError::Registers { unit: index, why })?;
        let (idr0, idr1) = (block.read32(registers::IDR0), block.read32(registers::IDR1));
        let idr5 = block.read32(registers::IDR5);
        let registers = (
            Idr0::from_bits(idr0),
            Idr1::from_bits(idr1),
            Idr5::from_bits(idr5),
        );
        let stage = check(registers, F::GRANULE).map_err(refused)?;
        let iidr = Iidr::from_bits(block.read32(registers::IIDR));
        log_quirks(index, described.quirks, iidr);
        let quirks = described.quirks.and(quirks::by_iidr(iidr));
        let info = UnitInfo {
            unit: index,
            registers: range,
            coherent: described.coherent,
            leaf_notes: described.leaf_notes,
            no_snoop_is_moot,
            quirks,
            telling: Telling::of(Idr0::from_bits(idr0), quirks),
            last_stream,
            interrupts: described.interrupts,
            idr0: Idr0::from_bits(idr0),
            idr1: Idr1::from_bits(idr1),
            idr3: Idr3::from_bits(block.read32(registers::IDR3)),
            idr5: Idr5::from_bits(idr5),
            iidr,
            aidr: Aidr::from_bits(block.read32(registers::AIDR)),
        };
        if stage == Stage::First {
            info!(
                "SMMUv3 {index}: it has first stages alone, so the devices behind it can be the hypervisor's and no \
                 guest's"
            );
        }
        if info.coherent != info.idr0.cohacc() {
            info!(
                "SMMUv3 {index}: firmware says that it {}, its registers say the opposite: firmware is believed",
                if info.coherent {
                    "snoops"
                } else {
                    "does not snoop"
                }
            );
        }
        let registers = (info.idr0, info.idr3, info.idr5);
        let caps_of = |stage| caps::unit_caps::<F>(registers, stage, info.firmware_says());
        Ok(Self {
            index,
            caps: caps_of(stage),
            first_stage_caps: info.idr0.s1p().then(|| caps_of(Stage::First)),
            hand_over: HandOver::Closed,
            info,
            regs: Regs::new(block, one_page),
            state: Discovered,
        })
    }

    /// Closes the gate, then turns the unit off, whatever state somebody else left it in: from here on nothing goes
    /// through it. Where firmware's devices are kept running, only what is of no use to them goes off.
    pub(crate) fn close(self, platform: &P) -> Result<Unit<P, Closed>, BringUpError> {
        let off = self.turn_off(platform);
        // One that has failed for good need not take what is written to it (IHI 0070, 12.3): that is why, then.
        check_errors(self.regs.errors()).map_err(|why| BringUpError::Refused {
            unit: self.index,
            base: self.info.base(),
            why,
        })?;
        off?;
        // Other errors of before are nobody's.
        let errors = self.regs.read32(registers::GERROR);
        let unseen = u32::from(Fault::AcknowledgeUnseenErrors.is_on());
        self.regs.write32(registers::GERRORN, errors ^ unseen);
        Ok(self.into_state(|Discovered| Closed))
    }

    fn turn_off(&self, platform: &P) -> Result<(), UnitError> {
        match self.hand_over {
            HandOver::Closed => {
                if !Fault::LeaveGateOpen.is_on() {
                    self.regs.close_gate(platform, self.index)?;
                }
                self.regs.all_off(platform, self.index)?;
            }
            HandOver::Seamless => self.regs.all_off(platform, self.index)?,
            HandOver::WithGap => self.regs.queues_off(platform, self.index)?,
        }
        // Completions and events are looked for; interrupts go nowhere until somebody says where.
        self.regs
            .write32(registers::IRQ_CTRL, IrqCtrl::new().into_bits());
        self.regs.wait_for(
            platform,
            self.index,
            "turning its interrupts off (IRQ_CTRL)",
            || self.regs.read32(registers::IRQ_CTRL_ACK) == 0,
        )
    }
}

impl<P: Platform> Unit<P, Closed> {
    /// Gives the unit a stream table that aborts every stream, and starts its command queue.
    pub(crate) fn start(self, platform: &P) -> Result<Unit<P, Ready>, BringUpError> {
        let reach = self.reach(platform);
        let (idr0, idr1) = (self.info.idr0, self.info.idr1);
        // A linear table has the streams that there are requesters for, one in two levels all that the unit knows.
        let known = 32 - self.info.last_stream.get().leading_zeros() as u8;
        let bits = match idr0.has_two_levels() {
            true => idr1.sidsize(),
            false => known.max(1).min(idr1.sidsize()),
        };
        let streams = StreamTable::new(&reach, bits, idr0.has_two_levels())?;
        let commands = Commands::new(&reach, idr1.cmdqs(), self.info.quirks)?;
        match self.hand_over {
            HandOver::Closed | HandOver::Seamless => self.give_streams(&streams),
            HandOver::WithGap => self.give_queue_attributes(),
        }
        let unit = self.into_state(|Closed| Ready { streams, commands });
        unit.turn_commands_on(platform, &unit.state.commands)?;
        Ok(unit)
    }
}

impl<P: Platform> Unit<P, Ready> {
    /// Makes the unit forget everything that it cached before. One that still goes by firmware's tables caches more of
    /// them, and forgets all of it later.
    pub(crate) fn flush(self, platform: &P) -> Result<Unit<P, Flushed>, BringUpError> {
        if self.hand_over != HandOver::WithGap {
            self.forget(platform, &self.state.commands)?;
        }
        Ok(self.into_state(|Ready { streams, commands }| Flushed { streams, commands }))
    }
}

impl<P: Platform> Unit<P, Flushed> {
    /// Starts the event queue, and the queue of page requests where there is one: devices that send some are answered.
    pub(crate) fn listen(self, platform: &P) -> Result<Unit<P, Listening>, BringUpError> {
        let events = Events::new(
            &self.reach(platform),
            self.info.idr1.eventqs(),
            self.info.may_stall(),
            self.info.intermediate_bits(),
        )?;
        let start = QueuePointer::default().into_bits();
        self.regs
            .write64(registers::EVENTQ_BASE, events.base().into_bits());
        self.regs.write32(registers::EVENTQ_PROD, start);
        self.regs.write32(registers::EVENTQ_CONS, start);
        self.regs
            .switch(platform, self.index, Switch::Events, true)?;
        let pages = match self.info.idr0.pri() {
            true => Some(self.take_page_requests(platform)?),
            false => None,
        };
        Ok(self.into_state(|Flushed { streams, commands }| Listening {
            streams,
            commands,
            events,
            pages,
        }))
    }

    fn take_page_requests(&self, platform: &P) -> Result<Pages, BringUpError> {
        let pages = Pages::new(&self.reach(platform), self.info.idr1.priqs())?;
        let start = QueuePointer::default().into_bits();
        self.regs
            .write64(registers::PRIQ_BASE, pages.base().into_bits());
        self.regs.write32(registers::PRIQ_PROD, start);
        self.regs.write32(registers::PRIQ_CONS, start);
        self.regs
            .switch(platform, self.index, Switch::Pages, true)?;
        Ok(pages)
    }
}

impl<P: Platform> Unit<P, Listening> {
    /// Turns translation on. See [`Unit::translate`].
    pub(crate) fn enable(self, platform: &P) -> Result<Unit<P, Enabled>, BringUpError> {
        let unit = self.ready(platform)?;
        unit.translate(platform)?;
        Ok(unit)
    }

    /// All but turning translation on.
    pub(crate) fn ready(self, platform: &P) -> Result<Unit<P, Enabled>, BringUpError> {
        let contexts = match self.caps.second_stage && self.pasid_caps().is_none() {
            true => None,
            false => Some(Contexts::beside(
                &self.reach(platform),
                &self.state.streams,
            )?),
        };
        Ok(self.into_state(|state| Enabled {
            streams: state.streams,
            commands: state.commands,
            events: state.events,
            pages: state.pages,
            contexts,
            devices: DeviceTlbs::new(),
            nested: NestedStreams::new(),
            reset: SpinMutex::new(Standing::On),
            routing: SpinMutex::new(()),
            looks: Looks::new(),
        }))
    }
}

impl<P: Platform, S> Unit<P, S> {
    /// Starts the command queue, which is off, on an empty ring.
    pub(super) fn turn_commands_on(
        &self,
        platform: &P,
        commands: &Commands,
    ) -> Result<(), UnitError> {
        let start = QueuePointer::default().into_bits();
        self.regs
            .write64(registers::CMDQ_BASE, commands.base().into_bits());
        self.regs.write32(registers::CMDQ_PROD, start);
        self.regs.write32(registers::CMDQ_CONS, start);
        self.regs
            .switch(platform, self.index, Switch::Commands, true)
    }

    /// What makes the unit forget everything, and for what. Configuration first: a translation that is cached meanwhile
    /// comes from entries in memory.
    pub(super) fn forget_all(&self) -> [Option<(Command, &'static str)>; 3] {
        let el2 = (
            Command::tlb_el2_all(),
            "forgetting translations of its own level (TLBI_EL2_ALL)",
        );
        [
            Some((Command::config_all(), "forgetting configuration (CFGI_ALL)")),
            // Illegal on a unit without that level.
            self.info.idr0.hyp().then_some(el2),
            Some((
                Command::tlb_all(),
                "forgetting translations (TLBI_NSNH_ALL)",
            )),
        ]
    }
}
