//! The registers of a VT-d unit: what reads give, and the rules for writes.

use super::Unit;
use super::spec::registers as spec;
use super::spec::{capability, fault};
use crate::bus::Bus;
use crate::rule::Rule;

/// The version that the rig's units have: 1.0, major in bits 7:4.
const VERSION: u64 = 0x10;

/// IECTL after reset: bit 31, interrupt masked (VT-d manual, Invalidation Event Control Register).
const EVENT_MASKED: u64 = 1 << 31;

impl Unit {
    /// The offset of the fault records.
    fn records(&self) -> u32 {
        self.cap.fro.into()
    }

    /// The fault record at an offset, and the offset inside it.
    fn record_at(&self, offset: u32) -> Option<(usize, u32)> {
        let inside = offset.checked_sub(self.records())?;
        let index = (inside / fault::RECORD_BYTES) as usize;
        (index < usize::from(self.cap.nfr)).then_some((index, inside % fault::RECORD_BYTES))
    }

    pub(super) fn fault_status(&self) -> u32 {
        let mut status = self.status_of_faults;
        if let Some(first) = self.faults.first() {
            status |= spec::FSTS_PPF | (first as u32) << spec::FSTS_FRI_SHIFT;
        }
        status
    }

    /// The driver reads.
    pub(super) fn register_read(&mut self, bus: &mut Bus, offset: u32, bits: u32) -> u64 {
        if self.health.gone {
            return u64::MAX >> (64 - bits);
        }
        if let Some((index, inside)) = self.record_at(offset) {
            let half = self.faults.half(index, inside >= 8);
            return half >> (inside % 8 * 8) & (u64::MAX >> (64 - bits));
        }
        self.judge_width(bus, offset, bits);
        match offset {
            spec::VER => VERSION,
            spec::CAP => capability::Cap::encode(&self.cap),
            spec::ECAP => capability::Ecap::encode(&self.ecap),
            spec::GSTS => self.status.into(),
            spec::RTADDR => self.root_written,
            spec::FSTS => self.fault_status().into(),
            spec::IQH => self.queue.head * super::queue::DESCRIPTOR_BYTES,
            spec::IQT => self.queue.tail * super::queue::DESCRIPTOR_BYTES,
            spec::IQERCD => self.queue_error.into(),
            spec::PMEN => {
                if self.protection {
                    (spec::PMEN_EPM | spec::PMEN_PRS).into()
                } else {
                    0
                }
            }
            spec::GCMD => {
                let what = format!(
                    "unit {}: the command register, which cannot be read, was read",
                    self.index
                );
                bus.broken(Rule::Register, what);
                // Undefined: the worst is what looks like an answer.
                u64::from(u32::MAX)
            }
            spec::FECTL | spec::FEDATA | spec::FEADDR | spec::FEUADDR => {
                self.event.read(offset).into()
            }
            _ => {
                let reset = if offset == spec::IECTL {
                    EVENT_MASKED
                } else {
                    0
                };
                self.plain.get(&offset).copied().unwrap_or(reset)
            }
        }
    }

    fn judge_width(&self, bus: &mut Bus, offset: u32, bits: u32) {
        if let Some(width) = spec::width(offset)
            && width != bits
        {
            let what = format!(
                "unit {}: register {offset:#x} has {width} bits and was reached with {bits}",
                self.index
            );
            bus.broken(Rule::Register, what);
        }
    }

    /// The driver writes.
    pub(super) fn register_written(&mut self, bus: &mut Bus, offset: u32, bits: u32, value: u64) {
        if self.health.gone {
            return;
        }
        let index = self.index;
        if let Some((record, inside)) = self.record_at(offset) {
            let shifted = value << (inside % 8 * 8);
            if inside >= 8 && shifted & fault::RECORD_F != 0 {
                self.faults.clear(record);
                self.dealt_with();
            }
            return;
        }
        self.judge_width(bus, offset, bits);
        match offset {
            spec::GCMD => self.commanded(bus, value as u32),
            spec::RTADDR => self.root_written = value,
            spec::FSTS => self.clear_faults(bus, value as u32),
            spec::FECTL | spec::FEDATA | spec::FEADDR | spec::FEUADDR => {
                self.event_written(bus, offset, value as u32);
            }
            spec::IQT => self.tail_moved(bus, value),
            spec::IQA => self.queue_given(bus, value),
            spec::PMEN => {
                if self.cap.plmr || self.cap.phmr {
                    if value as u32 & spec::PMEN_EPM == 0 {
                        let slow = if bus.temper.slow {
                            bus.rng.below(100_000)
                        } else {
                            0
                        };
                        self.protection_ends = Some(bus.nanos + slow);
                    } else {
                        (self.protection, self.protection_ends) = (true, None);
                    }
                }
            }
            spec::CCMD
            | spec::IQH
            | spec::VER
            | spec::CAP
            | spec::ECAP
            | spec::GSTS
            | spec::IQERCD => {
                let what = format!(
                    "unit {index}: register {offset:#x} was written, which is read-only, or only for use without the \
                     queue"
                );
                bus.broken(Rule::Register, what);
            }
            spec::IRTA => {
                let what = format!("unit {index} has no interrupt remapping, and IRTA was written");
                bus.broken(Rule::Register, what);
            }
            _ if spec::width(offset).is_some() => {
                self.plain.insert(offset, value);
            }
            _ => {
                let what = format!("unit {index}: there is no register at {offset:#x}");
                bus.broken(Rule::Register, what);
            }
        }
    }

    fn clear_faults(&mut self, bus: &mut Bus, value: u32) {
        let cleared = value & self.status_of_faults & spec::FSTS_CLEARABLE;
        if cleared & spec::FSTS_IQE != 0 && self.queue.on {
            (self.queue.stopped, self.queue.awaits_tail) = (false, true);
        }
        self.status_of_faults &= !cleared;
        self.dealt_with();
        if value & !spec::FSTS_CLEARABLE != 0 {
            let what = format!(
                "unit {}: FSTS was written with {value:#x}, reserved bits set",
                self.index
            );
            bus.broken(Rule::Register, what);
        }
    }

    fn queue_given(&mut self, bus: &mut Bus, value: u64) {
        if self.queue.on || self.command.is_some() {
            let what = format!(
                "unit {}: the queue's address was written while the queue is on or a command is under way",
                self.index
            );
            bus.broken(Rule::Register, what);
        }
        match spec::queue_address(value, self.limits.haw) {
            Ok(queue) => {
                self.queue.base = queue.base;
                self.queue.entries = queue.entries;
                self.queue.head = 0;
                if queue.wide {
                    let what = format!(
                        "unit {}: 256-bit descriptors without scalable mode",
                        self.index
                    );
                    bus.broken(Rule::Register, what);
                }
            }
            Err(why) => {
                let what = format!("unit {}: queue address {value:#x}: {why}", self.index);
                bus.broken(Rule::Register, what);
            }
        }
    }
}
