//! `kernel-dma`: the hypervisor's own driver moves data through mappings of every kind.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use hv_core::{KernelPaging, PageCount, PageSize, Perms};
use hv_iommu::{CoherentBuffer, Domain, DomainConfig, Level};
use sha2::{Digest, Sha256};

use super::drive::{Driver, buffer};
use super::{Context, Failure, OrFail, Shown, ensure};
use crate::report::{self, Event};
use crate::subsystem::Backend;

/// Reads the start of the drive, half through a table of 39 bits and half through the widest that the
/// drive's unit walks, each half through 4 KiB and 2 MiB leaves by turns, and writes the pattern of the run.
///
/// The data itself is judged by xtask, which knows the disk's content.
pub(super) fn run(context: &mut Context<'_>) -> Shown {
    let options = context.machine.options.clone();
    let half = options.read_bytes / 2;
    let widest = context.widest()?.address_bits;
    let mut digest = Sha256::new();
    let mut depths = Vec::new();
    for (bits, from, to) in [(39, 0, half), (widest, half, options.read_bytes)] {
        let config = DomainConfig {
            address_bits: bits,
            ..DomainConfig::default()
        };
        let level = context.with_kernel_drive(config, |context, domain, driver| {
            let level = domain.geometry().root.number();
            context.note(format_args!(
                "bytes {from:#x} to {to:#x} through a {level}-level table of {bits} bits"
            ));
            read(domain, driver, from, to, &mut digest)?;
            Ok(level)
        })?;
        depths.push(format!("{level}"));
    }
    let (offset, bytes) = (options.write_offset, options.write_bytes);
    context.with_kernel_drive(DomainConfig::default(), |_, domain, driver| {
        write_pattern(domain, driver, offset, bytes, options.nonce)
    })?;
    report::emit(&Event::Digest {
        scenario: context.name,
        offset: 0,
        bytes: options.read_bytes,
        sha256: &digest.finalize().into(),
    });
    report::emit(&Event::Wrote {
        scenario: context.name,
        offset,
        bytes,
    });
    Ok(format!(
        "{} MiB read through 4K and 2M leaves of {}-level tables, {} KiB written",
        options.read_bytes >> 20,
        depths.join("- and "),
        bytes >> 10
    ))
}

/// Reads `from..to` of the drive into the digest, through small and large leaves by turns.
fn read(
    domain: &Domain<KernelPaging, Backend>,
    driver: &mut Driver<CoherentBuffer<Backend>>,
    from: u64,
    to: u64,
    digest: &mut Sha256,
) -> Result<(), Failure> {
    let large = PageCount::of(PageSize::Size2M);
    let buffers = [
        (
            PageSize::Size4K,
            buffer(domain, large, PageSize::Size4K, Perms::ReadWrite)?,
        ),
        (
            PageSize::Size2M,
            buffer(domain, large, PageSize::Size2M, Perms::ReadWrite)?,
        ),
    ];
    for (size, buffer) in &buffers {
        let leaf = domain.translate(buffer.iova()).map(|found| found.level);
        ensure!(
            leaf == Some(Level::of(*size)),
            "{} is mapped at {leaf:?}, expected {size}",
            buffer.iova()
        );
    }
    let mut bytes = vec![0; 64 << 10];
    let mut at = from;
    for (_, buffer) in buffers.iter().cycle() {
        let step = to.saturating_sub(at).min(buffer.pages().bytes()) as usize;
        if step == 0 {
            break;
        }
        driver.read(at, step, buffer)?;
        for offset in (0..step).step_by(bytes.len()) {
            let part = (step - offset).min(bytes.len());
            let part = bytes.get_mut(..part).unwrap_or(&mut []);
            buffer
                .read(offset as u64, part)
                .or_fail("reading a buffer")?;
            digest.update(&part);
        }
        at += step as u64;
    }
    for (_, buffer) in buffers {
        buffer.free().or_fail("freeing a buffer")?;
    }
    Ok(())
}

fn write_pattern(
    domain: &Domain<KernelPaging, Backend>,
    driver: &mut Driver<CoherentBuffer<Backend>>,
    offset: u64,
    bytes: u64,
    nonce: u64,
) -> Result<(), Failure> {
    let pages =
        PageCount::for_bytes(bytes).ok_or_else(|| Failure::new("there is nothing to write"))?;
    let buffer = buffer(domain, pages, PageSize::Size4K, Perms::Read)?;
    let words = (0..bytes / 8).map(|index| pattern(nonce, index));
    let data: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    buffer.write(0, &data).or_fail("filling a buffer")?;
    driver.write(offset, data.len(), &buffer)?;
    buffer.free().or_fail("freeing a buffer")
}

/// Word `index` of the pattern of a run: splitmix64 of nonce + index.
fn pattern(nonce: u64, index: u64) -> u64 {
    let mut word = nonce
        .wrapping_add(index)
        .wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
