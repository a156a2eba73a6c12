//! Page requests: pages that devices ask for before they use them.
//!
//! Source: Linux `arm-smmu-v3.h` (`PRIQ_*`), which Xen has from there; IHI 0070, 8, for what is answered.

use bitfield_struct::bitfield;
use hv_core::Iova;
use static_assertions::const_assert_eq;

use super::queue::PAGE_REQUEST_BYTES;
use crate::{StreamId, SubstreamId};

/// 64-bit words of a page request.
pub const WORDS: usize = 2;
const_assert_eq!((WORDS * size_of::<u64>()) as u64, PAGE_REQUEST_BYTES);
/// The highest number of a group of requests.
pub const GROUP_MAX: u16 = 0x1ff;

#[bitfield(u64)]
struct Word0 {
    /// The stream (bits 31:0).
    sid: u32,
    /// The substream (bits 51:32).
    #[bits(20)]
    ssid: u32,
    #[bits(6)]
    __: u8,
    /// Privileged (bit 58).
    privileged: bool,
    /// Execute (bit 59).
    execute: bool,
    /// Read (bit 60).
    read: bool,
    /// Write (bit 61).
    write: bool,
    /// The last of its group (bit 62).
    last: bool,
    /// There is a substream (bit 63).
    ssv: bool,
}

#[bitfield(u64)]
struct Word1 {
    /// The group (bits 8:0).
    #[bits(9)]
    group: u16,
    #[bits(3)]
    __: u8,
    /// The page's number (bits 63:12).
    #[bits(52)]
    page: u64,
}

/// Low bits of an address that word 1 leaves out.
const PAGE_SHIFT: u32 = 12;

/// A page request, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Who asks.
    pub stream: StreamId,
    /// For which substream, if for one.
    pub substream: Option<SubstreamId>,
    /// The page.
    pub page: Iova,
    /// What it is wanted for: to be read.
    pub read: bool,
    /// To be written.
    pub write: bool,
    /// To be executed.
    pub execute: bool,
    /// By privileged requests.
    pub privileged: bool,
    /// The number of the group that is answered as one.
    pub group: u16,
    /// Whether it is the group's last: the one that is answered.
    pub last: bool,
}

impl PageRequest {
    /// The request in these words, lowest address first.
    pub const fn from_words(words: [u64; WORDS]) -> Self {
        let [word0, word1] = words;
        let (word0, word1) = (Word0::from_bits(word0), Word1::from_bits(word1));
        Self {
            stream: StreamId::new(word0.sid()),
            substream: if word0.ssv() {
                SubstreamId::new(word0.ssid())
            } else {
                None
            },
            page: Iova::new(word1.page() << PAGE_SHIFT),
            read: word0.read(),
            write: word0.write(),
            execute: word0.execute(),
            privileged: word0.privileged(),
            group: word1.group(),
            last: word0.last(),
        }
    }

    /// Whether the device waits for an answer to it: to the last of a group, which a marker that ends a PASID is not.
    pub const fn wants_answer(&self) -> bool {
        let is_marker = self.substream.is_some() && !self.read && !self.write;
        self.last && !is_marker
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_match_an_independent_table() {
        let none = PageRequest::from_words([0x1234_5678 | 0xf_ffff << 32, 0]);
        assert_eq!(none.stream, StreamId::new(0x1234_5678));
        assert_eq!(none.substream, None);
        assert!(!(none.read || none.write || none.execute || none.privileged || none.last));
        let with = |word0, word1| PageRequest::from_words([word0, word1]);
        assert!(with(1 << 58, 0).privileged && with(1 << 59, 0).execute);
        assert!(with(1 << 60, 0).read && with(1 << 61, 0).write && with(1 << 62, 0).last);
        assert_eq!(
            with(1 << 63 | 0xf_ffff << 32, 0).substream,
            SubstreamId::new(0xf_ffff)
        );
        let word1 = with(0, 0xffff_8000_1234_5fff);
        assert_eq!(
            (word1.group, word1.page),
            (GROUP_MAX, Iova::new(0xffff_8000_1234_5000))
        );
    }
}
