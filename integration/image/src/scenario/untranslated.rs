//! `untranslated`: a step of development. The drive works with no IOMMU in its way, before any is brought up.
//!
//! It shows that a new board boots, enumerates and drives; of isolation it shows that there is none. It runs only when it
//! is named.

use alloc::format;
use alloc::vec;
use core::time::Duration;

use hv_core::platform::{FrameSource, OutOfFrames};
use hv_core::{FrameRun, Hypervisor, Iova, OutOfBounds, PageCount, PageSize};
use sha2::{Digest, Sha256};

use super::drive::{Block, drive_function, drive_registers};
use super::{OrFail, Shown};
use crate::machine::Machine;
use crate::nvme::{self, Controller, DmaBuffer, DmaMemory, Lba, Parts};
use crate::platform::BareMetal;
use crate::report::{self, Event};

/// The scenario's name.
const NAME: &str = "untranslated";
/// How many bytes of the drive are read.
const READ: u64 = 1 << 20;
/// How long the drive may take for one command.
pub(super) const COMMAND_LIMIT: Duration = Duration::from_secs(2);

/// Frames that the device addresses as memory does.
pub(super) struct Frames {
    run: FrameRun<Hypervisor>,
    platform: &'static BareMetal,
}

impl Frames {
    fn out_of_bounds(&self, offset: usize, bytes: usize) -> OutOfBounds {
        OutOfBounds {
            offset: offset as u64,
            bytes: bytes as u64,
            end: self.run.range().pages().bytes(),
        }
    }
}

impl DmaBuffer for Frames {
    fn iova(&self) -> Iova {
        Iova::new(self.run.range().start().as_u64())
    }
    fn bytes(&self) -> usize {
        self.run.range().pages().bytes() as usize
    }
    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), OutOfBounds> {
        let error = self.out_of_bounds(offset, out.len());
        let read = self.run.read(self.platform, offset as u64, out);
        read.map_err(|_| error)
    }
    fn write(&self, offset: usize, data: &[u8]) -> Result<(), OutOfBounds> {
        let error = self.out_of_bounds(offset, data.len());
        let written = self.run.write(self.platform, offset as u64, data);
        written.map_err(|_| error)
    }
    fn read_u32(&self, offset: usize) -> Result<u32, OutOfBounds> {
        let error = self.out_of_bounds(offset, size_of::<u32>());
        let word = self.run.read_u32(self.platform, offset as u64);
        word.map_err(|_| error)
    }
}

/// Gives out frames.
pub(super) struct Pool(pub(super) &'static BareMetal);

impl Pool {
    /// Takes back what a drive's queues were made of, which is stopped.
    pub(super) fn take_back(&self, parts: Parts<Block, Frames>) {
        let (_, queues) = parts.into_inner();
        for frames in queues {
            self.0.free_frames(frames.run);
        }
    }
}

impl DmaMemory for Pool {
    type Buffer = Frames;
    type Error = OutOfFrames;
    fn alloc(&mut self, bytes: usize) -> Result<Frames, OutOfFrames> {
        let pages = PageCount::for_bytes(bytes as u64).unwrap_or(PageCount::ONE);
        let run = self.0.alloc_frames(pages, PageSize::Size4K)?;
        Ok(Frames {
            run,
            platform: self.0,
        })
    }
}

/// Reads the start of the drive; what it holds is judged by xtask.
pub(super) fn run(machine: &Machine) -> Shown {
    let platform = machine.platform;
    let function = drive_function(machine)?;
    let registers = drive_registers(machine)?;
    nvme::disable(&registers, platform).or_fail("resetting the drive")?;
    function.set_bus_mastering(platform, true);
    let mut pool = Pool(platform);
    let parts = Parts::alloc(registers, &mut pool).or_fail("allocating the drive's queues")?;
    let mut drive =
        Controller::start(parts, platform, COMMAND_LIMIT).or_fail("starting the drive")?;
    let block = u64::from(drive.namespace().block_bytes);
    let piece = u64::from(drive.max_blocks()) * block;
    let buffer = pool.alloc(piece as usize).or_fail("allocating a buffer")?;
    let mut digest = Sha256::new();
    let mut bytes = vec![0; piece as usize];
    let mut at = 0;
    while at < READ {
        let step = piece.min(READ - at);
        let blocks = (step / block) as u32;
        drive
            .read(Lba(at / block), blocks, &buffer, 0)
            .or_fail("a command to the drive")?;
        let part = bytes.get_mut(..step as usize).unwrap_or_default();
        buffer.read(0, part).or_fail("reading a buffer")?;
        digest.update(&part);
        at += step;
    }
    let parts = drive.stop().or_fail("stopping the drive")?;
    function.set_bus_mastering(platform, false);
    platform.free_frames(buffer.run);
    pool.take_back(parts);
    report::emit(&Event::Digest {
        scenario: NAME,
        offset: 0,
        bytes: READ,
        sha256: &digest.finalize().into(),
    });
    Ok(format!(
        "{} KiB read with no IOMMU in the way: no isolation was shown",
        READ >> 10
    ))
}
