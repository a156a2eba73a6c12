//! A user's own first stage on top of its domain's second stage, and untranslated streams.
//!
//! The user says what it would tell an SMMU of its own: a stream table entry, and commands. Both are looked at word by
//! word (`spec`); the VMID and the second stage are ours in any case, so that what its first stage leads to goes through
//! the domain's tables.

#![expect(unsafe_code, reason = "binding a device hands it memory")]

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_core::{Access, PciAddress};
use hv_iommu::{
    BadRequest, Binding, FaultClass, FaultStage, FaultStep, FlushTicket, HwDomainId,
    IdentityBackend, NestedBackend, NotTaken, RawFault, ReplaceBackend, ReplaceNestedBackend,
    UnitError, UnitIndex, Unmet,
};

use crate::backend::Smmu;
use crate::caps::output_size;
use crate::invalidate::vmid;
use crate::spec::command::{BadCommand, Command, Takes, UserCommand};
use crate::spec::event::EventKind;
use crate::spec::event::user::{UserFault, UserPlace};
use crate::spec::quirks::Quirk;
use crate::spec::stream_entry::{BadUserEntry, ContextTableFormat, FirstStageContexts, WORDS};
use crate::spec::user_unit::UserUnit;
use crate::spec::walk::Walk;
use crate::unit::{Unit, UnitInfo};
use crate::vmsa::Tables;
use crate::{StreamId, SubstreamId};

/// A user's first stage, looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserStage(FirstStageContexts);

impl UserStage {
    pub(crate) const fn contexts(&self) -> &FirstStageContexts {
        &self.0
    }
}

/// The words of a user's stream table entry, as they came, where it is one of a first stage (V, Config of stage 1, and the
/// fields of stage 1, S1Fmt to S1STALLD; all else zero). Others are no malformed ones
/// ([`NestedError::NoStage`](hv_iommu::NestedError::NoStage)): one that bypasses is the parent domain itself, attached; one
/// that aborts, or is not valid, is a group that is [parked](hv_iommu::Group::park).
pub type UserEntryWords = [u64; WORDS];

/// The words of a user's command, as they came: CFGI_CD, CFGI_CD_ALL, TLBI_NH_ALL, TLBI_NH_ASID, TLBI_NH_VA or TLBI_NH_VAA.
///
/// Others that a user may give are refused as the embedder's to do
/// ([`InvalidateRefusal::Embedders`](hv_iommu::InvalidateRefusal::Embedders)): CMD_SYNC is done when
/// [`invalidate`](hv_iommu::Domain::invalidate) is back; behind CFGI_STE and CFGI_ALL the user's entries are looked at again,
/// and what became another one is [replaced](hv_iommu::Group::replace); TLBI_NSNH_ALL of a user is TLBI_NH_ALL;
/// PREFETCH_CONFIG and PREFETCH_ADDR are hints; RESUME and STALL_TERM, of a user that is shown a unit whose faults stall, answer
/// nothing, since each request was aborted before the user was told of it. The rest is malformed: a unit of the user's own would stop at it (CERROR_ILL).
///
/// A user is to be shown an SMMU that takes no more than all of the machine's, which is
/// [`Iommu::user_unit`](hv_iommu::Iommu::user_unit), and [`Discovery::user_unit`](crate::Discovery::user_unit) before bring-up.
pub type UserCommandWords = [u64; crate::spec::command::WORDS];

/// The words of an event in a user's event queue.
pub type UserEventWords = [u64; crate::spec::event::WORDS];

/// What a user is told of a fault of a device of its own on a [`Nested`](hv_iommu::Nested) domain, where it has the device as
/// `stream`: the record for the event queue of the SMMU that it is shown. That is what its first stage refused, and what that
/// stage put where its parent has nothing: contexts (F_CD_FETCH) and tables (F_WALK_EABT).
///
/// `None` where a unit of a first stage alone records nothing: the stage led the request itself to where the parent has
/// nothing, which ends like any access to no memory, or the fault is of something that no user decides. A request without a
/// substream that is wider than the unit takes is told (F_ADDR_SIZE), whether the user's entry let it pass the first stage over
/// or that stage gave out such an address, or the user had no first stage yet: its own unit tells of all three (IHI 0070, 3.4).
pub fn user_event(fault: &RawFault, stream: StreamId) -> Option<UserEventWords> {
    let detail = &fault.detail;
    let place = match (fault.stage, detail.step, detail.second_stage_page) {
        (Some(FaultStage::Second), Some(FaultStep::Context), Some(page)) => {
            UserPlace::ContextOutOfReach(page)
        }
        (Some(FaultStage::Second), Some(FaultStep::Table), Some(page)) => {
            UserPlace::TableOutOfReach(page)
        }
        (None, Some(FaultStep::Input), _) if fault.class == FaultClass::AddressTooWide => {
            UserPlace::FirstStage
        }
        _ if fault.is_of_users_stage() => UserPlace::FirstStage,
        _ => return None,
    };
    let told = UserFault {
        kind: EventKind::from_number(u8::try_from(fault.code).ok()?),
        substream: fault.pasid.and_then(|pasid| SubstreamId::new(pasid.get())),
        address: detail.address.unwrap_or(fault.address),
        is_read: fault.access == Access::Read,
        is_instruction: detail.is_instruction,
        is_privileged: detail.is_privileged,
        place,
    };
    told.event(stream).map(|event| event.words())
}

