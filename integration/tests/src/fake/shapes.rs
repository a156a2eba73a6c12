//! What the fake can do beyond plain tables: first stages, PASIDs, identity, replacing an entry at once.

use core::time::Duration;

use hv_core::{Gpa, PageSize, Pasid, PciAddress};
use hv_iommu::{
    BadRequest, Binding, FlushTicket, HwDomainId, IdentityBackend, NestedBackend, NotTaken,
    PasidBackend, ReplaceBackend, UnitCaps, UnitError, UnitIndex, Unmet,
};

use super::unit::{Effect, Who};
use super::{Answer, Call, Fake, Logged, broken};
use crate::heap;

/// What an entry leads to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    Tables(Binding),
    Nested(Binding, Stage),
    Untranslated(HwDomainId),
}

/// An entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    pub(super) way: Way,
}

impl Bound {
    pub(super) fn domain(&self) -> HwDomainId {
        match self.way {
            Way::Tables(binding) | Way::Nested(binding, _) => binding.domain,
            Way::Untranslated(domain) => domain,
        }
    }
}

/// What one unit can do beyond plain tables, where its `UnitCaps` do not say so.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// Bits of a PASID that it looks at.
    pub pasid_bits: u8,
    /// Whether it tells PASIDs apart by first-stage tables alone, although it walks second-stage ones.
    pub pasids_by_first_stages: bool,
    /// Whether it can let requests through untranslated.
    pub pass_through: bool,
    /// Whether it can replace an entry at once.
    pub replace: bool,
}

impl Features {
    /// All of it; of PASIDs it looks at 8 bits.
    pub const ALL: Self = Self {
        pasid_bits: 8,
        pasids_by_first_stages: false,
        pass_through: true,
        replace: true,
    };
}

/// Words of a first stage's one table: word n, `page | 1` (read) `| 2` (write), is for page n.
pub const FIRST_STAGE_WORDS: u64 = 512;

/// What a user says about its first stage.
#[derive(Clone, Copy, Debug)]
pub struct UserStage {
    /// Where its table is, as a guest address.
    pub table: u64,
    /// How many levels it has; units walk one.
    pub levels: u64,
}

/// A well-formed first stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Where its table is.
    pub table: Gpa,
    levels: u64,
}

/// What to forget of a first stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forget {
    /// All of it.
    All,
    /// The page with this number.
    Page(u64),
}

impl<T> Fake<T> {
    /// What the unit can do from now on.
    pub fn features(&self, unit: usize, features: Features) {
        self.lock_unit(unit).features = features;
    }

    /// What requests with this PASID are bound to.
    pub fn bound_pasid(&self, requester: PciAddress, pasid: Pasid) -> Option<HwDomainId> {
        let unit = self.lock_unit(self.index_of(requester)?);
        let bound = unit.bindings.get(&(requester, Some(pasid)));
        bound.map(Bound::domain)
    }

    fn features_of(&self, unit: UnitIndex) -> Option<Features> {
        self.unit(unit).ok().map(|unit| unit.features)
    }

    /// What the unit can do for domains with PASIDs.
    pub(super) fn caps_with_pasids(&self, unit: UnitIndex) -> Option<UnitCaps> {
        let unit = self.unit(unit).ok()?;
        if unit.features.pasid_bits == 0 {
            return None;
        }
        let second_stage = unit.caps.second_stage && !unit.features.pasids_by_first_stages;
        Some(UnitCaps {
            second_stage,
            write_only: unit.caps.write_only && second_stage,
            nested: unit.caps.nested && second_stage,
            ..unit.caps
        })
    }

