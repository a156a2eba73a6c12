//! The table for people: one line for each structure and each scope.

use core::fmt;

use super::{Andd, Atsr, Dmar, Drhd, Header, Rhsa, Rmrr, Satc, Scope, ScopeKind, Sidp};

/// Text of firmware, where whatever is not printable ASCII is shown as a dot.
struct Ascii<'a>(&'a [u8]);

impl fmt::Display for Ascii<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        for &byte in self.0 {
            let shown = byte == b' ' || byte.is_ascii_graphic();
            f.write_char(if shown { byte as char } else { '.' })?;
        }
        Ok(())
    }
}

fn text(bytes: &[u8]) -> Ascii<'_> {
    let end = bytes
        .iter()
        .rposition(|byte| !matches!(byte, 0 | b' '))
        .map_or(0, |last| last + 1);
    Ascii(bytes.get(..end).unwrap_or_default())
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "DMAR revision {} by {} ({}), {} bytes, {}-bit host addresses",
            self.revision,
            text(&self.oem_id),
            text(&self.oem_table_id),
            self.length,
            self.host_address_bits
        )?;
        for (set, name) in [
            (self.flags.interrupt_remapping(), "interrupt remapping"),
            (self.flags.x2apic_opt_out(), "x2APIC opt-out"),
            (self.flags.dma_opt_in(), "DMA protection opt-in"),
        ] {
            if set {
                write!(f, ", {name}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for ScopeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Endpoint => "endpoint",
            Self::Bridge => "bridge",
            Self::Ioapic => "IOAPIC",
            Self::Hpet => "HPET",
            Self::Namespace => "ACPI device",
        })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<11} bus {:02x}", self.kind, self.start_bus)?;
        for step in &self.path {
            write!(f, " / {:02x}.{}", step.device, step.function)?;
        }
        if !self.kind.is_pci() {
            write!(f, " (id {})", self.enumeration_id)?;
        }
        if self.flags != 0 {
            write!(f, " (flags {:#x})", self.flags)?;
        }
        Ok(())
    }
}

fn scopes(f: &mut fmt::Formatter<'_>, scopes: &[Scope]) -> fmt::Result {
    for scope in scopes {
        write!(f, "\n    {scope}")?;
    }
    Ok(())
}

impl fmt::Display for Drhd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = if self.include_all() {
            ", all other functions"
        } else {
            ""
        };
        write!(
            f,
            "DRHD  registers {}, segment {:04x}{all}",
            self.registers, self.segment.0
        )?;
        scopes(f, &self.scopes)
    }
}

impl fmt::Display for Rmrr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "RMRR  region {}, segment {:04x}",
            self.region, self.segment.0
        )?;
        scopes(f, &self.scopes)
    }
}

impl fmt::Display for Atsr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = if self.all_ports() { ", all ports" } else { "" };
        write!(f, "ATSR  segment {:04x}{all}", self.segment.0)?;
        scopes(f, &self.scopes)
    }
}

impl fmt::Display for Rhsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "RHSA  registers {}, proximity domain {}",
            self.base, self.domain
        )
    }
}

impl fmt::Display for Andd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ANDD  device {} is {}", self.number, text(&self.name))
    }
}

impl fmt::Display for Satc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SATC  segment {:04x}, flags {:#x}",
            self.segment.0, self.flags
        )?;
        scopes(f, &self.scopes)
    }
}

impl fmt::Display for Sidp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SIDP  segment {:04x}", self.segment.0)?;
        scopes(f, &self.scopes)
    }
}

impl fmt::Display for Dmar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.header)?;
        for unit in &self.units {
            write!(f, "\n  {unit}")?;
        }
        for region in &self.regions {
            write!(f, "\n  {region}")?;
        }
        for ports in &self.ats_ports {
            write!(f, "\n  {ports}")?;
        }
        for proximity in &self.proximities {
            write!(f, "\n  {proximity}")?;
        }
        for device in &self.devices {
            write!(f, "\n  {device}")?;
        }
        for caches in &self.caches {
            write!(f, "\n  {caches}")?;
        }
        for properties in &self.properties {
            write!(f, "\n  {properties}")?;
        }
        for warning in &self.warnings {
            write!(f, "\n  warning: {warning}")?;
        }
        Ok(())
    }
}
