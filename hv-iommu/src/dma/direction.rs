//! Which way a streaming mapping moves data, as types.

use hv_core::Perms;

mod sealed {
    //! Keeps directions from being added elsewhere.
    pub trait Sealed {}
}

/// Which way data moves: [`ToDevice`], [`FromDevice`] or [`Bidirectional`]. Closed.
pub trait Direction: sealed::Sealed + Copy + Send + Sync + 'static {
    /// What the device may do with the buffer. A unit without write-only mappings lets it read as well.
    const PERMS: Perms;
    /// The direction's name in messages.
    const NAME: &'static str;
}

/// The device reads what the CPU wrote.
#[derive(Clone, Copy, Debug)]
pub struct ToDevice;

/// The device writes; the CPU reads afterwards.
#[derive(Clone, Copy, Debug)]
pub struct FromDevice;

/// The device reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Bidirectional;

impl sealed::Sealed for ToDevice {}
impl sealed::Sealed for FromDevice {}
impl sealed::Sealed for Bidirectional {}

impl Direction for ToDevice {
    const PERMS: Perms = Perms::Read;
    const NAME: &'static str = "to the device";
}

impl Direction for FromDevice {
    const PERMS: Perms = Perms::Write;
    const NAME: &'static str = "from the device";
}

impl Direction for Bidirectional {
    const PERMS: Perms = Perms::ReadWrite;
    const NAME: &'static str = "both ways";
}

/// Directions in which the CPU writes what the device reads: all but [`FromDevice`]. Exists for its message.
#[diagnostic::on_unimplemented(
    message = "the CPU writes into buffers that the device reads, this one goes `{Self}`",
    label = "the device writes this buffer, and what the CPU wrote here would be lost or torn",
    note = "map it `Bidirectional` if both write; or unmap it, and write into the run that comes back"
)]
pub trait CpuWrites: Direction {}
impl CpuWrites for ToDevice {}
impl CpuWrites for Bidirectional {}
