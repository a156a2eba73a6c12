//! The DMA API beyond coherent buffers: who sees which bytes, when they come back, and that nothing is lost.

mod bounce;
mod deferred;
mod masks;
mod scatter;
mod streams;
mod syncs;
mod trust;

use hv_core::platform::PhysMemory;
use hv_core::{FrameRun, Hypervisor, Iova, PageCount};
use hv_iommu::{DmaConfig, DmaDevice};
use hv_tests::fake::{DmaFault, Fake, Logged};

use super::machine::{Driver, Machine, NIC};

/// A device that is trusted with what shares a page with its buffers. The groups in its domain are.
fn trusting(driver: &Driver) -> DmaDevice<Fake> {
    let device = driver.domain.trusting_dma_device(DmaConfig::default());
    device.unwrap()
}

/// How many flushes unit 0 was asked for since the last look.
fn flushes(machine: &Machine) -> usize {
    let log = machine.fake.take_log(0);
    let flush = |call: &&Logged| matches!(call, Logged::Flush(_));
    log.iter().filter(flush).count()
}

/// A run of which byte `n` is `seed + n / 8`, so that each word has a value of its own.
fn filled(machine: &Machine, pages: u64, seed: u64) -> FrameRun<Hypervisor> {
    let run = machine.host().frames(pages);
    for word in 0..run.pages().bytes() / 8 {
        let value = word.wrapping_add(seed).to_le_bytes();
        run.write(machine.host(), word * 8, &value).unwrap();
    }
    run
}

/// The word at this byte of a run, as the CPU sees it.
fn word(memory: &impl PhysMemory, run: &FrameRun<Hypervisor>, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    run.read(memory, offset, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

/// What the device reads this many bytes behind an address.
fn reads(machine: &Machine, at: Iova, offset: u64) -> Result<u64, DmaFault> {
    let at = at.checked_add(offset).unwrap();
    machine.fake.dma_read(NIC, at)
}

/// What becomes of a device's write there.
fn writes(machine: &Machine, at: Iova, offset: u64, value: u64) -> Result<(), DmaFault> {
    let at = at.checked_add(offset).unwrap();
    machine.fake.dma_write(NIC, at, value)
}

/// A driver whose domain has this many bounce pages.
fn bouncing(machine: &mut Machine, pages: u64) -> Driver {
    let driver = machine.driver(NIC);
    let pages = PageCount::new(pages).unwrap();
    driver.domain.fill_bounce_pool(pages).unwrap();
    driver
}