    /// Binds whatever there is to bind.
    pub(super) fn put(
        &self,
        index: UnitIndex,
        who: Who,
        bound: Bound,
    ) -> Result<Option<FlushTicket>, UnitError> {
        let (mut unit, answer) = self.called(index, Call::Bind)?;
        let (requester, _) = who;
        if unit.wedged {
            return Err(UnitError::Wedged { unit: index });
        }
        if let Some(there) = unit.bindings.get(&who) {
            let domain = there.domain();
            return Err(UnitError::AlreadyBound { requester, domain });
        }
        if matches!(answer, Answer::TimesOut) {
            unit.wedged = true;
            return Err(UnitError::Timeout {
                unit: index,
                what: "a deliberate wait in a bind",
                waited: Duration::ZERO,
            });
        }
        if !matches!(answer, Answer::Completes(_) | Answer::RefusesLate) {
            return Err(broken(index));
        }
        unit.log.push(Logged::Bind(requester, bound.domain()));
        unit.bindings.insert(who, bound);
        unit.quiet.remove(&requester);
        let Answer::Completes(completion) = answer else {
            return Err(broken(index));
        };
        let ticket = unit.caps.sync_on_map.then(|| {
            let sequence = unit.enqueue(Effect::Bound(who), completion);
            FlushTicket::alone(sequence)
        });
        let job = unit.after_bind.take_if(|(after, _)| *after == requester);
        drop(unit);
        if let Some((_, job)) = job {
            job();
        }
        Ok(ticket)
    }

    /// Takes down whatever is bound.
    pub(super) fn take(
        &self,
        index: UnitIndex,
        who: Who,
        domain: HwDomainId,
    ) -> Result<FlushTicket, UnitError> {
        let (requester, _) = who;
        let bound = {
            let unit = self.interrupted(index, Call::Unbind)?;
            unit.bindings.get(&who).copied()
        };
        if bound.is_none_or(|bound| bound.domain() != domain) {
            return Err(UnitError::NotBound { requester, domain });
        }
        let (mut unit, answer) = self.called(index, Call::Unbind)?;
        unit.bindings.remove(&who);
        let bus_master = self.host().bus_master(requester);
        unit.log.push(Logged::Unbind {
            requester,
            bus_master,
        });
        if unit.wedged {
            return Err(UnitError::Wedged { unit: index });
        }
        let Answer::Completes(completion) = answer else {
            return Err(broken(index));
        };
        let sequence = unit.enqueue(Effect::Forget(who, domain), completion);
        Ok(FlushTicket::alone(sequence))
    }
}

// SAFETY: a request through a first stage goes through the parent's tables with its table's address and
// with what that says (`Unit::both_stages`). A flush of the domain removes what came out of both, a deep
// one where tables are.
unsafe impl<T: 'static> NestedBackend for Fake<T> {
    type UserStage = UserStage;
    type FirstStage = Stage;
    type UserInvalidation = [u64; 2];
    type Invalidation = Forget;
    /// The most levels of a first stage.
    type UserUnit = u64;

    fn user_unit(&self) -> Option<u64> {
        Some(1)
    }

    fn check_stage(&self, user: &UserStage) -> Result<Stage, NotTaken> {
        let table = Gpa::new(user.table);
        if !table.is_aligned(PageSize::Size4K) {
            return Err(NotTaken::Malformed(BadRequest {
                what: "the first stage's table",
                expected: "the address of a page",
                found: user.table,
            }));
        }
        if !(1..=2).contains(&user.levels) {
            return Err(NotTaken::Malformed(BadRequest {
                what: "the first stage's number of levels",
                expected: "1 or 2",
                found: user.levels,
            }));
        }
        let levels = user.levels;
        Ok(Stage { table, levels })
    }

    fn serves_stage(&self, _unit: UnitIndex, stage: &Stage) -> Result<(), Unmet> {
        if stage.levels == 1 {
            return Ok(());
        }
        Err(Unmet {
            what: "levels of a first stage",
            needed: stage.levels,
            found: 1,
        })
    }

    unsafe fn bind_nested(
        &self,
        index: UnitIndex,
        requester: PciAddress,
        parent: Binding,
        stage: &Stage,
    ) -> Result<Option<FlushTicket>, UnitError> {
        let _exempt = heap::exempt();
        let way = Way::Nested(parent, *stage);
        self.put(index, (requester, None), Bound { way })
    }

    fn check_invalidation(&self, user: &[u64; 2]) -> Result<Forget, NotTaken> {
        match *user {
            [0, 0] => Ok(Forget::All),
            [1, page] if page < FIRST_STAGE_WORDS => Ok(Forget::Page(page)),
            [1, found] => Err(NotTaken::Malformed(BadRequest {
                what: "the page to forget",
                expected: "below 512",
                found,
            })),
            [0, found] => Err(NotTaken::Malformed(BadRequest {
                what: "the second word of a request for all",
                expected: "0",
                found,
            })),
            [found, _] => Err(NotTaken::Malformed(BadRequest {
                what: "the kind of invalidation",
                expected: "0 or 1",
                found,
            })),
        }
    }

    fn submit_nested(
        &self,
        index: UnitIndex,
        parent: HwDomainId,
        invalidation: &Forget,
    ) -> Result<FlushTicket, UnitError> {
        let _exempt = heap::exempt();
        let (mut unit, answer) = self.called(index, Call::Nested)?;
        if unit.wedged {
            return Err(UnitError::Wedged { unit: index });
        }
        unit.log.push(Logged::Nested(parent));
        let Answer::Completes(completion) = answer else {
            return Err(broken(index));
        };
        let effect = Effect::Nested(parent, *invalidation);
        let sequence = unit.enqueue(effect, completion);
        Ok(FlushTicket::alone(sequence))
    }

    fn submit_forget_first_stages(
        &self,
        index: UnitIndex,
        parent: HwDomainId,
    ) -> Result<FlushTicket, UnitError> {
        self.submit_nested(index, parent, &Forget::All)
    }
}

