//! The few registers of PCI configuration space that bring-up reads and writes.
//!
//! Source: Linux `pci_regs.h` and `pci_ids.h`.

/// Configuration space: command in bits 15:0, status above it.
pub const CONFIG_COMMAND: u16 = 0x04;
/// Command: the function may start transactions.
pub const COMMAND_BUS_MASTER: u32 = 1 << 2;
/// The command half of its dword; the status half is cleared by writing ones, so write zeros.
pub const COMMAND_HALF: u32 = 0xffff;
/// Configuration space: class code in bits 31:8.
pub const CONFIG_CLASS: u16 = 0x08;
/// Base class and subclass of a host bridge, as the top half of the class dword.
pub const CLASS_HOST_BRIDGE: u32 = 0x0600;
/// Base class and subclass of an ISA bridge.
pub const CLASS_ISA_BRIDGE: u32 = 0x0601;
/// Base class and subclass of a USB controller.
pub const CLASS_USB: u32 = 0x0c03;
/// Base class of a display controller.
pub const BASE_CLASS_DISPLAY: u32 = 0x03;
/// Configuration space: header type in bits 23:16.
pub const CONFIG_HEADER_TYPE: u16 = 0x0c;
/// Header type of a PCI-to-PCI bridge, without the multi-function bit.
pub const HEADER_TYPE_BRIDGE: u8 = 1;
/// The header type without the multi-function bit.
pub const HEADER_TYPE: u8 = 0x7f;
/// Configuration space of a bridge: secondary bus in bits 15:8, subordinate in 23:16.
pub const CONFIG_BUSES: u16 = 0x18;
/// Configuration space: vendor id in bits 15:0, all ones where no function is.
pub const CONFIG_VENDOR: u16 = 0x00;
/// The vendor id of no function.
pub const VENDOR_NONE: u16 = 0xffff;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_match_an_independent_table() {
        let table = [
            (CONFIG_VENDOR, 0x00),
            (CONFIG_COMMAND, 0x04),
            (CONFIG_CLASS, 0x08),
            (CONFIG_HEADER_TYPE, 0x0c),
            (CONFIG_BUSES, 0x18),
        ];
        for (ours, literal) in table {
            assert_eq!(ours, literal);
            assert!(ours.is_multiple_of(4), "dwords only");
        }
        assert_eq!(COMMAND_BUS_MASTER, 0x4);
        assert_eq!((HEADER_TYPE, HEADER_TYPE_BRIDGE), (0x7f, 1));
        assert_eq!((CLASS_USB, BASE_CLASS_DISPLAY), (0x0c03, 0x03));
    }
}
