//! Streams that are translated by a first stage: an entry that leads to a descriptor, which leads to the tables.
//!
//! The entry says nothing of the domain, the descriptor does: its ASID is the domain's id. Further descriptors, for requests
//! that carry a substream, are in [`substreams`](super::substreams).

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_iommu::{Binding, FlushTicket, HwDomainId, UnitError};

use super::{Enabled, Stream, Unit};
use crate::caps;
use crate::contexts::{ContextTable, Contexts, stores};
use crate::frames::Reach;
use crate::invalidate::FIRST_STAGE_VMID;
use crate::spec::command::{Command, Depth};
use crate::spec::context::{ContextDescriptor, FirstStageTables, asid_of};
use crate::spec::first_stage::MEMORY_TYPES;
use crate::spec::stream_entry::{
    Config, FirstStageContexts, Regime, StreamTableEntry, WORDS, WithoutSubstream,
};
use crate::vmsa::Tables;
use crate::{Asid, StreamId, SubstreamId};

impl<P: Platform> Unit<P, Enabled> {
    /// Makes a stream that aborts translate by `binding`. The descriptor is written first, and what the unit may have kept
    /// of it forgotten, while the entry still aborts: it goes live whole, with the entry.
    pub(super) fn bind_first<F: Tables>(
        &self,
        platform: &P,
        stream: Stream,
        binding: Binding,
    ) -> Result<Option<FlushTicket>, UnitError> {
        let contexts = self.contexts()?;
        self.state.commands.check_alive(self.index)?;
        let tables = self.first_stage::<F>(binding)?;
        let descriptor = ContextDescriptor::new(&tables).words();
        let reach = self.reach(platform);
        let entry = self.entry_to_bind(platform, stream.id)?;
        let context = contexts.get(&reach, stream, SubstreamId::ZERO)?;
        // Of substreams it knows none, whatever table the stream had before.
        let target = self.first_stage_entry(&reach, stream, ContextTable::alone(context.at()))?;
        let before = entry.read();
        if Config::of(&before) != Some(Config::Abort) {
            if stream.is_shared && before == target && context.read() == descriptor {
                return Ok(None);
            }
            return Err(self.already_bound(&reach, stream, &before));
        }
        if Fault::ContextAfterEntry.is_on() {
            let ticket = self.update(platform, stream.id, &entry, |_| Ok(target));
            context.store(&reach, &stores(&descriptor));
            return ticket.map(Some);
        }
        context.store(&reach, &stores(&descriptor));
        let queue = self.queue_with(platform);
        let what = "forgetting a context descriptor (CFGI_CD)";
        let forget = [forget_context(stream.id)];
        self.wait_between(&queue, &forget, what)?;
        let ticket = self.update(platform, stream.id, &entry, |_| Ok(target))?;
        Ok(Some(ticket))
    }

    /// The unit's context descriptors.
    pub(super) fn contexts(&self) -> Result<&Contexts, UnitError> {
        self.state.contexts.as_ref().ok_or(UnitError::Hardware {
            unit: self.index,
            what: "a domain of first-stage tables on a unit that has no context descriptors",
            expected: 0,
            found: 1,
        })
    }

    /// The first stage of a binding that this unit can do.
    pub(super) fn first_stage<F: Tables>(
        &self,
        binding: Binding,
    ) -> Result<FirstStageTables, UnitError> {
        let unit = self.index;
        self.check_domain(binding.domain)?;
        let (root, output) = (binding.root, caps::output_size(self.info.idr5, F::GRANULE));
        let caps = self.first_stage_caps.unwrap_or(self.caps);
        let half = F::half(root, caps.iova_bits).filter(|_| caps.levels.has(root.level()));
        let Some(half) = half else {
            return Err(UnitError::Hardware {
                unit,
                what: "tables that the unit does not walk, by the level of their root; address bits of the unit",
                expected: caps.iova_bits.into(),
                found: root.level().number().into(),
            });
        };
        if root.page().as_u64() >> output.bits() != 0 {
            return Err(UnitError::Hardware {
                unit,
                what: "a root table above the output size, in address bits",
                expected: output.bits().into(),
                found: root.page().as_u64(),
            });
        }
        Ok(FirstStageTables {
            asid: Asid::new(binding.domain.get()),
            lower: Some(half),
            upper: None,
            output,
            attributes: MEMORY_TYPES,
            walk: self.walk(),
            on_fault: self.options()?.on_fault,
            dirty: None,
        })
    }

    /// The entry that leads to these descriptors. One that takes substreams differs from one that does not in word 0
    /// alone, since what becomes of requests without one is said from the start (IHI 0070, 5.2: S1DSS is not looked at
    /// without substreams).
    pub(super) fn first_stage_entry(
        &self,
        reach: &Reach<'_, P>,
        stream: Stream,
        table: ContextTable,
    ) -> Result<[u64; WORDS], UnitError> {
        let ContextTable { at, format, log2 } = table;
        let at = at.as_u64();
        let without = match stream.substream_bits {
            0 => WithoutSubstream::Terminate,
            _ => WithoutSubstream::UseZero,
        };
        let contexts = FirstStageContexts::new(at, format, log2, without, self.walk());
        let contexts = contexts.ok_or(UnitError::Hardware {
            unit: reach.unit,
            what: "a context descriptor where no entry can name it; below",
            expected: 1 << self.caps.phys_bits,
            found: at,
        })?;
        let options = self.options()?;
        let entry =
            StreamTableEntry::first_stage(&contexts, Regime::El1, FIRST_STAGE_VMID, &options);
        Ok(entry.words())
    }

    /// The domain that a stream's descriptor was last written for.
    pub(super) fn domain_of_context(
        &self,
        reach: &Reach<'_, P>,
        stream: Stream,
    ) -> Option<HwDomainId> {
        let contexts = self.state.contexts.as_ref()?;
        let context = contexts.of(reach, stream, SubstreamId::ZERO).ok()??;
        Some(domain_of_asid(asid_of(&context.read())))
    }
}

/// The domain whose translations are filed under an ASID.
pub(super) const fn domain_of_asid(asid: Asid) -> HwDomainId {
    HwDomainId::new(asid.get()).of_first_stage()
}

/// That a stream's descriptor of requests without a substream changed. Nothing leads to it but the stream's entry.
pub(super) const fn forget_context(stream: StreamId) -> Command {
    Command::config_context(stream, SubstreamId::ZERO, Depth::Leaves)
}
