//! The bits of VT-d as hardware sees them: registers, tables, descriptors, faults, firmware's description.
//!
//! Written from the manual and from what other implementations do, and apart from the driver's own bits:
//! what both have in common is the hardware. Where sources leave something open, the stricter reading
//! stands here.

use crate::bits::{above, at, bits, field};

pub(crate) mod capability;
pub(crate) mod descriptor;
pub(crate) mod dmar;
pub(crate) mod entries;
pub(crate) mod fault;
pub(crate) mod registers;
