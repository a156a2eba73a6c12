//! The registers of an SMMUv3: what reads give, the rules for writes, and what takes its time.

use super::Unit;
use super::spec::registers as spec;
use crate::bus::Bus;
use crate::memory::View;
use crate::rule::Rule;

/// The version that the rig's units have: 3.2.
const VERSION: u64 = 0x02;

/// A register whose value the unit takes late.
#[derive(Clone, Copy, Debug)]
pub(super) struct Late {
    pub(super) value: u32,
    due: u64,
}

/// How late a unit that is told to be takes a change, in nanoseconds.
const LATE_SWITCH: u64 = 2_000_000_000;

impl Unit {
    /// The driver reads.
    pub(super) fn register_read(&mut self, bus: &mut Bus, offset: u32, bits: u32) -> u64 {
        if self.health.gone {
            return u64::MAX >> (64 - bits);
        }
        self.judge_width(bus, offset, bits);
        let ids = self.identity.registers();
        match offset {
            spec::IDR0..=spec::IDR5 => {
                let id = ids.get((offset / 4) as usize);
                id.copied().unwrap_or(0).into()
            }
            spec::IIDR => self.identity.part.into(),
            spec::AIDR => VERSION,
            spec::CR0 => self.wanted.into(),
            spec::CR0ACK => self.control.into(),
            spec::CR1 => self.cr1.into(),
            spec::CR2 => self.cr2.into(),
            spec::GBPA => {
                let gate = self
                    .gate_late
                    .map_or(self.gate, |late| late.value | spec::GBPA_UPDATE);
                gate.into()
            }
            spec::IRQ_CTRL => self.interrupts.0.into(),
            spec::IRQ_CTRL_ACK => self.interrupts.1.into(),
            spec::GERROR => self.errors.into(),
            spec::GERRORN => self.errors_seen.into(),
            spec::STRTAB_BASE => self.table_written.0,
            spec::STRTAB_BASE_CFG => self.table_written.1.into(),
            spec::CMDQ_PROD => self.queue.prod,
            spec::CMDQ_CONS => self.queue.consumed().into(),
            spec::EVENTQ_PROD => self.events_told(bus).into(),
            spec::EVENTQ_CONS => self.events.cons.into(),
            spec::PRIQ_PROD | spec::PRIQ_CONS if self.identity.pri => {
                self.page_index(offset).into()
            }
            _ => self.plain.get(&offset).copied().unwrap_or(0),
        }
    }

    fn judge_width(&self, bus: &mut Bus, offset: u32, bits: u32) {
        let what = match spec::width(offset) {
            Some(width) if width == bits => return,
            Some(width) => format!("has {width} bits and was reached with {bits}"),
            None => "is none".to_owned(),
        };
        let what = format!("unit {}: register {offset:#x} {what}", self.index);
        bus.broken(Rule::Register, what);
    }

    fn wrong(&self, bus: &mut Bus, what: &str) {
        bus.broken(Rule::Register, format!("unit {}: {what}", self.index));
    }

