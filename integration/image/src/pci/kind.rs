//! Names for class codes (PCI Code and ID Assignment Specification 1.16).

use super::{Class, Identity};

/// Vendor of virtio devices, which mostly have no class of their own.
const VIRTIO: u16 = 0x1af4;

/// What a virtio device is, for people; `None` for others (Virtio 1.2, section 5; ids from 0x1040
/// on are 0x1040 plus the device type).
pub(super) fn virtio(identity: Identity) -> Option<&'static str> {
    if identity.vendor != VIRTIO {
        return None;
    }
    Some(match identity.device {
        0x1000 | 0x1041 => "virtio network device",
        0x1001 | 0x1042 => "virtio disk",
        0x1005 | 0x1044 => "virtio random source",
        0x1003 | 0x1043 => "virtio console",
        0x1050 => "virtio GPU",
        0x1040..=0x107f => "virtio device",
        _ => return None,
    })
}

/// What a function of this class is, for people.
pub(super) fn name(class: Class) -> &'static str {
    match (class.base, class.sub, class.interface) {
        (0x01, 0x01, _) => "IDE controller",
        (0x01, 0x04, _) => "RAID controller",
        (0x01, 0x06, 0x01) => "AHCI controller",
        (0x01, 0x06, _) => "SATA controller",
        (0x01, 0x07, _) => "SAS controller",
        (0x01, 0x08, 0x02) => "NVMe controller",
        (0x01, ..) => "storage controller",
        (0x02, 0x00, _) => "Ethernet controller",
        (0x02, ..) => "network controller",
        (0x03, 0x00, _) => "VGA controller",
        (0x03, ..) => "display controller",
        (0x04, 0x03, _) => "HD audio controller",
        (0x04, ..) => "multimedia controller",
        (0x05, ..) => "memory controller",
        (0x06, 0x00, _) => "host bridge",
        (0x06, 0x01, _) => "ISA bridge",
        (0x06, 0x04, _) => "PCI bridge",
        (0x06, ..) => "bridge",
        (0x07, 0x00, _) => "serial controller",
        (0x07, ..) => "communication controller",
        (0x08, 0x06, _) => "IOMMU",
        (0x08, ..) => "system peripheral",
        (0x09, ..) => "input controller",
        (0x0c, 0x03, 0x30) => "xHCI controller",
        (0x0c, 0x03, _) => "USB controller",
        (0x0c, 0x05, _) => "SMBus controller",
        (0x0c, ..) => "serial bus controller",
        (0x0d, ..) => "wireless controller",
        (0x10, ..) => "encryption controller",
        (0x12, ..) => "processing accelerator",
        // Virtio functions other than network and storage use this too.
        (0x00 | 0xff, ..) => "unclassified device",
        _ => "device of unknown class",
    }
}
