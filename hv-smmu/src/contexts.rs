//! Context descriptors of one unit: one for each stream, as far as somebody bound it.
//!
//! One a stream, not one a domain: who may write it is who may write the stream's entry, and it is written only while
//! that entry aborts and the unit holds nothing of it, so that no descriptor changes under anybody's feet. Nobody but
//! these tables and stream table entries knows where one is.

use hv_core::platform::Platform;
use hv_iommu::UnitError;

use crate::StreamId;
use crate::entry_update::Step;
use crate::frames::Reach;
use crate::spec::context::{ContextDescriptor, WORDS};
use crate::stream_table::{EntryWords, StreamTable};

/// The descriptors. They lie as the entries of a stream table do, which have the same size: in one array, or in one
/// array for each PCI bus.
pub(crate) struct Contexts(StreamTable);

impl Contexts {
    /// Descriptors for as many streams as there are entries in `streams`, none of them valid.
    pub(crate) fn beside<P: Platform>(
        reach: &Reach<'_, P>,
        streams: &StreamTable,
    ) -> Result<Self, UnitError> {
        let blank = ContextDescriptor::INVALID.words();
        streams.same_shape(reach, blank).map(Self)
    }

    /// The descriptor of a stream that was bound before.
    pub(crate) fn of<'a, P: Platform>(
        &'a self,
        reach: &Reach<'a, P>,
        stream: StreamId,
    ) -> Result<Option<EntryWords<'a, P::Cell>>, UnitError> {
        self.0.entry(reach, stream)
    }

    /// The descriptor of a stream, which gets one if it has none.
    pub(crate) fn get<'a, P: Platform>(
        &'a self,
        reach: &Reach<'a, P>,
        stream: StreamId,
    ) -> Result<EntryWords<'a, P::Cell>, UnitError> {
        if self.0.entry(reach, stream)?.is_none() {
            self.0.add_array(reach, stream)?;
        }
        self.0.entry(reach, stream)?.ok_or(UnitError::Hardware {
            unit: reach.unit,
            what: "a link to context descriptors that was written, when it was read back",
            expected: 1,
            found: 0,
        })
    }
}

/// The stores that make a descriptor which nobody reads this one: word 0, which makes it valid, is the last.
pub(crate) fn stores(target: &[u64; WORDS]) -> Step {
    let stores = target.iter().copied().enumerate().rev();
    Step {
        stores: stores.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_becomes_valid_with_its_last_store() {
        let target = [0x8000_0001, 1, 2, 3, 4, 5, 6, 7];
        let mut words = ContextDescriptor::INVALID.words();
        let step = stores(&target);
        let (last, before) = step.stores.split_last().unwrap();
        for (word, value) in before {
            words[*word] = *value;
        }
        assert_eq!(words[0], 0, "not valid until then");
        words[last.0] = last.1;
        assert_eq!(words, target);
    }
}
