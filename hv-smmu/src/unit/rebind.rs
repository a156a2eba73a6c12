//! Live entries that become other ones without a moment in which a request is refused: where one store decides.
//!
//! That is so between a domain's second stage and users' first stages on top of it, and among these unless they differ in what
//! becomes of requests without a substream (the table of [`entry_update`](crate::entry_update)). Other pairs are refused by name
//! before anything is stored.

#![expect(unsafe_code, reason = "binding a device hands it memory")]

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_iommu::{Binding, FlushTicket, HwDomainId, UnitError};

use super::{Enabled, Stream, Unit};
use crate::entry_update::Update;
use crate::invalidate::{Filed, vmid};
use crate::nested::UserStage;
use crate::spec::command::{Command, Depth, SyncSignal};
use crate::spec::stream_entry::{Config, StreamTableEntry, WORDS, vmid_of};
use crate::vmsa::{Stage, Tables};

impl<P: Platform> Unit<P, Enabled> {
    /// Whether there are entries that can be switched while they are live: it takes both stages.
    pub(crate) const fn replaces_live(&self) -> bool {
        self.info.nests()
    }

    /// Switches a stream from the domain `from` to `to`, whose tables are of format `F`. See
    /// [`hv_iommu::ReplaceBackend::rebind`].
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn rebind<F: Tables>(
        &self,
        platform: &P,
        stream: Stream,
        from: HwDomainId,
        to: Binding,
    ) -> Result<FlushTicket, UnitError> {
        if self.stage_of(to.domain) == Stage::First {
            // Its descriptor is the one that is in use.
            let requester = stream.requester;
            return Err(UnitError::NeedsGap { requester });
        }
        let (tables, options) = self.second_stage::<F>(to)?;
        let target = StreamTableEntry::second_stage(&tables, &options).words();
        let ticket = self.switch(platform, stream, from, &target)?;
        // The unit was asked to forget what led to a user's contexts, if something did.
        self.state.nested.leave(vmid(from), stream.id);
        Ok(ticket)
    }

    /// Switches a stream from the domain `from` to a user's first stage on top of `parent`. See
    /// [`hv_iommu::ReplaceNestedBackend::rebind_nested`].
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn rebind_nested<F: Tables>(
        &self,
        platform: &P,
        stream: Stream,
        from: HwDomainId,
        parent: Binding,
        stage: &UserStage,
    ) -> Result<FlushTicket, UnitError> {
        let target = self.nested_entry::<F>(parent, stage)?;
        self.on_first_stage(platform, stream, parent.domain, || {
            self.switch(platform, stream, from, &target)
        })
    }

    /// Takes the steps to `target`, and gives the ticket of a flush behind them of all that `from` left.
    ///
    /// An entry that somebody made abort meanwhile stays as it is: whoever has the stream takes it down as one that is bound.
    fn switch(
        &self,
        platform: &P,
        stream: Stream,
        from: HwDomainId,
        target: &[u64; WORDS],
    ) -> Result<FlushTicket, UnitError> {
        let commands = &self.state.commands;
        commands.check_alive(self.index)?;
        let reach = self.reach(platform);
        let requester = stream.requester;
        let not_bound = UnitError::NotBound {
            requester,
            domain: from,
        };
        let entry = self.state.streams.entry(&reach, stream.id)?;
        let entry = entry.ok_or(not_bound)?;
        let want = |before: &[u64; WORDS]| {
            let is_stopped = Config::of(before) == Some(Config::Abort);
            if is_stopped && vmid_of(before) == vmid(from) && vmid_of(target) == vmid(from) {
                return Ok(*before);
            }
            if self.domain_of(&reach, stream, before) != Some(from) {
                return Err(not_bound);
            }
            match Update::between(*before, *target).is_hitless() {
                true => Ok(*target),
                false => Err(UnitError::NeedsGap { requester }),
            }
        };
        let context = self.queue_with(platform);
        // Whether the queue takes anything shows before something is stored.
        self.wait_between(&context, &[], "what was asked for before a switch")?;
        let stuck = |error| match error {
            // Not one that says that nothing was changed.
            UnitError::Busy { unit, waited } => UnitError::Timeout {
                unit,
                what: "the switch of a live entry",
                waited,
            },
            other => other,
        };
        if Fault::SwitchThroughAbort.is_on() && want(&entry.read()).is_ok() {
            entry.abort(&reach);
            let forget = [Command::config_stream(stream.id, Depth::Leaves)];
            self.wait_between(&context, &forget, "a deliberate fault")?;
            self.update(platform, stream.id, &entry, |_| Ok(*target))?;
        }
        let ticket = self.update(platform, stream.id, &entry, want);
        let ticket = ticket.map_err(stuck)?;
        if Fault::SwitchKeepsTranslations.is_on() {
            return Ok(ticket);
        }
        // Behind the sync of the entry: until then translations may be made by the old one.
        let forget = [
            Command::sync(SyncSignal::None),
            Filed::of(from, self.stage_of(from)).all(),
        ];
        let behind = commands.submit_patiently(&context, &forget);
        // For the entry as well: a unit that refuses to read it anew goes by the old one.
        behind.map(|behind| behind.and(ticket)).map_err(stuck)
    }
}
