//! The table walk on made-up memory, whole and damaged.

use super::*;

/// Bytes that stand for physical memory from `base` on.
#[derive(Clone, Copy)]
struct Bytes<'a> {
    base: u64,
    bytes: &'a [u8],
}

impl<'a> TableMemory<'a> for Bytes<'a> {
    fn bytes(&self, address: PhysAddr, length: u32) -> Option<&'a [u8]> {
        let start = address.as_u64().checked_sub(self.base)? as usize;
        self.bytes.get(start..start.checked_add(length as usize)?)
    }
}

const BASE: u64 = 0xe_0000;
const RSDP: u64 = BASE + 0x40;
const ROOT: u64 = BASE + 0x100;
const MADT: u64 = BASE + 0x200;

fn fix_checksum(bytes: &mut [u8], at: usize) {
    bytes[at] = 0;
    bytes[at] = 0u8.wrapping_sub(sum(bytes));
}

fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 36];
    bytes[..4].copy_from_slice(signature);
    bytes[4..8].copy_from_slice(&(36 + body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(body);
    fix_checksum(&mut bytes, 9);
    bytes
}

fn put(memory: &mut [u8], address: u64, bytes: &[u8]) {
    let at = (address - BASE) as usize;
    memory[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A BIOS area with an ACPI 1.0 (`long` false) or 2.0 root pointer, a root table and a MADT.
fn machine(long: bool) -> Vec<u8> {
    let mut memory = vec![0; BIOS_AREA_BYTES as usize];
    let mut rsdp = vec![0; if long { 36 } else { 20 }];
    rsdp[..8].copy_from_slice(&RSDP_SIGNATURE);
    rsdp[16..20].copy_from_slice(&(ROOT as u32).to_le_bytes());
    if long {
        rsdp[15] = 2;
        rsdp[20] = 36;
        rsdp[24..32].copy_from_slice(&ROOT.to_le_bytes());
    }
    fix_checksum(&mut rsdp[..20], 8);
    if long {
        fix_checksum(&mut rsdp, 32);
    }
    put(&mut memory, RSDP, &rsdp);
    // The first pointer leads out of memory: a walk steps over it.
    let root = if long {
        let pointers: Vec<u8> = [1 << 40, MADT]
            .into_iter()
            .flat_map(u64::to_le_bytes)
            .collect();
        table(b"XSDT", &pointers)
    } else {
        let pointers: Vec<u8> = [16, MADT as u32]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect();
        table(b"RSDT", &pointers)
    };
    put(&mut memory, ROOT, &root);
    put(
        &mut memory,
        MADT,
        &table(
            b"APIC",
            &[0, 0, 0xe0, 0xfe, 0, 0, 0, 0, 0, 8, 0, 5, 1, 0, 0, 0],
        ),
    );
    memory
}

fn find(memory: &[u8], rsdp: Option<u64>) -> Result<Tables<'_, Bytes<'_>>, AcpiError> {
    let memory = Bytes {
        base: BASE,
        bytes: memory,
    };
    Tables::find(memory, rsdp.map(PhysAddr::new))
}

#[test]
fn both_kinds_of_root_lead_to_the_tables() {
    for long in [false, true] {
        let memory = machine(long);
        let tables = find(&memory, Some(RSDP)).unwrap();
        let madt = tables.madt().unwrap().unwrap();
        assert_eq!(madt.processors[0].lapic_id.0, 5);
        assert_eq!(tables.mcfg(), Ok(None));
        assert_eq!(tables.dmar(), Ok(None));
        let names: Vec<_> = tables.signatures().collect();
        assert_eq!(names, [None, Some(Signature::MADT)]);
    }
}

#[test]
fn the_root_pointer_is_found_by_scanning() {
    let memory = machine(false);
    assert!(find(&memory, None).is_ok());
    let empty = vec![0; BIOS_AREA_BYTES as usize];
    assert!(matches!(
        find(&empty, None),
        Err(AcpiError::NoRootPointer { .. })
    ));
}

#[test]
fn every_flipped_bit_of_a_checked_structure_is_noticed_or_harmless() {
    let whole = machine(true);
    for (address, bytes) in [(RSDP, 36), (ROOT, 52), (MADT, 52)] {
        for byte in 0..bytes {
            for bit in 0..8 {
                let mut memory = whole.clone();
                memory[(address - BASE) as usize + byte] ^= 1 << bit;
                let outcome = find(&memory, Some(RSDP)).and_then(|tables| tables.madt());
                // A damaged signature hides the table; everything else must be an error.
                assert!(
                    !matches!(outcome, Ok(Some(_))),
                    "bit {bit} of byte {byte} at {address:#x} went unnoticed"
                );
            }
        }
    }
}

#[test]
fn errors_say_what_was_found() {
    let mut memory = machine(false);
    put(&mut memory, ROOT, b"JUNK");
    assert_eq!(
        find(&memory, Some(RSDP)).err(),
        Some(AcpiError::WrongSignature {
            address: PhysAddr::new(ROOT),
            expected: Signature::RSDT,
            found: Signature(*b"JUNK"),
        })
    );
    let mut memory = machine(true);
    put(&mut memory, MADT + 4, &8u32.to_le_bytes());
    assert!(matches!(
        find(&memory, Some(RSDP)).unwrap().madt(),
        Err(AcpiError::TooShort {
            found: 8,
            minimum: 36,
            ..
        })
    ));
    put(&mut memory, MADT + 4, &u32::MAX.to_le_bytes());
    assert!(matches!(
        find(&memory, Some(RSDP)).unwrap().madt(),
        Err(AcpiError::Unreadable {
            wanted: u32::MAX,
            ..
        })
    ));
    assert!(matches!(
        find(&memory, Some(u64::MAX - 3)),
        Err(AcpiError::Unreadable {
            what: Signature::RSDP,
            ..
        })
    ));
}
