//! Machines with SMMUs whose tables have pages of 16 or 64 KiB.

mod of_16k;
mod of_64k;

/// The machine, with second stages and all granules on each of its units.
pub(crate) fn suited(mut machine: hv_rig::Machine) -> hv_rig::Machine {
    machine.set_second_stages();
    machine.set_large_granules();
    machine
}
