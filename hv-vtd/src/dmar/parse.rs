//! From bytes to a [`Dmar`]: every structure accounted for, or an error that names it.

use alloc::vec::Vec;

use hv_core::fault::Fault;
use hv_core::list::push;
use hv_core::{OutOfMemory, PageCount, PhysAddr, PhysRange, Segment};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::finding::{Defect, DmarError, Expected, Finding, Place, RecordKind};
use super::{
    Andd, Atsr, Dmar, Drhd, Header, PathStep, Rhsa, Rmrr, Satc, Scope, ScopeKind, Sidp, TableFlags,
};
use crate::spec::dmar as spec;

const PAGE: u64 = 4096;

/// Decodes the DMAR table in `bytes`, which are the table and nothing else.
///
/// # Errors
/// [`DmarError::Malformed`] names the structure, what was expected and what was found, wherever
/// going on could lose a unit or a reserved region. Other faults of the table are in
/// [`Dmar::warnings`]; a wrong checksum is one, because shipped firmware has them.
pub fn parse(bytes: &[u8]) -> Result<Dmar, DmarError> {
    let mut warnings = Vec::new();
    let (header, table) = header(bytes, &mut warnings)?;
    let mut dmar = Dmar {
        header,
        units: Vec::new(),
        regions: Vec::new(),
        ats_ports: Vec::new(),
        proximities: Vec::new(),
        devices: Vec::new(),
        caches: Vec::new(),
        properties: Vec::new(),
        warnings,
    };
    let mut offset = size_of::<spec::TableHeader>();
    while let Some(rest) = table.get(offset..).filter(|rest| !rest.is_empty()) {
        let record = Record::first(rest, offset)?;
        dmar.take(&record)?;
        offset = offset.saturating_add(record.length);
    }
    dmar.check()?;
    Ok(dmar)
}

fn finding(place: Place, what: Defect, expected: Expected, found: u64) -> Finding {
    Finding {
        place,
        what,
        expected,
        found,
    }
}

fn header<'a>(
    bytes: &'a [u8],
    warnings: &mut Vec<Finding>,
) -> Result<(Header, &'a [u8]), DmarError> {
    let at = Place::HEADER;
    let minimum = size_of::<spec::TableHeader>() as u64;
    let given = bytes.len() as u64;
    let (raw, _) = spec::TableHeader::read_from_prefix(bytes)
        .map_err(|_| finding(at, Defect::TableLength, Expected::AtLeast(minimum), given))?;
    if raw.signature != spec::SIGNATURE {
        let expected = Expected::Exactly(u32::from_be_bytes(spec::SIGNATURE).into());
        let found = u32::from_be_bytes(raw.signature).into();
        return Err(finding(at, Defect::Signature, expected, found).into());
    }
    let length = u64::from(raw.length.get());
    if length < minimum {
        let expected = Expected::AtLeast(minimum);
        return Err(finding(at, Defect::TableLength, expected, length).into());
    }
    let Some((table, behind)) = usize::try_from(length)
        .ok()
        .and_then(|length| bytes.split_at_checked(length))
    else {
        let expected = Expected::AtMost(given);
        return Err(finding(at, Defect::TableLength, expected, length).into());
    };
    if !behind.is_empty() {
        // Padding is harmless, but structures cut off by a damaged length must not go unseen.
        let what = finding(
            at,
            Defect::TrailingBytes,
            Expected::Exactly(0),
            behind.len() as u64,
        );
        if behind.iter().any(|&byte| byte != 0) {
            return Err(what.into());
        }
        push(warnings, what)?;
    }
    let sum = table.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    if sum != 0 {
        let expected = raw.checksum.wrapping_sub(sum).into();
        let what = finding(
            at,
            Defect::Checksum,
            Expected::Exactly(expected),
            raw.checksum.into(),
        );
        push(warnings, what)?;
    }
    // The field holds one less; Xen refuses zero, and addresses have at most 64 bits.
    let width = raw.host_address_width;
    if width == 0 || width > 63 {
        let expected = Expected::That("1 to 0x3f");
        return Err(finding(at, Defect::HostAddressWidth, expected, width.into()).into());
    }
    let header = Header {
        length: raw.length.get(),
        revision: raw.revision,
        checksum: raw.checksum,
        oem_id: raw.oem_id,
        oem_table_id: raw.oem_table_id,
        oem_revision: raw.oem_revision.get(),
        creator_id: raw.creator_id,
        creator_revision: raw.creator_revision.get(),
        host_address_bits: width.saturating_add(1),
        flags: TableFlags(raw.flags),
    };
    Ok((header, table))
}

