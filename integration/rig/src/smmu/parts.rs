//! Parts with errata: what any other unit may be told, and what must not be said to these.

use super::Unit;
use super::commands::COMMAND_BYTES;
use super::spec::command::{self, Command, Signal};
use super::spec::registers;
use crate::bus::Bus;
use crate::rule::Rule;

impl Unit {
    /// The register at an offset, by the name of its place on other units.
    pub(super) const fn register_at(&self, offset: u32) -> u32 {
        match self.identity.is_cn99xx() {
            true => registers::in_one_page(offset),
            false => offset,
        }
    }

    /// The driver has moved the tail. An MMU-700 is told of commands together with a sync behind them.
    pub(super) fn judge_tail(&mut self, bus: &mut Bus) {
        let is_on = self.control & registers::CMDQEN != 0;
        if !is_on || !self.identity.is_mmu_700() || self.queue.prod == self.queue.cons {
            return;
        }
        let last = self.queue.prod.wrapping_sub(1) & ((1 << self.queue.log2) - 1);
        let low = bus.fetch(self.queue_view, self.queue.base + last * COMMAND_BYTES);
        if !command::is_sync(low) {
            let what = format!(
                "unit {}: CMDQ_PROD was moved behind command {low:#x}, which is no sync, on an MMU-700 (erratum 2812531)",
                self.index
            );
            bus.broken(Rule::Queue, what);
        }
    }

    /// A command was read, which is `command` if it is one.
    pub(super) fn judge_command(&mut self, bus: &mut Bus, low: u64, command: Option<&Command>) {
        let mut wrong = |what: &str| {
            let what = format!("unit {}: command {low:#x} {what}", self.index);
            bus.broken(Rule::Queue, what);
        };
        if self.identity.is_hi161x() {
            match command {
                Some(Command::Prefetch) => wrong("is a prefetch, on a Hi161x"),
                Some(Command::Sync(Signal::Message { at, .. })) if *at != 0 => {
                    wrong("is a sync that writes, on a Hi161x: it writes more than it says");
                }
                _ => {}
            }
        }
        let kind = match command {
            Some(Command::Sync(_)) | None => None,
            Some(_) => Some(command::kind(low)),
        };
        let before = std::mem::replace(&mut self.queue.since_sync, kind);
        if let (Some(before), Some(now)) = (before, kind)
            && before != now
            && self.identity.is_mmu_700()
        {
            wrong(&format!(
                "follows one of kind {before:#x} without a sync in between, on an MMU-700 (erratum 2812531)"
            ));
        }
    }
}
