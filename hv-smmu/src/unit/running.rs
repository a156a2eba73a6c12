//! What a running unit does: bind, unbind, flush, report faults.

#![expect(unsafe_code, reason = "binding a device hands it memory")]

use hv_core::PciAddress;
use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_iommu::{Binding, FlushRequest, FlushSpan, FlushTicket, HwDomainId, Snoop, UnitError};

use super::device_tlb::forget_in;
use super::first_stage::forget_context;
use super::{Enabled, Unit};
use crate::StreamId;
use crate::caps;
use crate::command_queue::QueueContext;
use crate::entry_update::Update;
use crate::frames::Reach;
use crate::invalidate::{Batch, Filed, Invalidator, vmid};
use crate::nested::UserStage;
use crate::root::RootFields;
use crate::spec::command::{Command, Depth, SyncSignal};
use crate::spec::granule::Granule;
use crate::spec::stream_entry::{
    Config, Regime, SecondStageShape, SecondStageTables, StreamOptions, StreamTableEntry, WORDS,
    bypass_as, vmid_of,
};
use crate::spec::walk::Walk;
use crate::stream_table::EntryWords;
use crate::vmsa::{Stage, Tables};

/// Who a stream is, for errors.
#[derive(Clone, Copy)]
pub(crate) struct Stream {
    pub(crate) id: StreamId,
    pub(crate) requester: PciAddress,
    /// Whether other requesters of its group send as the same stream: what was done for one is done for all.
    pub(crate) is_shared: bool,
    /// Bits of a substream that tell its requests apart; 0 where nothing does.
    pub(crate) substream_bits: u8,
}

impl<P: Platform> Unit<P, Enabled> {
    /// Whether the stream table has room for a stream.
    pub(crate) fn has_stream(&self, stream: StreamId) -> bool {
        self.state.streams.covers(stream)
    }

    /// Makes a stream translate by `binding`, whose tables are of format `F`. See [`hv_iommu::Backend::bind`].
    ///
    /// Waits, see [`set`](Self::set).
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn bind<F: Tables>(
        &self,
        platform: &P,
        stream: Stream,
        binding: Binding,
    ) -> Result<Option<FlushTicket>, UnitError> {
        if self.stage_of(binding.domain) == Stage::First {
            return self.bind_first::<F>(platform, stream, binding);
        }
        let (tables, options) = self.second_stage::<F>(binding)?;
        let target = StreamTableEntry::second_stage(&tables, &options).words();
        self.set(platform, stream, &target)
    }

    /// Makes a stream translate by a user's first stage on top of `parent`. See
    /// [`hv_iommu::NestedBackend::bind_nested`].
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn bind_nested<F: Tables>(
        &self,
        platform: &P,
        stream: Stream,
        parent: Binding,
        stage: &UserStage,
    ) -> Result<Option<FlushTicket>, UnitError> {
        let target = self.nested_entry::<F>(parent, stage)?;
        self.on_first_stage(platform, stream, parent.domain, || {
            self.set(platform, stream, &target)
        })
    }

    /// The entry of a user's first stage on top of `parent`.
    pub(super) fn nested_entry<F: Tables>(
        &self,
        parent: Binding,
        stage: &UserStage,
    ) -> Result<[u64; WORDS], UnitError> {
        let (tables, options) = self.second_stage::<F>(parent)?;
        let contexts = stage.contexts().read_by(self.walk());
        let entry = match Fault::NestedWithoutParent.is_on() {
            true => {
                let vmid = vmid(parent.domain);
                StreamTableEntry::first_stage(&contexts, Regime::El1, vmid, &options)
            }
            false => StreamTableEntry::nested(&contexts, &tables, &options),
        };
        Ok(entry.words())
    }