/// One structure: where it is, and its bytes without the structure header.
struct Record<'a> {
    place: Place,
    length: usize,
    body: &'a [u8],
}

impl<'a> Record<'a> {
    /// The structure at the start of `rest`, which stands at `offset`.
    fn first(rest: &'a [u8], offset: usize) -> Result<Self, Finding> {
        let minimum = size_of::<spec::RecordHeader>();
        let (raw, _) = spec::RecordHeader::read_from_prefix(rest).map_err(|_| {
            finding(
                Place::record(RecordKind::Header, 0),
                Defect::TrailingBytes,
                Expected::AtLeast(minimum as u64),
                rest.len() as u64,
            )
        })?;
        let kind = match raw.kind.get() {
            spec::TYPE_DRHD => RecordKind::Drhd,
            spec::TYPE_RMRR => RecordKind::Rmrr,
            spec::TYPE_ATSR => RecordKind::Atsr,
            spec::TYPE_RHSA => RecordKind::Rhsa,
            spec::TYPE_ANDD => RecordKind::Andd,
            spec::TYPE_SATC => RecordKind::Satc,
            spec::TYPE_SIDP => RecordKind::Sidp,
            other => RecordKind::Unknown(other),
        };
        let place = Place::record(kind, offset);
        let length = usize::from(raw.length.get());
        if length < minimum {
            let expected = Expected::AtLeast(minimum as u64);
            return Err(finding(
                place,
                Defect::RecordLength,
                expected,
                length as u64,
            ));
        }
        let Some(body) = rest.get(minimum..length) else {
            let expected = Expected::AtMost(rest.len() as u64);
            return Err(finding(
                place,
                Defect::RecordTiling,
                expected,
                length as u64,
            ));
        };
        Ok(Self {
            place,
            length,
            body,
        })
    }

    /// The fixed part of the structure and the bytes behind it.
    fn fixed<T: FromBytes + KnownLayout + Immutable + Unaligned>(
        &self,
    ) -> Result<(T, &'a [u8]), Finding> {
        T::read_from_prefix(self.body).map_err(|_| {
            let minimum = size_of::<spec::RecordHeader>() + size_of::<T>();
            let expected = Expected::AtLeast(minimum as u64);
            finding(
                self.place,
                Defect::RecordLength,
                expected,
                self.length as u64,
            )
        })
    }

