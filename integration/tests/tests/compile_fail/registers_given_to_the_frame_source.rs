//! Registers of a device are no memory: no frame source takes them, so none hands them out.
//! Instead: keep the `MmioRun` until the function's BAR is given up.
//! Shows: bc17.
use hv_core::MmioRun;
use hv_core::platform::FrameSource;
use hv_tests::host::Host;

fn mistake(host: &Host, registers: MmioRun) {
    host.free_frames(registers);
}

fn main() {}