    /// The driver writes.
    pub(super) fn register_written(&mut self, bus: &mut Bus, offset: u32, bits: u32, value: u64) {
        if self.health.gone {
            return;
        }
        self.judge_width(bus, offset, bits);
        let low = value as u32;
        // What is on, or is about to be, or about to be off.
        let on = self.control | self.wanted;
        let has = |bits: u32| on & bits != 0;
        match offset {
            spec::CR0 => self.control_written(bus, low),
            spec::CR1 => {
                let changes = |first: u32| (low ^ self.cr1) >> first & 0x3f != 0;
                if changes(spec::CR1_TABLES) && has(spec::SMMUEN) {
                    self.wrong(bus, "CR1 says otherwise of tables while translation is on");
                }
                let queues = spec::CMDQEN | spec::EVENTQEN | spec::PRIQEN;
                if changes(spec::CR1_QUEUES) && has(queues) {
                    self.wrong(bus, "CR1 says otherwise of queues while one is on");
                }
                self.cr1 = low & 0xfff;
            }
            spec::CR2 => {
                if has(spec::SMMUEN) {
                    self.wrong(bus, "CR2 was written while translation is on");
                }
                self.cr2 = low & 0b111;
            }
            spec::GBPA => self.gate_written(bus, low),
            spec::IRQ_CTRL => {
                if self.interrupts.0 != self.interrupts.1 {
                    self.wrong(
                        bus,
                        "IRQ_CTRL was written before the unit had taken the last value",
                    );
                }
                self.interrupts.0 = low & spec::IRQ_KNOWN;
                self.interrupts_due = self.late(bus, low).due;
            }
            spec::GERRORN => {
                let active = self.errors ^ self.errors_seen;
                if (low ^ self.errors_seen) & !active != 0 {
                    self.wrong(bus, "GERRORN acknowledges errors that are not active");
                }
                self.errors_seen = low & spec::GERROR_KNOWN;
                if active & !(self.errors ^ self.errors_seen) & spec::GERROR_CMDQ != 0 {
                    self.queue.error = 0;
                }
            }
            spec::STRTAB_BASE | spec::STRTAB_BASE_CFG => {
                if has(spec::SMMUEN) {
                    self.wrong(bus, "the stream table was changed while translation is on");
                }
                if offset == spec::STRTAB_BASE {
                    self.table_written.0 = value;
                } else {
                    self.table_written.1 = low;
                }
                self.flushed = (false, false);
            }
            spec::CMDQ_BASE | spec::CMDQ_CONS if has(spec::CMDQEN) => {
                self.wrong(bus, "the command queue was given anew while it is on");
            }
            spec::CMDQ_BASE => self.command_queue_given(bus, value),
            spec::CMDQ_CONS => {
                self.queue.cons = spec::position(low, self.queue.log2);
                self.queue.error = 0;
            }
            spec::CMDQ_PROD => self.commands_given(bus, low),
            spec::EVENTQ_BASE | spec::EVENTQ_PROD if has(spec::EVENTQEN) => {
                self.wrong(bus, "the event queue was given anew while it is on");
            }
            spec::EVENTQ_BASE => self.event_queue_given(bus, value),
            spec::EVENTQ_PROD => self.events.prod = low,
            spec::EVENTQ_CONS => self.events_taken(bus, low),
            spec::GERROR_IRQ_CFG0..=spec::GERROR_IRQ_CFG2
            | spec::EVENTQ_IRQ_CFG0..=spec::EVENTQ_IRQ_CFG2
            | spec::PRIQ_IRQ_CFG0..=spec::PRIQ_IRQ_CFG2 => {
                self.message_written(bus, offset, value);
            }
            spec::PRIQ_BASE | spec::PRIQ_PROD | spec::PRIQ_CONS if self.identity.pri => {
                self.page_register_written(bus, offset, value);
            }
            spec::PRIQ_BASE | spec::PRIQ_PROD | spec::PRIQ_CONS => {
                self.wrong(bus, "there is no PRI queue (IDR0.PRI)");
            }
            _ => self.wrong(bus, &format!("register {offset:#x} is not for writing")),
        }
    }

    fn late(&self, bus: &mut Bus, value: u32) -> Late {
        let slow = if bus.temper.slow {
            bus.rng.below(5000)
        } else {
            0
        };
        Late {
            value,
            due: bus.nanos + slow,
        }
    }

    fn command_queue_given(&mut self, bus: &mut Bus, value: u64) {
        let bits = self.identity.address_bits();
        let entry = super::commands::COMMAND_BYTES;
        match spec::queue_base(value, entry, self.identity.commands, bits) {
            Ok(queue) => {
                (self.queue.base, self.queue.log2) = (queue.base, queue.log2);
                self.queue.given = true;
            }
            Err(why) => self.wrong(bus, &format!("CMDQ_BASE {value:#x}: {why}")),
        }
    }

    fn event_queue_given(&mut self, bus: &mut Bus, value: u64) {
        let bits = self.identity.address_bits();
        let entry = super::spec::event::RECORD_BYTES;
        match spec::queue_base(value, entry, self.identity.events, bits) {
            Ok(queue) => {
                (self.events.base, self.events.log2) = (queue.base, queue.log2);
                self.events.given = true;
            }
            Err(why) => self.wrong(bus, &format!("EVENTQ_BASE {value:#x}: {why}")),
        }
    }

    fn gate_written(&mut self, bus: &mut Bus, value: u32) {
        if self.gate_late.is_some() {
            self.wrong(
                bus,
                "GBPA was written before the unit had taken the last value",
            );
        }
        if value & spec::GBPA_UPDATE == 0 {
            self.wrong(
                bus,
                "GBPA was written without UPDATE, which changes nothing",
            );
            return;
        }
        self.gate_late = Some(self.late(bus, value & !spec::GBPA_UPDATE));
    }