    /// The device scopes in `bytes`, which end where the structure ends.
    fn scopes(&self, bytes: &[u8], warnings: &mut Vec<Finding>) -> Result<Vec<Scope>, DmarError> {
        let mut scopes = Vec::new();
        let end = self.place.offset.saturating_add(self.length);
        let mut rest = bytes;
        while !rest.is_empty() {
            let offset = end.saturating_sub(rest.len());
            let at = self.place.scope(offset);
            let room = rest.len() as u64;
            // The header and one step of a path.
            let minimum = (size_of::<spec::ScopeHeader>() + 2) as u64;
            let (raw, _) = spec::ScopeHeader::read_from_prefix(rest)
                .map_err(|_| finding(at, Defect::ScopeTiling, Expected::AtLeast(minimum), room))?;
            let length = usize::from(raw.length);
            if u64::from(raw.length) < minimum || !length.is_multiple_of(2) {
                let expected = Expected::That("an even number, at least 8");
                return Err(finding(at, Defect::ScopeLength, expected, raw.length.into()).into());
            }
            let Some((scope, behind)) = rest.split_at_checked(length) else {
                let expected = Expected::AtMost(room);
                return Err(finding(at, Defect::ScopeTiling, expected, raw.length.into()).into());
            };
            rest = behind;
            let Some(kind) = ScopeKind::from_number(raw.kind) else {
                let expected = Expected::That("1 to 5");
                push(
                    warnings,
                    finding(at, Defect::UnknownScope, expected, raw.kind.into()),
                )?;
                continue;
            };
            let mut path = Vec::new();
            let steps = scope
                .get(size_of::<spec::ScopeHeader>()..)
                .unwrap_or_default();
            for step in steps.chunks_exact(2) {
                let &[device, function] = step else { break };
                push(&mut path, PathStep { device, function })?;
                // Also what a scope looks like that swallowed the next one.
                if device > spec::DEVICE_MAX || function > spec::FUNCTION_MAX {
                    let expected = Expected::That("at most 0x1f, 0x7");
                    let found = u16::from_be_bytes([device, function]).into();
                    push(warnings, finding(at, Defect::PathStep, expected, found))?;
                }
            }
            let scope = Scope {
                offset,
                kind,
                flags: raw.flags,
                enumeration_id: raw.enumeration_id,
                start_bus: raw.start_bus,
                path,
            };
            push(&mut scopes, scope)?;
        }
        Ok(scopes)
    }
}

impl Dmar {
    /// Takes one structure up.
    fn take(&mut self, record: &Record<'_>) -> Result<(), DmarError> {
        match record.place.record {
            RecordKind::Drhd => self.take_unit(record),
            RecordKind::Rmrr => self.take_region(record),
            RecordKind::Unknown(kind) => {
                let expected = Expected::AtMost(spec::TYPE_SIDP.into());
                let what = finding(record.place, Defect::UnknownRecord, expected, kind.into());
                Ok(push(&mut self.warnings, what)?)
            }
            _ => match self.take_optional(record) {
                // Nothing that protects memory depends on these.
                Err(DmarError::Malformed(what)) => Ok(push(&mut self.warnings, what)?),
                other => other,
            },
        }
    }

    fn take_unit(&mut self, record: &Record<'_>) -> Result<(), DmarError> {
        let (raw, rest) = record.fixed::<spec::DrhdBody>()?;
        let base = raw.base.get();
        let pages = 1u64 << (raw.size & spec::DRHD_SIZE);
        let registers = PageCount::new(pages)
            .filter(|_| base != 0)
            .and_then(|pages| PhysRange::new(PhysAddr::new(base), pages).ok());
        let Some(registers) = registers else {
            let expected = Expected::That("a page address that is not 0");
            return Err(finding(record.place, Defect::RegisterBase, expected, base).into());
        };
        let mut scopes = record.scopes(rest, &mut self.warnings)?;
        if Fault::DropLastScope.is_on() {
            scopes.pop();
        }
        let unit = Drhd {
            place: record.place,
            flags: raw.flags,
            size: raw.size,
            segment: Segment(raw.segment.get()),
            registers,
            scopes,
        };
        for other in &self.units {
            if other.base() == unit.base() {
                let expected = Expected::That("a base that no other unit has");
                return Err(finding(record.place, Defect::DuplicateBase, expected, base).into());
            }
            if other.include_all() && unit.include_all() && other.segment == unit.segment {
                let expected = Expected::AtMost(1);
                return Err(finding(record.place, Defect::SecondIncludeAll, expected, 2).into());
            }
        }
        if unit.scopes.is_empty() && !unit.include_all() {
            let what = finding(record.place, Defect::NoScopes, Expected::AtLeast(1), 0);
            push(&mut self.warnings, what)?;
        }
        Ok(push(&mut self.units, unit)?)
    }

