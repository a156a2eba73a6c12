//! Registers of a platform that has none: for backends that are no hardware.

use hv_core::PhysRange;
use hv_core::platform::{Mmio, RegistersError};

/// The block of registers that such a platform does not have.
#[derive(Debug)]
pub enum NoRegisters {}

impl NoRegisters {
    /// What such a platform says when it is asked for some.
    ///
    /// # Errors
    /// Always.
    pub fn refuse(range: PhysRange) -> Result<Self, RegistersError> {
        let reason = "this platform has no registers";
        Err(RegistersError { range, reason })
    }
}

impl Mmio for NoRegisters {
    fn read32(&self, _offset: u32) -> u32 {
        match *self {}
    }
    fn write32(&self, _offset: u32, _value: u32) {
        match *self {}
    }
    fn read64(&self, _offset: u32) -> u64 {
        match *self {}
    }
    fn write64(&self, _offset: u32, _value: u64) {
        match *self {}
    }
}