    fn control_written(&mut self, bus: &mut Bus, value: u32) {
        if self.wanted != self.control {
            let what = format!(
                "unit {}: CR0 was written with {value:#x} before the unit had acknowledged {:#x}",
                self.index, self.wanted
            );
            bus.broken(Rule::Command, what);
        }
        if value & !spec::CR0_KNOWN != 0 {
            self.wrong(bus, &format!("CR0 {value:#x} has reserved bits"));
        }
        let mut lacks = if self.identity.ats { 0 } else { spec::ATSCHK };
        if !self.identity.pri {
            lacks |= spec::PRIQEN;
        }
        if value & lacks != 0 {
            self.wrong(
                bus,
                &format!("CR0 {value:#x} turns on what the unit has not"),
            );
        }
        let turns_off = self.control & !value & spec::SMMUEN != 0;
        // Where firmware's devices run on, what it left open or translating stays so until the unit translates anew.
        let runs_on = bus.keeps_behind(self.index) && !turns_off;
        if !self.gate_is_closed() && !runs_on {
            let what = format!(
                "unit {}: CR0 was written with {value:#x} while requests pass it when it is off (GBPA.ABORT is clear); where \
                 firmware's devices are to run on behind it, `Rig::keep_running` says so (examples/keeping.rs)",
                self.index
            );
            bus.broken(Rule::OpenGate, what);
        }
        let turns_on = value & !self.control;
        if turns_on & spec::CMDQEN != 0 && !self.queue.given {
            self.wrong(
                bus,
                "the command queue was turned on before it was given a place",
            );
        }
        if turns_on & spec::EVENTQEN != 0 && !self.events.given {
            self.wrong(
                bus,
                "the event queue was turned on before it was given a place",
            );
        }
        if turns_on & spec::PRIQEN != 0 && !self.pages.is_given() {
            self.wrong(
                bus,
                "the page request queue was turned on before it was given a place",
            );
        }
        let cached = spec::snoops(self.cr1, spec::CR1_QUEUES);
        if turns_on & (spec::CMDQEN | spec::EVENTQEN | spec::PRIQEN) != 0
            && self.identity.coherent
            && !cached
        {
            self.wrong(
                bus,
                "a queue was turned on whose attributes (CR1) keep the unit from the CPU's caches",
            );
        }
        if turns_on & spec::SMMUEN != 0 {
            self.judge_enable(bus);
        }
        self.wanted = value & spec::CR0_KNOWN;
        self.control_due = self.late(bus, value).due;
        if (self.wanted ^ self.control) & spec::SMMUEN != 0 && std::mem::take(&mut self.ills.switch)
        {
            self.control_due += LATE_SWITCH;
        }
    }

    fn judge_enable(&self, bus: &mut Bus) {
        let index = self.index;
        if let Err(why) = self.table_said() {
            self.wrong(
                bus,
                &format!("translation was turned on with a stream table where {why}"),
            );
        }
        if self.flushed != (true, true) {
            let what = format!(
                "unit {index}: translation was turned on, and configuration and translations of before were not both \
                 forgotten, with a sync, since the stream table was set (forgotten: {:?})",
                self.flushed
            );
            bus.broken(Rule::EnabledEarly, what);
        }
        if self.identity.is_mmu_700() && self.cr2 & spec::CR2_PTM == 0 {
            self.wrong(
                bus,
                "translation was turned on while an MMU-700 listens to CPUs' broadcasts (erratum 2812531; CR2.PTM is clear)",
            );
        }
        if self.identity.coherent && !spec::snoops(self.cr1, spec::CR1_TABLES) {
            self.wrong(
                bus,
                "translation was turned on with a stream table whose attributes (CR1) keep the unit from the CPU's \
                 caches",
            );
        }
    }

    fn table_said(&self) -> Result<spec::StreamTable, String> {
        spec::stream_table(
            self.table_written.0,
            self.table_written.1,
            self.identity.two_level,
            self.identity.stream_bits,
            self.identity.address_bits(),
        )
    }

    /// Takes what was written, if its time has come.
    pub(super) fn work_registers(&mut self, bus: &mut Bus) {
        if let Some(late) = self.gate_late
            && late.due <= bus.nanos
        {
            (self.gate, self.gate_late) = (late.value, None);
        }
        if self.interrupts.0 != self.interrupts.1 && self.interrupts_due <= bus.nanos {
            self.interrupts.1 = self.interrupts.0;
        }
        if self.wanted == self.control || self.control_due > bus.nanos {
            return;
        }
        let (before, now) = (self.control, self.wanted);
        if before & !now & spec::CMDQEN != 0 {
            self.queue_off(bus);
        }
        self.control = now;
        if now & !before & spec::SMMUEN != 0 {
            self.is_firmwares = false;
            if let Some(since) = self.gap_since.take() {
                bus.gap.units += 1;
                bus.gap.nanos = bus.gap.nanos.max(bus.nanos - since);
            }
            self.table = self.table_said().ok();
            self.table_taken(bus);
        }
        if before & !now & spec::SMMUEN != 0 {
            self.stalls.end_all();
            let firmwares = std::mem::take(&mut self.is_firmwares);
            self.gap_since = (firmwares && bus.keeps_behind(self.index)).then_some(bus.nanos);
        }
        bus.note_unit(self.index, || format!("takes CR0 {now:#x}"));
    }

    /// What the unit sees of memory.
    pub(super) const fn memory_view(coherent: bool) -> View {
        View {
            coherent,
            buffer: None,
        }
    }
}
