//! Substreams of a stream that is translated by a first stage: a context descriptor each.
//!
//! The stream's entry is that of a stream without substreams until the first of them is bound; one store of its word 0 then
//! makes it name the whole table. Several CPUs may bind and unbind different substreams of a stream at once: they store
//! the same word, and each has its own descriptor.

#![expect(unsafe_code, reason = "binding a device hands it memory")]

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_iommu::{Binding, FlushTicket, HwDomainId, UnitError};

use super::first_stage::domain_of_asid;
use super::{Enabled, Stream, Unit};
use crate::SubstreamId;
use crate::contexts::{Contexts, LINEAR_BITS_MOST};
use crate::entry_update::Update;
use crate::firmware::RequesterLimits;
use crate::invalidate::{Batch, Filed};
use crate::spec::command::{Command, Depth, SyncSignal};
use crate::spec::context::{ContextDescriptor, asid_of, is_valid};
use crate::spec::stream_entry::{Config, WORDS};
use crate::vmsa::{Stage, Tables};

impl<P: Platform> Unit<P, Enabled> {
    /// How many bits of a substream count in requests of requesters with these limits.
    pub(crate) fn substream_bits(&self, limits: RequesterLimits) -> u8 {
        if self.state.contexts.is_none() {
            return 0;
        }
        let bits = self.info.idr1.ssidsize().min(limits.pasid_bits);
        let bits = bits.min(hv_core::Pasid::BITS);
        match self.info.idr0.cd2l() {
            true => bits,
            false => bits.min(LINEAR_BITS_MOST),
        }
    }

    /// Makes a stream's requests with a substream translate by `binding`, whose tables are of format `F`. See
    /// [`hv_iommu::PasidBackend::bind_pasid`].
    ///
    /// Waits between the steps.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn bind_substream<F: Tables>(
        &self,
        platform: &P,
        stream: Stream,
        substream: SubstreamId,
        binding: Binding,
    ) -> Result<Option<FlushTicket>, UnitError> {
        let (commands, requester) = (&self.state.commands, stream.requester);
        commands.check_alive(self.index)?;
        let contexts = self.contexts_with_substreams(stream)?;
        if self.stage_of(binding.domain) == Stage::Second {
            return Err(UnitError::Hardware {
                unit: self.index,
                what: "a substream of a domain of second-stage tables",
                expected: 0,
                found: 1,
            });
        }
        let tables = self.first_stage::<F>(binding)?;
        let target = ContextDescriptor::new(&tables).words();
        let (reach, queue) = (self.reach(platform), self.queue_with(platform));
        let context = contexts.get(&reach, stream, substream)?;
        let before = context.read();
        if is_valid(&before) {
            let domain = domain_of_asid(asid_of(&before));
            return Err(UnitError::AlreadyBound { requester, domain });
        }
        self.take_substreams(platform, contexts, stream)?;
        // The stream's entry as well: who stored its word may not have told the unit yet. With what led to the descriptor:
        // that there was no page of descriptors may be cached, whoever linked one.
        let forget = [
            Command::config_stream(stream.id, Depth::Leaves),
            Command::config_context(stream.id, substream, Depth::All),
        ];
        let update = Update::of_context(before, target);
        let mut steps = update.steps();
        if Fault::ContextWordZeroFirst.is_on() {
            for step in steps.iter().rev() {
                context.store(&reach, step);
            }
            steps = &[];
        }
        while let [step, rest @ ..] = steps {
            context.store(&reach, step);
            steps = rest;
            if !rest.is_empty() {
                let what = "forgetting a context descriptor (CFGI_CD)";
                self.wait_between(&queue, &forget, what)?;
            }
        }
        commands.submit(&queue, &forget).map(Some)
    }

    /// Takes the binding of a substream down. See [`hv_iommu::PasidBackend::unbind_pasid`].
    ///
    /// The descriptor comes down even where the unit is wedged: it can only help.
    pub(crate) fn unbind_substream(
        &self,
        platform: &P,
        stream: Stream,
        substream: SubstreamId,
        domain: HwDomainId,
    ) -> Result<FlushTicket, UnitError> {
        let requester = stream.requester;
        let not_bound = UnitError::NotBound { requester, domain };
        let contexts = self.state.contexts.as_ref().ok_or(not_bound)?;
        let reach = self.reach(platform);
        let context = contexts.of(&reach, stream, substream)?.ok_or(not_bound)?;
        let before = context.read();
        if !is_valid(&before) || asid_of(&before).get() != domain.get() {
            return Err(not_bound);
        }
        let [invalid, ..] = ContextDescriptor::INVALID.words();
        context.stop(&reach, invalid);
        let mut batch = Batch::new();
        // The descriptor first, and done, before translations: a device may have them made anew by an old descriptor.
        if !Fault::UnbindKeepsContext.is_on() {
            let _ = batch.try_push(Command::config_context(stream.id, substream, Depth::Leaves));
        }
        if !Fault::UnbindWithoutSync.is_on() {
            let _ = batch.try_push(Command::sync(SyncSignal::None));
        }
        if !Fault::UnbindContextKeepsTranslations.is_on() {
            let _ = batch.try_push(Filed::of(domain, Stage::First).all());
        }
        let queue = self.queue_with(platform);
        self.state.commands.submit_patiently(&queue, &batch)
    }

    /// The unit's descriptors, for a stream that has substreams.
    fn contexts_with_substreams(&self, stream: Stream) -> Result<&Contexts, UnitError> {
        let contexts = self.state.contexts.as_ref();
        contexts
            .filter(|_| stream.substream_bits != 0)
            .ok_or(UnitError::Hardware {
                unit: self.index,
                what: "a substream of a stream that has none, in bits of it",
                expected: 1,
                found: stream.substream_bits.into(),
            })
    }

    /// Makes the entry of a bound stream take substreams, if it does not.
    fn take_substreams(
        &self,
        platform: &P,
        contexts: &Contexts,
        stream: Stream,
    ) -> Result<(), UnitError> {
        let reach = self.reach(platform);
        let no_first_stage = UnitError::Hardware {
            unit: self.index,
            what: "a substream of a stream that no first stage translates, in valid descriptors",
            expected: 1,
            found: 0,
        };
        let entry = self.state.streams.entry(&reach, stream.id)?;
        let entry = entry.ok_or(no_first_stage)?;
        let table = contexts.all(&reach, stream)?;
        let target = self.first_stage_entry(&reach, stream, table)?;
        // As it stands when it is stored: one that was made to abort meanwhile goes on doing so.
        let want = |before: &[u64; WORDS]| match Config::of(before) {
            Some(Config::First) => Ok(target),
            _ => Err(no_first_stage),
        };
        if want(&entry.read())? != entry.read() {
            // One store. Nobody needs the ticket: what follows waits for more.
            self.update(platform, stream.id, &entry, want)?;
        }
        Ok(())
    }
}
