//! The command register of a VT-d unit: one field at a time, done late.

use super::Unit;
use super::spec::registers::{self, LEVELS, ONE_SHOTS};
use crate::bus::Bus;
use crate::rule::Rule;

/// A command that was given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command {
    /// The level bits that are to be in force.
    levels: u32,
    /// The one-shot that is to be done, if it is one.
    one_shot: u32,
    due: u64,
}

impl Unit {
    /// The driver wrote the command register.
    pub(crate) fn commanded(&mut self, bus: &mut Bus, value: u32) {
        let index = self.index;
        if self.command.is_some() {
            let what =
                format!("unit {index}: command {value:#x} was given before the last was done");
            bus.broken(Rule::Command, what);
        }
        let levels = self.status & LEVELS;
        let changed = (value & LEVELS) ^ levels;
        let one_shot = value & ONE_SHOTS;
        let fields = changed.count_ones() + one_shot.count_ones();
        if fields > 1 {
            let what = format!(
                "unit {index}: command {value:#x} changes {fields} fields, with levels {levels:#x} in force"
            );
            bus.broken(Rule::Command, what);
        }
        if value & !(LEVELS | ONE_SHOTS) != 0 {
            let what = format!("unit {index}: command {value:#x} has reserved bits");
            bus.broken(Rule::Register, what);
        }
        if fields == 0 {
            // What is in force is asked for once more.
            return;
        }
        let turns_on = |bit: u32| changed & bit != 0 && value & bit != 0;
        if turns_on(registers::TE) {
            self.judge_enable(bus);
        }
        if turns_on(registers::QIE) && self.queue.entries == 0 {
            let what =
                format!("unit {index}: the queue was turned on before it was given an address");
            bus.broken(Rule::Register, what);
        }
        if one_shot & registers::SRTP != 0 {
            // The old answer is gone before the new one comes.
            self.status &= !registers::SRTP;
            if let Err(why) = registers::root_table(self.root_written, self.limits.haw) {
                let what = format!("unit {index}: root table {:#x}: {why}", self.root_written);
                bus.broken(Rule::Register, what);
            }
        }
        if one_shot & registers::WBF != 0 {
            self.status |= registers::WBF;
        }
        let slow = bus.temper.slow;
        let due = bus.nanos + if slow { bus.rng.below(2000) } else { 0 };
        self.command = Some(Command {
            levels: value & LEVELS,
            one_shot,
            due,
        });
    }

    fn judge_enable(&mut self, bus: &mut Bus) {
        let index = self.index;
        if self.root.is_none() {
            let what = format!("unit {index}: translation was turned on without a root table");
            bus.broken(Rule::EnabledEarly, what);
        } else if self.flushed != (true, true) {
            let what = format!(
                "unit {index}: translation was turned on, and context cache and IOTLB were not both flushed after \
                 the root table was set, in this order (flushed: {:?})",
                self.flushed
            );
            bus.broken(Rule::EnabledEarly, what);
        }
    }

    /// Does the command if its time has come.
    pub(crate) fn work_command(&mut self, bus: &mut Bus) {
        let Some(command) = self.command.filter(|command| command.due <= bus.nanos) else {
            return;
        };
        let turns_off = self.status & !command.levels;
        if turns_off & registers::QIE != 0 && !self.queue.may_go_off() {
            // What was fetched is done first; after an error only what was done is completed.
            return;
        }
        self.command = None;
        let turns_on = command.levels & !self.status;
        self.status = self.status & !LEVELS | command.levels;
        if turns_off & registers::QIE != 0 {
            self.queue.on = false;
            self.queue.restart();
        }
        if turns_on & registers::QIE != 0 {
            self.queue.on = true;
            self.queue.restart();
        }
        if command.one_shot & registers::SRTP != 0 {
            self.root = registers::root_table(self.root_written, self.limits.haw).ok();
            self.status |= registers::SRTP;
            self.root_taken(bus);
            self.flushed = (self.cap.esrtps, self.cap.esrtps);
            if self.cap.esrtps {
                self.caches.forget_all();
            }
        }
        if command.one_shot & registers::WBF != 0 {
            self.status &= !registers::WBF;
            bus.memory.flush_write_buffer(self.index);
        }
        bus.note_unit(self.index, || {
            format!(
                "command done: levels {:#x}, once {:#x}",
                command.levels, command.one_shot
            )
        });
    }
}