// SAFETY: a request's PASID is part of whose request it is: its entry, and what is cached of that, are
// apart from the requester's own. What is cached behind an entry is filed under the domain's id.
unsafe impl<T: 'static> PasidBackend for Fake<T> {
    fn pasid_bits(&self, unit: UnitIndex, _requester: PciAddress) -> u8 {
        self.features_of(unit)
            .map_or(0, |features| features.pasid_bits)
    }

    unsafe fn bind_pasid(
        &self,
        index: UnitIndex,
        requester: PciAddress,
        pasid: Pasid,
        binding: Binding,
    ) -> Result<Option<FlushTicket>, UnitError> {
        let _exempt = heap::exempt();
        let way = Way::Tables(binding);
        self.put(index, (requester, Some(pasid)), Bound { way })
    }

    fn unbind_pasid(
        &self,
        index: UnitIndex,
        requester: PciAddress,
        pasid: Pasid,
        domain: HwDomainId,
    ) -> Result<FlushTicket, UnitError> {
        let _exempt = heap::exempt();
        self.take(index, (requester, Some(pasid)), domain)
    }
}

// SAFETY: the entry is put and taken as any other.
unsafe impl<T: 'static> IdentityBackend for Fake<T> {
    fn passes_through(&self, unit: UnitIndex) -> bool {
        self.features_of(unit)
            .is_some_and(|features| features.pass_through)
    }

    unsafe fn bind_identity(
        &self,
        index: UnitIndex,
        requester: PciAddress,
        domain: HwDomainId,
    ) -> Result<Option<FlushTicket>, UnitError> {
        let _exempt = heap::exempt();
        let way = Way::Untranslated(domain);
        self.put(index, (requester, None), Bound { way })
    }
}

// SAFETY: the entry is replaced by one insertion, under the lock that requests take; what was cached of
// it and of the old domain goes with the ticket.
unsafe impl<T: 'static> ReplaceBackend for Fake<T> {
    fn replaces_live(&self, unit: UnitIndex) -> bool {
        self.features_of(unit)
            .is_some_and(|features| features.replace)
    }

    unsafe fn rebind(
        &self,
        index: UnitIndex,
        requester: PciAddress,
        from: HwDomainId,
        to: Binding,
    ) -> Result<FlushTicket, UnitError> {
        let _exempt = heap::exempt();
        let who = (requester, None);
        let (mut unit, answer) = self.called(index, Call::Rebind)?;
        let domain = from;
        if unit
            .bindings
            .get(&who)
            .is_none_or(|bound| bound.domain() != from)
        {
            return Err(UnitError::NotBound { requester, domain });
        }
        if unit.wedged {
            return Err(UnitError::Wedged { unit: index });
        }
        if answer == Answer::Busy {
            let waited = Duration::from_millis(1);
            return Err(UnitError::Busy {
                unit: index,
                waited,
            });
        }
        if !matches!(answer, Answer::Completes(_) | Answer::RefusesLate) {
            return Err(broken(index));
        }
        unit.log.push(Logged::Rebind(requester, from, to.domain));
        let way = Way::Tables(to);
        unit.bindings.insert(who, Bound { way });
        let Answer::Completes(completion) = answer else {
            return Err(broken(index));
        };
        let sequence = unit.enqueue(Effect::Forget(who, from), completion);
        Ok(FlushTicket::alone(sequence))
    }
}
