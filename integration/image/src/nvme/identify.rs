//! What the controller and its namespace say about themselves.

use arrayvec::ArrayString;

use super::dma::DmaBuffer;
use super::error::NvmeError;
use super::spec::IDENTIFY_BYTES;

/// What the controller says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControllerInfo {
    /// Serial number.
    pub serial: ArrayString<20>,
    /// Model.
    pub model: ArrayString<40>,
    /// Firmware revision.
    pub firmware: ArrayString<8>,
    /// Most bytes of one command.
    pub max_transfer_bytes: usize,
}

/// The first namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Number of blocks.
    pub blocks: u64,
    /// Bytes per block, a power of two, 512 to 4096.
    pub block_bytes: u32,
}

/// Places of fields in the controller's answer (figure 276).
const SERIAL: usize = 4;
const MODEL: usize = 24;
const FIRMWARE: usize = 64;
const MAX_TRANSFER: usize = 77;
/// Places of fields in the namespace's answer (NVM Command Set, figure 97).
const NAMESPACE_BLOCKS: usize = 0;
const FORMATTED_INDEX: usize = 26;
const FORMATS: usize = 128;

/// An answer copied out of its buffer.
pub(super) struct Answer([u8; IDENTIFY_BYTES]);

impl Answer {
    pub(super) fn read(buffer: &impl DmaBuffer) -> Result<Self, NvmeError> {
        let mut bytes = [0; IDENTIFY_BYTES];
        buffer.read(0, &mut bytes)?;
        Ok(Self(bytes))
    }

    fn byte(&self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }

    /// Printable text without the blanks or zeroes that pad it.
    fn text<const N: usize>(&self, at: usize) -> ArrayString<N> {
        let bytes = self.0.get(at..).unwrap_or_default().iter().take(N);
        let mut text = ArrayString::new();
        for byte in bytes.take_while(|byte| **byte != 0) {
            let printable = byte.is_ascii_graphic() || *byte == b' ';
            // N bytes of ASCII fit.
            let _ = text.try_push(if printable { char::from(*byte) } else { '?' });
        }
        text.truncate(text.trim_end().len());
        text
    }

    /// The controller, whose commands move at most `limit` bytes by what the driver can do.
    pub(super) fn controller(&self, min_page_shift: u32, limit: usize) -> ControllerInfo {
        // Log2 of the limit in smallest pages; zero means none.
        let max_transfer = match self.byte(MAX_TRANSFER) {
            0 => limit,
            shift => 1usize
                .checked_shl(min_page_shift + u32::from(shift))
                .map_or(limit, |bytes| bytes.min(limit)),
        };
        ControllerInfo {
            serial: self.text(SERIAL),
            model: self.text(MODEL),
            firmware: self.text(FIRMWARE),
            max_transfer_bytes: max_transfer,
        }
    }

    /// The namespace.
    pub(super) fn namespace(&self) -> Result<Namespace, NvmeError> {
        let blocks = (0..8).rev().fold(0, |value, index| {
            value << 8 | u64::from(self.byte(NAMESPACE_BLOCKS + index))
        });
        let unsupported = |what, found, expected| NvmeError::Unsupported {
            what,
            found,
            expected,
        };
        if blocks == 0 {
            return Err(unsupported("number of blocks of namespace 1", 0, 1));
        }
        // Bits 6:5 are the upper half of the index.
        let index = self.byte(FORMATTED_INDEX);
        let index = usize::from(index & 0xf | index >> 1 & 0x30);
        let format = FORMATS + 4 * index;
        let metadata = u16::from_le_bytes([self.byte(format), self.byte(format + 1)]);
        if metadata != 0 {
            return Err(unsupported(
                "metadata per block in bytes",
                metadata.into(),
                0,
            ));
        }
        let shift = self.byte(format + 2);
        if !(9..=12).contains(&shift) {
            return Err(unsupported("log2 of the block size", shift.into(), 9));
        }
        Ok(Namespace {
            blocks,
            block_bytes: 1 << shift,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(fields: &[(usize, &[u8])]) -> Answer {
        let mut bytes = [0; IDENTIFY_BYTES];
        for (at, field) in fields {
            bytes[*at..at + field.len()].copy_from_slice(field);
        }
        Answer(bytes)
    }

    #[test]
    fn text_is_trimmed_and_printable() {
        let info = answer(&[(SERIAL, b"hv0001              "), (MODEL, b"disk\xff\x00")])
            .controller(12, 1 << 20);
        assert_eq!(&info.serial[..], "hv0001");
        assert!(info.model.starts_with("disk?"));
        assert_eq!(info.max_transfer_bytes, 1 << 20);
    }

    #[test]
    fn transfer_limit_is_the_smaller_one() {
        let with = |shift: u8| answer(&[(MAX_TRANSFER, &[shift])]).controller(12, 2 << 20);
        assert_eq!(with(7).max_transfer_bytes, 512 << 10);
        assert_eq!(with(20).max_transfer_bytes, 2 << 20);
        assert_eq!(with(255).max_transfer_bytes, 2 << 20);
    }

    #[test]
    fn namespaces_that_the_driver_cannot_use_are_refused() {
        let size: (usize, &[u8]) = (NAMESPACE_BLOCKS, &[0, 0, 1]);
        let good = answer(&[size, (FORMATTED_INDEX, &[1]), (FORMATS + 4, &[0, 0, 12])]);
        assert_eq!(
            good.namespace(),
            Ok(Namespace {
                blocks: 65536,
                block_bytes: 4096
            })
        );
        assert!(answer(&[(FORMATS, &[0, 0, 9])]).namespace().is_err());
        assert!(answer(&[size, (FORMATS, &[8, 0, 9])]).namespace().is_err());
        assert!(answer(&[size, (FORMATS, &[0, 0, 40])]).namespace().is_err());
        assert!(
            answer(&[size, (FORMATTED_INDEX, &[0xff])])
                .namespace()
                .is_err()
        );
    }
}
