//! Configuration space made up for tests.

use std::collections::BTreeMap;
use std::sync::Mutex;

use hv_core::PciAddress;
use hv_core::platform::PciConfig;

use super::{Class, spec};

type Space = BTreeMap<(PciAddress, u16), u32>;

/// Words by function and offset. What was not set reads as zero in a function that exists, as ones
/// elsewhere.
pub(super) struct FakeBus {
    words: Mutex<Space>,
    /// Bits of a word that writes change; all where nothing is said.
    writable: Mutex<Space>,
    last_write: Mutex<Option<(PciAddress, u16, u32)>>,
}

impl FakeBus {
    pub(super) fn new() -> Self {
        Self {
            words: Mutex::default(),
            writable: Mutex::default(),
            last_write: Mutex::default(),
        }
    }

    pub(super) fn set(&self, function: PciAddress, offset: u16, word: u32) {
        self.words.lock().unwrap().insert((function, offset), word);
    }

    pub(super) fn set_writable(&self, function: PciAddress, offset: u16, bits: u32) {
        self.writable
            .lock()
            .unwrap()
            .insert((function, offset), bits);
    }

    pub(super) fn add(&self, function: PciAddress, class: Class) {
        self.set(function, spec::ID, 0x5845_8086);
        let class = u32::from_le_bytes([1, class.interface, class.sub, class.base]);
        self.set(function, spec::CLASS_REVISION, class);
    }

    pub(super) fn add_bridge(&self, function: PciAddress, secondary: u8, subordinate: u8) {
        self.add(function, Class::new(6, 4, 0));
        self.set(function, spec::HEADER, u32::from(spec::LAYOUT_BRIDGE) << 16);
        let buses = u32::from_le_bytes([function.bus(), secondary, subordinate, 0]);
        self.set(function, spec::BRIDGE_BUSES, buses);
    }

    pub(super) fn last_write(&self) -> Option<(PciAddress, u16, u32)> {
        *self.last_write.lock().unwrap()
    }
}

impl PciConfig for FakeBus {
    fn config_read32(&self, function: PciAddress, offset: u16) -> u32 {
        let words = self.words.lock().unwrap();
        if !words.contains_key(&(function, spec::ID)) {
            return u32::MAX;
        }
        words.get(&(function, offset)).copied().unwrap_or(0)
    }

    fn config_write32(&self, function: PciAddress, offset: u16, value: u32) {
        *self.last_write.lock().unwrap() = Some((function, offset, value));
        let writable = self
            .writable
            .lock()
            .unwrap()
            .get(&(function, offset))
            .copied();
        let bits = writable.unwrap_or(u32::MAX);
        let mut words = self.words.lock().unwrap();
        let word = words.entry((function, offset)).or_insert(0);
        *word = *word & !bits | value & bits;
    }
}
