//! How a run of the image ends, and the code by which whoever started it knows.

/// How a run of the image ended. The discriminant is the exit status of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    /// Every scenario passed.
    Passed = 33,
    /// At least one scenario failed.
    Failed = 35,
    /// A panic, a trap, or a platform that the image refuses.
    Refused = 37,
}