/// What users may be shown of these units, of those among them that nest.
pub(crate) fn user_unit<'a, F: Tables>(
    units: impl Iterator<Item = &'a UnitInfo>,
) -> Option<UserUnit> {
    let nesting = units.filter(|info| info.nests());
    let mut each = nesting.map(|info| {
        let registers = (info.idr0, info.idr1, info.idr3, info.idr5);
        let output = output_size(info.idr5, F::GRANULE);
        UserUnit::of_unit(registers, info.aidr, info.coherent, output)
    });
    let first = each.next()?;
    each.try_fold(first, UserUnit::and)
}

// SAFETY: a nested binding is one entry of both stages whose second stage is that of `parent` (`Unit::bind_nested`): each
// address that the first stage gives, and those of its own tables, go through it. It comes down as other bindings do.
// A flush of a whole domain is TLBI_S12_VMALL, which names what was made of both stages.
unsafe impl<P: Platform, F: Tables> NestedBackend for Smmu<P, F> {
    type UserStage = UserEntryWords;
    type FirstStage = UserStage;
    type UserInvalidation = UserCommandWords;
    type Invalidation = UserCommand;
    type UserUnit = UserUnit;

    fn user_unit(&self) -> Option<UserUnit> {
        user_unit::<F>(self.units())
    }

    fn check_stage(&self, user: &UserEntryWords) -> Result<UserStage, NotTaken> {
        // How descriptors are read is each unit's; see `bind_nested`.
        FirstStageContexts::of_user(user, self.user_unit().as_ref(), Walk::Coherent)
            .map(UserStage)
            .map_err(entry_refused)
    }

    fn serves_stage(&self, unit: UnitIndex, stage: &UserStage) -> Result<(), Unmet> {
        let Some(info) = self.units().nth(unit.index()) else {
            return Err(Unmet::absent("the unit"));
        };
        if !info.nests() {
            let what = match info.quirks.has(Quirk::NoNesting) {
                true => "both stages at once, in spite of an erratum",
                false => "both stages at once",
            };
            return Err(Unmet::absent(what));
        }
        let contexts = stage.contexts();
        let bits = info.idr1.ssidsize();
        if contexts.log2() > bits {
            return Err(Unmet {
                what: "bits of a substream id",
                needed: contexts.log2().into(),
                found: bits.into(),
            });
        }
        if contexts.format() != ContextTableFormat::Linear && !info.idr0.cd2l() {
            return Err(Unmet::absent("context descriptors in two levels"));
        }
        Ok(())
    }

    unsafe fn bind_nested(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        parent: Binding,
        stage: &UserStage,
    ) -> Result<Option<FlushTicket>, UnitError> {
        let stream = self.stream(unit, requester, parent.domain)?;
        // SAFETY: the caller's promise, handed on unchanged.
        unsafe {
            self.unit(unit)?
                .bind_nested::<F>(self.platform_of(), stream, parent, stage)
        }
    }

    fn check_invalidation(&self, user: &UserCommandWords) -> Result<UserCommand, NotTaken> {
        // As the user was shown, if it was shown anything.
        let shown = self.user_unit();
        let takes = Takes {
            ranges: shown.is_some_and(|unit| unit.idr3.range_invalidation().is_some()),
            asid_bits: shown.map_or(8, |unit| unit.idr0.asid_bits()),
            stalls: shown.is_some_and(|unit| unit.stalls()),
        };
        UserCommand::decode(user, takes).map_err(command_refused)
    }

    fn submit_nested(
        &self,
        unit: UnitIndex,
        parent: HwDomainId,
        invalidation: &UserCommand,
    ) -> Result<FlushTicket, UnitError> {
        let other = u16::from(Fault::UserCommandOtherVmid.is_on());
        let parent = HwDomainId::new(parent.get().wrapping_add(other));
        let (unit, vmid) = (self.unit(unit)?, vmid(parent));
        match invalidation.under(vmid) {
            Some(command) => unit.command(self.platform_of(), command),
            None => unit.forget_users_contexts(self.platform_of(), vmid),
        }
    }

    fn submit_forget_first_stages(
        &self,
        unit: UnitIndex,
        parent: HwDomainId,
    ) -> Result<FlushTicket, UnitError> {
        let (unit, vmid) = (self.unit(unit)?, vmid(parent));
        // Contexts before what is translated by them: behind the sync in between, nothing is translated by an old one anew.
        let contexts = unit.forget_users_contexts(self.platform_of(), vmid)?;
        if Fault::FirstStagesKept.is_on() {
            return Ok(contexts);
        }
        let all = Command::tlb_first_vmid(vmid);
        Ok(unit.command(self.platform_of(), all)?.and(contexts))
    }
}