    /// Notes that a stream is on a user's first stage, then has `act` make its entry lead there.
    ///
    /// Until now flushes of `parent` may have been of some of its addresses, which finds nothing of what both stages give
    /// together (IHI 0070, 4.4.3.1). One that is still under way was asked for before the domain counted this stream, and its
    /// pages were out of the tables before that; so what the unit still holds of them is forgotten here, before a first stage
    /// can be put on top of it. (The flush behind a switch comes too late for that: the other one may have its receipt by then.)
    pub(super) fn on_first_stage<T>(
        &self,
        platform: &P,
        stream: Stream,
        parent: HwDomainId,
        act: impl FnOnce() -> Result<T, UnitError>,
    ) -> Result<T, UnitError> {
        let domain = vmid(parent);
        let was_there = self.is_nested(platform, stream.id);
        if !was_there {
            self.state.nested.enter(domain, stream.id)?;
        }
        let mut bound = Ok(());
        if !was_there && !Fault::NestedOnWhatIsHeld.is_on() {
            let context = self.queue_with(platform);
            let forget = [Filed::of(parent, Stage::Second).all()];
            let what = "forgetting translations of a user's domain (TLBI_S12_VMALL)";
            bound = self.wait_between(&context, &forget, what);
        }
        let bound = bound.and_then(|()| act());
        // Nothing of it stayed, and nobody takes it down.
        if bound.is_err() && !was_there && !self.is_nested(platform, stream.id) {
            self.state.nested.leave(domain, stream.id);
        }
        bound
    }

    /// Whether the entry of a stream leads to a user's first stage.
    fn is_nested(&self, platform: &P, stream: StreamId) -> bool {
        let reach = self.reach(platform);
        let entry = self.state.streams.entry(&reach, stream);
        let entry = entry.ok().flatten();
        entry.is_some_and(|entry| Config::of(&entry.read()) == Some(Config::Nested))
    }

    /// Lets a stream through untranslated. See [`hv_iommu::IdentityBackend::bind_identity`].
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn bind_identity(
        &self,
        platform: &P,
        stream: Stream,
        domain: HwDomainId,
    ) -> Result<Option<FlushTicket>, UnitError> {
        self.set(platform, stream, &bypass_as(vmid(domain)))
    }

    /// Makes an entry that aborts another one. Waits for the syncs between the steps, but for the last, whose ticket
    /// it gives.
    fn set(
        &self,
        platform: &P,
        stream: Stream,
        target: &[u64; WORDS],
    ) -> Result<Option<FlushTicket>, UnitError> {
        self.state.commands.check_alive(self.index)?;
        let entry = self.entry_to_bind(platform, stream.id)?;
        let before = entry.read();
        if Config::of(&before) != Some(Config::Abort) {
            if stream.is_shared && before == *target {
                return Ok(None);
            }
            return Err(self.already_bound(&self.reach(platform), stream, &before));
        }
        let ticket = self.update(platform, stream.id, &entry, |_| Ok(*target))?;
        Ok(Some(ticket))
    }

