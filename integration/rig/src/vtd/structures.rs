//! Watches what the driver stores into root and context tables, store by store.

use std::collections::BTreeMap;

use super::Unit;
use super::spec::entries;
use crate::bus::Bus;
use crate::memory::{FRAME_BYTES, frame_of};
use crate::request::Sender;
use crate::rule::Rule;

/// Bytes of a root or context entry (VT-d manual, root entry and context entry: 128 bits each).
pub(crate) const ENTRY_BYTES: u64 = 16;
/// Entries of a root or context table.
const ENTRIES: u64 = FRAME_BYTES / ENTRY_BYTES;
/// How many former states of an entry a late walker may still read.
const FORMER: usize = 4;

/// A live context entry: what it binds to.
#[derive(Clone, Copy, Debug)]
struct Live {
    domain: u16,
    table: u64,
    levels: u8,
}

/// What is known of the tables.
#[derive(Default)]
pub(crate) struct Structures {
    /// Context tables by frame, with their bus.
    tables: BTreeMap<u64, u8>,
    /// Present entries by address.
    live: BTreeMap<u64, Live>,
    /// States in which an entry was present.
    whole: BTreeMap<u64, Vec<(u64, u64)>>,
}

impl Structures {
    /// Whether an entry was ever live with these two halves.
    pub(crate) fn was_whole(&self, entry: u64, low: u64, high: u64) -> bool {
        let states = self.whole.get(&entry);
        states.is_some_and(|states| states.contains(&(low, high)))
    }

    /// The roots of all tables that devices are bound to now.
    pub(crate) fn roots(&self) -> impl Iterator<Item = u64> {
        self.live.values().map(|live| live.table)
    }

    /// The domains that these senders are bound to now.
    pub(crate) fn domains_of(&self, senders: &[Sender]) -> impl Iterator<Item = u16> {
        self.live.iter().filter_map(move |(entry, live)| {
            let bus = self.tables.get(&frame_of(*entry))?;
            let devfn = *entry % FRAME_BYTES / ENTRY_BYTES;
            let requester = u16::from(*bus) << 8 | devfn as u16;
            let mine = |sender: &Sender| sender.requester == requester;
            senders.iter().any(mine).then_some(live.domain)
        })
    }

    /// How many context tables there are.
    pub(crate) fn count(&self) -> u64 {
        self.tables.len() as u64
    }

    /// Whether one of these frames is a context table.
    pub(crate) fn has_table(&self, first: u64, pages: u64) -> bool {
        self.tables.range(first..first + pages).next().is_some()
    }

    /// Whether a frame is a context table.
    pub(crate) fn is_table(&self, frame: u64) -> bool {
        self.tables.contains_key(&frame)
    }
}

impl Unit {
    /// The driver stored `new` over `old` at `at`, which lies in memory that the unit may walk.
    pub(super) fn structure_stored(&mut self, bus: &mut Bus, at: u64, old: u64, new: u64) {
        let frame = frame_of(at);
        if self.root.is_some_and(|root| frame_of(root) == frame) {
            self.root_stored(bus, at, old, new);
        } else if self.structures.is_table(frame) {
            bus.provoked = true;
            self.context_stored(bus, at, old, new);
        }
    }

    /// A root table came into force: what it names is live, and what the last one named is not.
    pub(crate) fn root_taken(&mut self, bus: &mut Bus) {
        self.structures = Structures::default();
        let Some(root) = self.root else { return };
        for index in 0..ENTRIES {
            let at = root + index * ENTRY_BYTES;
            let low = bus.memory.load(at);
            self.root_stored(bus, at, 0, low);
        }
    }

    fn root_stored(&mut self, bus: &mut Bus, at: u64, old: u64, new: u64) {
        if !at.is_multiple_of(ENTRY_BYTES) || old == new {
            return;
        }
        if old & 1 != 0 && new & 1 != 0 {
            let what =
                format!("root entry at {at:#x} changed from {old:#x} to {new:#x} while present");
            bus.broken(Rule::TornEntry, what);
        }
        let high = bus.memory.load(at + 8);
        match entries::root(new, high, &self.limits) {
            Err(why) => bus.broken(Rule::ReservedBits, format!("root entry at {at:#x}: {why}")),
            Ok(None) => {}
            Ok(Some(table)) => {
                let requester_bus = (at % FRAME_BYTES / ENTRY_BYTES) as u8;
                self.structures
                    .tables
                    .insert(frame_of(table), requester_bus);
                // What was written before the table was linked is live now.
                for index in 0..ENTRIES {
                    let entry = table + index * ENTRY_BYTES;
                    let (low, high) = (bus.memory.load(entry), bus.memory.load(entry + 8));
                    self.now_live(bus, entry, low, high);
                }
            }
        }
    }

    fn context_stored(&mut self, bus: &mut Bus, at: u64, old: u64, new: u64) {
        let entry = at / ENTRY_BYTES * ENTRY_BYTES;
        let (low, high) = (bus.memory.load(entry), bus.memory.load(entry + 8));
        let before = if at == entry { (old, high) } else { (low, old) };
        let (was, is) = (before.0 & 1 != 0, low & 1 != 0);
        // Whether faults are recorded decides nothing about where requests go: one bit, changed by one store.
        let only_telling = at == entry && old ^ new == entries::FAULT_PROCESSING_DISABLE;
        if was && is && old != new && !only_telling {
            let what = format!(
                "context entry at {entry:#x} changed from {:#x} {:#x} to {low:#x} {high:#x} while present",
                before.0, before.1
            );
            bus.broken(Rule::TornEntry, what);
        }
        if was && !is {
            self.structures.live.remove(&entry);
        }
        if is && (!was || old != new) {
            self.now_live(bus, entry, low, high);
        }
    }

    /// An entry is present from now on.
    fn now_live(&mut self, bus: &mut Bus, entry: u64, low: u64, high: u64) {
        let context = match entries::context(low, high, &self.limits) {
            Ok(None) => return,
            Ok(Some(context)) => context,
            Err(why) => {
                bus.broken(
                    Rule::BadContext,
                    format!("context entry at {entry:#x}: {why}"),
                );
                return;
            }
        };
        let states = self.structures.whole.entry(entry).or_default();
        if states.len() == FORMER {
            states.remove(0);
        }
        states.push((low, high));
        let live = Live {
            domain: context.domain,
            table: context.table,
            levels: context.levels,
        };
        let other = self.structures.live.iter().find(|(other, known)| {
            let same = known.table == live.table && known.levels == live.levels;
            **other != entry && known.domain == live.domain && !same
        });
        if let Some((other, known)) = other {
            let what = format!(
                "domain id {} stands for the table at {:#x} (entry {other:#x}) and for the one at {:#x} (entry \
                 {entry:#x}) at once",
                live.domain, known.table, live.table
            );
            bus.broken(Rule::DomainId, what);
        }
        if let Some(stale) = self.caches.other_root(live.domain, live.table) {
            let what = format!(
                "domain id {} is used for the table at {:#x} while the unit still holds entries under it from \
                 the one at {stale:#x}",
                live.domain, live.table
            );
            bus.broken(Rule::DomainId, what);
        }
        self.structures.live.insert(entry, live);
    }
}