// SAFETY: an entry is switched only where no mixture of words that a unit may read is another entry than the old one or the new
// (`Update::is_hitless`, pinned mixture by mixture), a sync behind each step, so its requests go by either. Nothing was stored
// where it is refused; where a wait fails in the middle, what stands is one of the mixtures. The ticket is of TLBI_S12_VMALL
// behind a sync of CFGI_STE, which drops contexts too (IHI 0070, 4.3.1): by then nothing is made by the old entry any more.
unsafe impl<P: Platform, F: Tables> ReplaceBackend for Smmu<P, F> {
    fn replaces_live(&self, unit: UnitIndex) -> bool {
        self.unit(unit).is_ok_and(Unit::replaces_live)
    }

    unsafe fn rebind(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        from: HwDomainId,
        to: Binding,
    ) -> Result<FlushTicket, UnitError> {
        let stream = self.stream(unit, requester, from)?;
        let unit = self.unit(unit)?;
        // SAFETY: the caller's promise, handed on unchanged.
        unsafe { unit.rebind::<F>(self.platform_of(), stream, from, to) }
    }
}

// SAFETY: as above.
unsafe impl<P: Platform, F: Tables> ReplaceNestedBackend for Smmu<P, F> {
    unsafe fn rebind_nested(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        from: HwDomainId,
        parent: Binding,
        stage: &UserStage,
    ) -> Result<FlushTicket, UnitError> {
        let stream = self.stream(unit, requester, from)?;
        let unit = self.unit(unit)?;
        // SAFETY: the caller's promise, handed on unchanged.
        unsafe { unit.rebind_nested::<F>(self.platform_of(), stream, from, parent, stage) }
    }
}

// SAFETY: a bypassing entry lets requests through as they are, and carries the domain's id, by which `unbind` finds that it
// is its own.
unsafe impl<P: Platform, F: Tables> IdentityBackend for Smmu<P, F> {
    fn passes_through(&self, _unit: UnitIndex) -> bool {
        true
    }

    unsafe fn bind_identity(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        domain: HwDomainId,
    ) -> Result<Option<FlushTicket>, UnitError> {
        let stream = self.stream(unit, requester, domain)?;
        // SAFETY: the caller's promise, handed on unchanged.
        unsafe {
            self.unit(unit)?
                .bind_identity(self.platform_of(), stream, domain)
        }
    }
}

fn entry_refused(bad: BadUserEntry) -> NotTaken {
    NotTaken::Malformed(match bad {
        BadUserEntry::NoFirstStage(word) => {
            return NotTaken::Embedders(BadRequest {
                what: "word 0 of the stream table entry",
                expected: "a valid entry that translates by a first stage",
                found: word,
            });
        }
        BadUserEntry::Config(word) => BadRequest {
            what: "word 0 of the stream table entry",
            expected: "a first stage and no second one",
            found: word,
        },
        BadUserEntry::Reserved(word, bits) => BadRequest {
            what: ENTRY_WORDS
                .get(word)
                .copied()
                .unwrap_or("the stream table entry"),
            expected: "zero in these bits",
            found: bits,
        },
        BadUserEntry::Pointer(address) => BadRequest {
            what: "S1ContextPtr of the stream table entry",
            expected: "an address of as many bits as the user is shown (OAS)",
            found: address,
        },
        BadUserEntry::Contexts(code) => BadRequest {
            what: "S1CDMAX of the stream table entry",
            expected: "at most 20",
            found: code.into(),
        },
    })
}

const ENTRY_WORDS: [&str; WORDS] = [
    "word 0 of the stream table entry",
    "word 1 of the stream table entry",
    "word 2 of the stream table entry",
    "word 3 of the stream table entry",
    "word 4 of the stream table entry",
    "word 5 of the stream table entry",
    "word 6 of the stream table entry",
    "word 7 of the stream table entry",
];

/// The commands that are done here.
const DONE: &str = "CFGI_CD, CFGI_CD_ALL, TLBI_NH_ALL, TLBI_NH_ASID, TLBI_NH_VA or TLBI_NH_VAA";

fn command_refused(bad: BadCommand) -> NotTaken {
    let opcode = |code: u8| BadRequest {
        what: "the command's opcode",
        expected: DONE,
        found: code.into(),
    };
    NotTaken::Malformed(match bad {
        BadCommand::Embedders(code) => return NotTaken::Embedders(opcode(code)),
        BadCommand::Opcode(code) => opcode(code),
        BadCommand::Reserved(word, bits) => BadRequest {
            what: match word {
                0 => "word 0 of the command",
                _ => "word 1 of the command",
            },
            expected: "zero in these bits",
            found: bits,
        },
        BadCommand::Range(word) => BadRequest {
            what: "the range in word 1 of the command",
            expected: "an address aligned to its granule and leaves, in no reserved form",
            found: word,
        },
    })
}