    fn take_region(&mut self, record: &Record<'_>) -> Result<(), DmarError> {
        let (raw, rest) = record.fixed::<spec::RmrrBody>()?;
        let (base, limit) = (raw.base.get(), raw.limit.get());
        if limit < base {
            let expected = Expected::AtLeast(base);
            return Err(finding(record.place, Defect::RegionOrder, expected, limit).into());
        }
        // Both must lie at a page boundary; the limit is the last byte of the region.
        for boundary in [base, limit.wrapping_add(1)] {
            if !boundary.is_multiple_of(PAGE) {
                let expected = Expected::MultipleOf(PAGE);
                return Err(
                    finding(record.place, Defect::RegionAlignment, expected, boundary).into(),
                );
            }
        }
        let region = PageCount::new((limit - base) / PAGE + 1)
            .and_then(|pages| PhysRange::new(PhysAddr::new(base), pages).ok());
        let Some(region) = region else {
            let expected = Expected::AtLeast(base);
            return Err(finding(record.place, Defect::RegionOrder, expected, limit).into());
        };
        let scopes = record.scopes(rest, &mut self.warnings)?;
        if scopes.is_empty() {
            let what = finding(record.place, Defect::NoScopes, Expected::AtLeast(1), 0);
            push(&mut self.warnings, what)?;
        }
        let region = Rmrr {
            place: record.place,
            segment: Segment(raw.segment.get()),
            region,
            scopes,
        };
        Ok(push(&mut self.regions, region)?)
    }

    fn take_optional(&mut self, record: &Record<'_>) -> Result<(), DmarError> {
        let place = record.place;
        match place.record {
            RecordKind::Rhsa => {
                let (raw, _) = record.fixed::<spec::RhsaBody>()?;
                let proximity = Rhsa {
                    place,
                    base: PhysAddr::new(raw.base.get()),
                    domain: raw.domain.get(),
                };
                push(&mut self.proximities, proximity)?;
            }
            RecordKind::Andd => {
                let (raw, rest) = record.fixed::<spec::AnddBody>()?;
                let end = rest.iter().position(|&byte| byte == 0);
                let path = end.and_then(|end| rest.get(..end)).unwrap_or_default();
                if path.is_empty() || !path.iter().all(u8::is_ascii_graphic) {
                    let expected = Expected::That("a printable path that ends with 0");
                    let first = rest.first().copied().unwrap_or_default();
                    return Err(finding(place, Defect::DeviceName, expected, first.into()).into());
                }
                let mut name = Vec::new();
                for &byte in path {
                    push(&mut name, byte)?;
                }
                let device = Andd {
                    place,
                    number: raw.number,
                    name,
                };
                push(&mut self.devices, device)?;
            }
            _ => {
                let (raw, rest) = record.fixed::<spec::ScopedBody>()?;
                let scopes = record.scopes(rest, &mut self.warnings)?;
                self.take_scoped(place, raw, scopes)?;
            }
        }
        Ok(())
    }

    fn take_scoped(
        &mut self,
        place: Place,
        raw: spec::ScopedBody,
        scopes: Vec<Scope>,
    ) -> Result<(), OutOfMemory> {
        let segment = Segment(raw.segment.get());
        let flags = raw.flags;
        match place.record {
            RecordKind::Atsr => push(
                &mut self.ats_ports,
                Atsr {
                    place,
                    flags,
                    segment,
                    scopes,
                },
            ),
            RecordKind::Satc => push(
                &mut self.caches,
                Satc {
                    place,
                    flags,
                    segment,
                    scopes,
                },
            ),
            _ => push(
                &mut self.properties,
                Sidp {
                    place,
                    segment,
                    scopes,
                },
            ),
        }
    }

    /// What can only be judged when all structures are known.
    fn check(&mut self) -> Result<(), DmarError> {
        if self.units.is_empty() {
            return Err(finding(Place::HEADER, Defect::NoUnits, Expected::AtLeast(1), 0).into());
        }
        for proximity in &self.proximities {
            if self.units.iter().all(|unit| unit.base() != proximity.base) {
                let expected = Expected::That("the base of a unit");
                let found = proximity.base.as_u64();
                push(
                    &mut self.warnings,
                    finding(proximity.place, Defect::NoSuchUnit, expected, found),
                )?;
            }
        }
        Ok(())
    }
}
