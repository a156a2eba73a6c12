//! How the words of commands lie.

use bitfield_struct::bitfield;

/// Word 0 of commands about streams: PREFETCH, CFGI, ATC_INV, PRI_RESP, RESUME.
#[bitfield(u64)]
pub(super) struct StreamWord {
    /// [`Opcode`] (bits 7:0).
    pub(super) opcode: u8,
    __: bool,
    /// ATC_INV: all substreams (bit 9).
    pub(super) g: bool,
    /// Secure stream (bit 10).
    pub(super) ssec: bool,
    /// There is a substream (bit 11).
    pub(super) ssv: bool,
    /// The substream (bits 31:12).
    #[bits(20)]
    pub(super) ssid: u32,
    /// The stream (bits 63:32).
    pub(super) sid: u32,
}

/// Word 0 of TLB invalidations.
#[bitfield(u64)]
pub(super) struct TlbWord0 {
    /// [`Opcode`] (bits 7:0).
    pub(super) opcode: u8,
    #[bits(4)]
    __: u8,
    /// Range: one less than how many 2^SCALE granules (bits 16:12).
    #[bits(5)]
    pub(super) num: u8,
    #[bits(3)]
    __: u8,
    /// Range: log2 of granules (bits 24:20).
    #[bits(5)]
    pub(super) scale: u8,
    #[bits(7)]
    __: u8,
    /// (bits 47:32).
    pub(super) vmid: u16,
    /// (bits 63:48).
    pub(super) asid: u16,
}

/// Word 1 of TLB invalidations.
#[bitfield(u64)]
pub(super) struct TlbWord1 {
    /// Only leaves changed (bit 0).
    pub(super) leaf: bool,
    #[bits(7)]
    __: u8,
    /// Range: at which level leaves are, 0 if that is not known (bits 9:8).
    #[bits(2)]
    pub(super) ttl: u8,
    /// Range: granule, 0 if there is no range (bits 11:10).
    #[bits(2)]
    pub(super) tg: u8,
    /// The address without its low 12 bits (bits 63:12).
    #[bits(52)]
    pub(super) page: u64,
}

/// Word 1 of ATC_INV and PREFETCH_ADDR.
#[bitfield(u64)]
pub(super) struct SizeWord {
    /// Log2 of 4 KiB pages (bits 5:0).
    #[bits(6)]
    pub(super) size: u8,
    #[bits(6)]
    __: u8,
    /// The address without its low 12 bits (bits 63:12).
    #[bits(52)]
    pub(super) page: u64,
}

/// Word 1 of PRI_RESP.
#[bitfield(u64)]
pub(super) struct ResponseWord {
    /// The group (bits 8:0).
    #[bits(9)]
    pub(super) group: u16,
    #[bits(3)]
    __: u8,
    /// The response (bits 13:12).
    #[bits(2)]
    pub(super) response: u8,
    #[bits(50)]
    __: u64,
}

/// Word 0 of CMD_SYNC.
#[bitfield(u64)]
pub(super) struct SyncWord {
    /// [`Opcode`] (bits 7:0).
    pub(super) opcode: u8,
    #[bits(4)]
    __: u8,
    /// How completion is told (bits 13:12).
    #[bits(2)]
    pub(super) cs: u8,
    __: u8,
    /// Shareability of the message (bits 23:22).
    #[bits(2)]
    pub(super) msh: u8,
    /// Memory type of the message (bits 27:24).
    #[bits(4)]
    pub(super) msi_attr: u8,
    #[bits(4)]
    __: u8,
    /// The message (bits 63:32).
    pub(super) msi_data: u32,
}
