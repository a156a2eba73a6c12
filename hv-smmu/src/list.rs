//! Lists on the control path: running out of memory is an answer, not the end.

use alloc::vec::Vec;

use hv_core::OutOfMemory;

/// Adds to a list without giving up when memory is out.
pub(crate) fn push<T>(list: &mut Vec<T>, value: T) -> Result<(), OutOfMemory> {
    list.try_reserve(1).map_err(|_| OutOfMemory {
        bytes: size_of::<T>().saturating_mul(list.len().saturating_add(1)),
    })?;
    list.push(value);
    Ok(())
}