    /// The entry of a stream, with an array around it if it had none. Waits then.
    pub(super) fn entry_to_bind<'a>(
        &'a self,
        platform: &'a P,
        stream: StreamId,
    ) -> Result<EntryWords<'a, P::Cell>, UnitError> {
        let reach = self.reach(platform);
        let streams = &self.state.streams;
        if streams.entry(&reach, stream)?.is_none() {
            // That there was none may be cached, for each of its streams: `update` has the way to an entry forgotten too.
            streams.add_array(&reach, stream)?;
        }
        // Whoever linked the array may not have written the link back yet.
        streams.publish_link(&reach, stream);
        streams.entry(&reach, stream)?.ok_or(UnitError::Hardware {
            unit: self.index,
            what: "a stream table descriptor that was written, when it was read back",
            expected: 1,
            found: 0,
        })
    }

    /// Which domain an entry lets its stream into, if it lets it anywhere.
    pub(super) fn domain_of(
        &self,
        reach: &Reach<'_, P>,
        stream: Stream,
        entry: &[u64; WORDS],
    ) -> Option<HwDomainId> {
        match Config::of(entry)? {
            Config::Abort => None,
            Config::First => self.domain_of_context(reach, stream),
            Config::Bypass | Config::Second | Config::Nested => {
                Some(HwDomainId::new(vmid_of(entry).get()))
            }
        }
    }

    /// That the stream of an entry which does not abort cannot be bound.
    pub(super) fn already_bound(
        &self,
        reach: &Reach<'_, P>,
        stream: Stream,
        entry: &[u64; WORDS],
    ) -> UnitError {
        // An entry that is not valid is nobody's.
        let none = HwDomainId::new(0);
        UnitError::AlreadyBound {
            requester: stream.requester,
            domain: self.domain_of(reach, stream, entry).unwrap_or(none),
        }
    }

    /// Refuses an id that no domain has on this unit.
    pub(super) fn check_domain(&self, domain: HwDomainId) -> Result<(), UnitError> {
        let ids = match (self.stage_of(domain), self.first_stage_caps) {
            (Stage::First, Some(caps)) => caps.domain_ids,
            _ => self.caps.domain_ids,
        };
        let domain = domain.get();
        // Id 0 is never given to a domain.
        if domain == 0 || u32::from(domain) >= ids {
            return Err(UnitError::Hardware {
                unit: self.index,
                what: "a domain id that the unit does not have or that is reserved; the highest",
                expected: u64::from(ids).saturating_sub(1),
                found: domain.into(),
            });
        }
        Ok(())
    }

    /// What holds for every stream.
    pub(super) fn options(&self) -> Result<StreamOptions, UnitError> {
        // Faults end their transaction wherever the unit can do that.
        let model = self.info.idr0.stall_model();
        let on_fault = model.and_then(|model| model.terminate().or(model.stall()));
        let on_fault = on_fault.ok_or(UnitError::Hardware {
            unit: self.index,
            what: "a stall model that means nothing (IDR0.STALL_MODEL); at most",
            expected: 2,
            found: self.info.idr0.stall().into(),
        })?;
        Ok(StreamOptions {
            on_fault,
            translation_requests: None,
            // A device fills the queue that it shares with others more slowly.
            merge_events: true,
        })
    }

    /// The second stage of a binding that this unit can do.
    pub(super) fn second_stage<F: Tables>(
        &self,
        binding: Binding,
    ) -> Result<(SecondStageTables, StreamOptions), UnitError> {
        let unit = self.index;
        let root = binding.root;
        self.check_domain(binding.domain)?;
        let output = caps::output_size(self.info.idr5, F::GRANULE);
        let shape = F::fields(root, self.caps.iova_bits)
            .filter(|_| self.caps.levels.has(root.level()))
            .and_then(|fields| {
                let RootFields {
                    granule,
                    start_level,
                    t0sz,
                    base: _,
                } = fields;
                SecondStageShape::from_codes(granule, start_level, t0sz, output)
            });
        let Some(shape) = shape else {
            return Err(UnitError::Hardware {
                unit,
                what: "tables that the unit does not walk, by the level of their root; address bits of the unit",
                expected: self.caps.iova_bits.into(),
                found: root.level().number().into(),
            });
        };
        let (page, walk) = (root.page(), self.walk());
        let tables = SecondStageTables::new(vmid(binding.domain), page, shape, walk).ok_or(
            UnitError::Hardware {
                unit,
                what: "a root table that is not aligned to its size, or above the output size; aligned to",
                expected: shape.root_bytes(),
                found: page.as_u64(),
            },
        )?;
        Ok((self.with_leaves(tables, binding)?, self.options()?))
    }

    /// The same tables with what their leaves were made for: translations are cached with it, so entries of one domain
    /// that differ in it would have some of its devices go by the others' (IHI 0070, 5.2.1).
    fn with_leaves(
        &self,
        mut tables: SecondStageTables,
        binding: Binding,
    ) -> Result<SecondStageTables, UnitError> {
        let unit = self.index;
        let cannot = |what| UnitError::Hardware {
            unit,
            what,
            expected: 1,
            found: 0,
        };
        if binding.leaves.snoop == Snoop::Forced && !Fault::EntryNotForced.is_on() {
            let token = self.info.idr3.forced_write_back();
            tables = tables.force_write_back(token.ok_or_else(|| {
                cannot("leaves that force write-back, on a unit without them (IDR3.FWB)")
            })?);
        }
        if binding.leaves.dirty && !Fault::EntryNotesNothing.is_on() {
            let token = self.info.idr0.writes_dirty();
            let token = token.filter(|_| self.caps.dirty);
            tables = tables.note_writes(token.ok_or_else(|| {
                cannot("leaves in which writes are noted, on a unit that does not (IDR0.HTTU)")
            })?);
        }
        Ok(tables)
    }

    /// Which stage translates a domain here.
    pub(super) const fn stage_of(&self, domain: HwDomainId) -> Stage {
        match self.caps.second_stage && !domain.is_of_first_stage() {
            true => Stage::Second,
            false => Stage::First,
        }
    }

    /// How the unit reads tables and descriptors.
    pub(super) const fn walk(&self) -> Walk {
        match self.info.coherent {
            true => Walk::Coherent,
            false => Walk::NonCoherent,
        }
    }

    /// Takes the steps from what stands in memory to what `want` makes of that, and gives the ticket of the last.
    ///
    /// Each word is stored by comparing. What somebody else took away meanwhile (the leave to ask, everything) stays
    /// away: the rest is planned anew from what stands then, and `want` may find that there is nothing left to do.
    pub(super) fn update(
        &self,
        platform: &P,
        stream: StreamId,
        entry: &EntryWords<'_, P::Cell>,
        want: impl Fn(&[u64; WORDS]) -> Result<[u64; WORDS], UnitError>,
    ) -> Result<FlushTicket, UnitError> {
        let (reach, context) = (self.reach(platform), self.queue_with(platform));
        // With the descriptor that led to it: that it was empty may be cached, whoever filled it.
        let depth = match Fault::SkipArrayForget.is_on() {
            true => Depth::Leaves,
            false => Depth::All,
        };
        let forget = [Command::config_stream(stream, depth)];
        let kept = usize::from(!Fault::SkipStreamForget.is_on());
        let forget = forget.get(..kept).unwrap_or_default();
        let commands = &self.state.commands;
        // Ends: others can take two things away, each of them once.
        'anew: loop {
            let before = entry.read();
            let target = want(&before)?;
            let mut stands = match Fault::UpdateByStore.is_on() {
                true => entry.read(),
                false => before,
            };
            let update = Update::between(stands, target);
            if Fault::StreamWordZeroFirst.is_on() {
                for step in update.steps().iter().rev() {
                    entry.store(&reach, step);
                }
                return commands.submit(&context, forget);
            }
            let mut steps = update.steps();
            while let [step, rest @ ..] = steps {
                steps = rest;
                if Fault::UpdateByStore.is_on() {
                    entry.store(&reach, step);
                } else if !entry.exchange(&reach, step, &mut stands) {
                    continue 'anew;
                }
                if !rest.is_empty() && !Fault::StreamStepsWithoutSync.is_on() {
                    let what = "forgetting a stream table entry (CFGI_STE)";
                    self.wait_between(&context, forget, what)?;
                }
            }
            return commands.submit(&context, forget);
        }
    }

    /// Waits for a step in the middle of something. A unit that does not get over it has failed, whatever it says.
    pub(super) fn wait_between(
        &self,
        context: &QueueContext<'_, P>,
        commands: &[Command],
        what: &'static str,
    ) -> Result<(), UnitError> {
        let waited = self.state.commands.submit_and_wait(context, commands, what);
        waited.map_err(|error| match error {
            // What the queue found is in the log.
            UnitError::Hardware { unit, .. } => UnitError::Wedged { unit },
            other => other,
        })
    }

    /// Takes the binding down. See [`hv_iommu::Backend::unbind`].
    ///
    /// The entry comes down even where the unit is wedged: it can only help.
    pub(crate) fn unbind(
        &self,
        platform: &P,
        stream: Stream,
        domain: HwDomainId,
    ) -> Result<FlushTicket, UnitError> {
        let reach = self.reach(platform);
        let not_bound = UnitError::NotBound {
            requester: stream.requester,
            domain,
        };
        let entry = self
            .state
            .streams
            .entry(&reach, stream.id)?
            .ok_or(not_bound)?;
        let before = entry.read();
        let config = Config::of(&before);
        // One that aborts was bound to the domain if it still carries its id: it was made to be quiet, or another
        // requester of the stream was here before.
        let is_it = |found: HwDomainId| found.get() == domain.get();
        let is_bound = self.domain_of(&reach, stream, &before).is_some_and(is_it);
        let stage = self.stage_of(domain);
        let carries = match stage {
            Stage::First => self.domain_of_context(&reach, stream).is_some_and(is_it),
            Stage::Second => vmid_of(&before) == vmid(domain),
        };
        let was_ours = config == Some(Config::Abort) && (carries || stream.is_shared);
        if !is_bound && !was_ours {
            return Err(not_bound);
        }
        if is_bound {
            // One store of word 0 makes it abort; the other words are written again only before the entry goes live the
            // next time, which the caller does not ask for before the flush has completed.
            entry.abort(&reach);
        }
        let mut batch = Batch::new();
        // The entry first, and done, before translations: a device may have them made anew by an old entry.
        if !Fault::UnbindKeepsStream.is_on() {
            let _ = batch.try_push(Command::config_stream(stream.id, Depth::Leaves));
        }
        if stage == Stage::First {
            let _ = batch.try_push(match stream.substream_bits {
                0 => forget_context(stream.id),
                // With the table that led to them: the next binding knows of none.
                _ => Command::config_contexts(stream.id),
            });
        }
        if !Fault::UnbindWithoutSync.is_on() {
            let _ = batch.try_push(Command::sync(SyncSignal::None));
        }
        if !Fault::UnbindKeepsTranslations.is_on() {
            let _ = batch.try_push(Filed::of(domain, stage).all());
        }
        if self.info.always_stalls() {
            // Behind the sync of the entry that aborts: what stands still would be tried by the next one otherwise. A sync
            // does not wait for its end, which has no architected sign (IHI 0070, 4.7.2 and 4.7.3): see README, "not yet".
            let _ = batch.try_push(Command::stall_terminate(stream.id));
        }
        let keeps = self.state.devices.has(stream.id);
        if keeps {
            // Nothing of it passes by now; but it would, if it were still there when another domain's entry lets its
            // device ask.
            let _ = batch.try_push(Command::sync(SyncSignal::None));
            // One that was pulled out answers nothing, which would stop the unit for everybody behind it; and what it sent
            // has arrived. Whoever comes in its place is made to forget before it may ask.
            if platform.config_read32(stream.requester, 0) != u32::MAX {
                let _ = batch.try_push(forget_in(stream.id, FlushSpan::Domain));
            }
        }
        let context = self.queue_with(platform);
        let asked = self.state.commands.submit_patiently(&context, &batch);
        self.state.nested.leave(vmid(domain), stream.id);
        let ticket = asked?;
        if keeps {
            self.state.devices.forget_behind(stream.id, ticket);
        }
        Ok(ticket)
    }

    /// Asks for a flush. See [`hv_iommu::Backend::submit`].
    pub(crate) fn submit(
        &self,
        platform: &P,
        granule: Granule,
        request: FlushRequest,
    ) -> Result<FlushTicket, UnitError> {
        let stage = self.stage_of(request.domain);
        let invalidator = Invalidator {
            granule,
            stage,
            ranges: self.info.idr3.range_invalidation(),
            input_bits: match stage {
                Stage::First => self.info.idr5.input_bits(granule),
                Stage::Second => granule.address_bits(),
            },
        };
        let mut batch = Batch::new();
        if !Fault::SkipIotlbFlush.is_on() {
            invalidator.commands(request, &mut batch);
        }
        if batch.len() > self.state.commands.batch_most() {
            // A queue of a few entries takes no list of single addresses.
            batch.clear();
            let _ = batch.try_push(Filed::of(request.domain, stage).all());
        }
        if self.state.devices.of(request.domain).next().is_some()
            && !Fault::SkipDeviceForget.is_on()
        {
            return self.submit_to_devices(platform, batch, request.domain, request.span);
        }
        let context = self.queue_with(platform);
        self.state.commands.submit(&context, &batch)
    }

    /// Gives one command, and the ticket of a sync behind it.
    pub(crate) fn command(&self, platform: &P, command: Command) -> Result<FlushTicket, UnitError> {
        let context = self.queue_with(platform);
        self.state.commands.submit(&context, &[command])
    }

    /// Whether a request has completed. See [`hv_iommu::Backend::poll`].
    pub(crate) fn poll(&self, platform: &P, ticket: FlushTicket) -> Result<bool, UnitError> {
        let context = self.queue_with(platform);
        self.state.commands.poll(&context, ticket)
    }

    /// Refuses every request from now on.
    pub(crate) fn wedge(&self) {
        self.state.commands.wedge();
    }

    /// Whether it refuses every request.
    pub(crate) fn is_wedged(&self) -> bool {
        self.state.commands.check_alive(self.index).is_err()
    }
}
