//! A sync that asks for an event: whether the unit sends one.

use super::Unit;
use crate::bus::Bus;
use crate::rule::Rule;

impl Unit {
    /// A sync is complete that asked for an event. One without IDR0.SEV sends none and takes the sync all the same; that the
    /// driver asked says that it waits for nothing.
    pub(super) fn tell_waiters(&self, bus: &mut Bus) {
        if self.identity.sends_events() {
            bus.send_event(self.index);
            return;
        }
        let what = format!(
            "unit {}: a sync asks for an event, and the unit sends none that can be relied on (IDR0.SEV {}, IIDR {:#x})",
            self.index, self.identity.sev, self.identity.part
        );
        bus.broken(Rule::Queue, what);
    }
}
