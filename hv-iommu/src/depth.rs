//! How deep a domain's tables are, and how wide their root: what serves a request best on a unit.

use hv_core::Iova;

use crate::backend::{Snoop, UnitCaps};
use crate::domain::{DomainCaps, DomainConfig, DomainError};
use crate::format::{Format, Level, RootTables};

/// The shallowest table that serves the request on this unit, and its limits.
pub(crate) fn shallowest<F: Format>(
    unit: &UnitCaps,
    config: DomainConfig,
) -> Result<DomainCaps, DomainError> {
    let usable = |(level, tables): (Level, RootTables)| {
        let bits = F::PAGE_SHIFT + F::INDEX_BITS * u32::from(level.number());
        let bits = bits + u32::from(tables.log2());
        // At most 64 of those count.
        bits.min(unit.iova_bits.into()) as u8
    };
    // Rather more tables side by side than one more step in each walk.
    let most = unit.root_tables.min(F::MOST_ROOT_TABLES).log2();
    let side_by_side =
        |level| (0..=most).filter_map(move |log2| Some((level, RootTables::new(log2)?)));
    let mut roots = unit.levels.iter().flat_map(side_by_side);
    let Some((level, root_tables)) = roots.find(|root| usable(*root) >= config.address_bits) else {
        let roots = unit.levels.iter().flat_map(side_by_side);
        let found = roots.map(usable).max().unwrap_or(0);
        return Err(DomainError::TooManyBits {
            needed: config.address_bits,
            found,
        });
    };
    let last = match 1_u64.checked_shl(usable((level, root_tables)).into()) {
        Some(end) => end - 1,
        None => u64::MAX,
    };
    Ok(DomainCaps {
        level,
        root_tables,
        second_stage: unit.second_stage,
        largest_page: unit.largest_page.min(config.largest_page),
        coherent: unit.coherent,
        write_only: unit.write_only,
        phys_bits: unit.phys_bits,
        last: Iova::new(last),
        live_resize: unit.live_resize,
        nested: false,
        dirty: false,
        snoop: Snoop::AsAsked,
    })
}
