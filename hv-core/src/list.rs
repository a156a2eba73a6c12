//! Lists on the control path: running out of memory is an answer, not the end.

use alloc::vec::Vec;

use crate::OutOfMemory;

/// Adds to a list, or says that there was no room: the list is as it was then, and `value` is dropped.
///
/// # Errors
/// [`OutOfMemory`].
pub fn push<T>(list: &mut Vec<T>, value: T) -> Result<(), OutOfMemory> {
    list.try_reserve(1).map_err(|_| OutOfMemory {
        bytes: size_of::<T>().saturating_mul(list.len().saturating_add(1)),
    })?;
    list.push(value);
    Ok(())
}
