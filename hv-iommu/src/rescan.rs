//! Groups from functions: at the start, and when functions come and go later.
//!
//! All functions are sorted into groups anew. A group that comes out as it was stays whatever it is; any other has to
//! be at rest, and is handed in. So a function that is not kept apart from a group that somebody holds gets no group,
//! and nobody can let it send.

use alloc::vec::Vec;
use core::fmt;

use hv_core::fault::Fault;
use hv_core::list::push;
use hv_core::platform::PciConfig;
use hv_core::{OutOfMemory, OwnerId, PciAddress, Shared};
use thiserror::Error;

use crate::backend::Backend;
use crate::cxl_cache::stop_caching;
use crate::device_tlb::stop_leftover;
use crate::dma::Trust;
use crate::group::{GroupId, Inner, clear_bus_mastering};
use crate::reserved::{ReservedKind, ReservedRegion};
use crate::rest::AtRest;
use crate::system::{Iommu, System};
use crate::topology::{GroupPlan, Known, PciFunction, Placed, Senders, Topology, group_plans};

/// Why functions were not taken in, or let go. Nothing was changed, but that those that were new have no bus mastering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RescanError {
    /// A group would change that somebody holds.
    #[error(
        "{function} changes what {group} is made of, which somebody holds: bring the group to rest and hand it in"
    )]
    Held {
        /// The group.
        group: GroupId,
        /// The function that joins it, or leaves it.
        function: PciAddress,
    },
    /// There is no such function to let go.
    #[error("{0} is not known")]
    Unknown(PciAddress),
    /// A group that was handed in is of another subsystem.
    #[error("{0} is of another subsystem")]
    OtherSystem(GroupId),
    /// Another context took functions in or let some go meanwhile.
    #[error("functions came or went in another context meanwhile: call again")]
    Busy,
    /// There was no memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// What a failed call gives back.
pub struct RescanFailed<B: Backend> {
    /// The groups that were handed in.
    pub at_rest: Vec<AtRest<B>>,
    /// Why.
    pub error: RescanError,
}

impl<B: Backend> fmt::Display for RescanFailed<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl<B: Backend> fmt::Debug for RescanFailed<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<B: Backend> core::error::Error for RescanFailed<B> {}

/// The groups after functions came or went.
#[must_use = "a dropped group can never be claimed again"]
pub struct Rescanned<B: Backend> {
    /// Those that were handed in, as far as they still are, and the new ones.
    pub groups: Vec<AtRest<B>>,
    /// Those that are no more.
    pub ended: Vec<GroupId>,
}

impl<B: Backend> fmt::Debug for Rescanned<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, ended {:?}", self.groups, self.ended)
    }
}

impl<B: Backend> Iommu<B> {
    /// Takes in functions that came after [`Iommu::new`]: plugged in, or virtual ones. Virtual functions are told of
    /// by the function that has them, which is given once more with them; what is given of a known function replaces
    /// what was. What else its registers said when it first came in (ACS, buses, ARI) goes on being what a reset is
    /// measured by.
    ///
    /// New functions lose bus mastering first. They make groups of their own, at rest; or join groups of `at_rest`,
    /// which keep their numbers. Two groups that are no longer apart become one.
    ///
    /// # Errors
    /// [`RescanFailed`] with the groups. The new functions have no bus mastering and are in no group.
    pub fn add_functions(
        &self,
        functions: &[PciFunction],
        at_rest: Vec<AtRest<B>>,
    ) -> Result<Rescanned<B>, RescanFailed<B>> {
        let config = self.0.backend.platform();
        rescan(&self.0, at_rest, false, |old| {
            let mut new = Vec::new();
            let is_given = |known: &&Known| {
                let same = |given: &PciFunction| given.address == known.given.address;
                functions.iter().any(same)
            };
            for known in old.functions.iter().filter(|known| !is_given(known)) {
                push(&mut new, *known)?;
            }
            for given in functions {
                let same = |known: &&Known| known.given.address == given.address;
                let known = match old.functions.iter().find(same) {
                    Some(known) => known.again(config, *given),
                    None => Known::new(config, *given),
                };
                push(&mut new, known)?;
            }
            Ok(new)
        })
    }

    /// Lets functions go that were pulled out, with their virtual ones. Their groups are of `at_rest`, and end, or go
    /// on with the members that are left.
    ///
    /// # Errors
    /// [`RescanFailed`] with the groups. All functions are known as before.
    pub fn remove_functions(
        &self,
        functions: &[PciAddress],
        at_rest: Vec<AtRest<B>>,
    ) -> Result<Rescanned<B>, RescanFailed<B>> {
        rescan(&self.0, at_rest, false, |old| {
            let is_known = |at: &&PciAddress| {
                old.functions
                    .iter()
                    .any(|known| known.given.address == **at)
            };
            if let Some(unknown) = functions.iter().find(|at| !is_known(at)) {
                return Err(RescanError::Unknown(*unknown));
            }
            let mut new = Vec::new();
            for known in &old.functions {
                if !functions.contains(&known.given.address) {
                    push(&mut new, *known)?;
                }
            }
            Ok(new)
        })
    }
}

/// Sorts the functions of a machine into groups. A group of which some requester is covered by no unit, or by
/// another unit than the rest, is left out: it can never be claimed.
pub(crate) fn discover<B: Backend>(
    system: &Shared<System<B>>,
    functions: &[PciFunction],
    keeps: bool,
) -> Result<Vec<AtRest<B>>, OutOfMemory> {
    let config = system.backend.platform();
    let found = rescan(system, Vec::new(), keeps, |_| {
        let mut new = Vec::new();
        for given in functions {
            push(&mut new, Known::new(config, *given))?;
        }
        Ok(new)
    });
    match found {
        Ok(found) => Ok(found.groups),
        Err(failed) => match failed.error {
            RescanError::OutOfMemory(error) => Err(error),
            // Nobody holds a group, or knows the subsystem, before there is one.
            _ => Ok(Vec::new()),
        },
    }
}

fn rescan<B: Backend>(
    system: &Shared<System<B>>,
    at_rest: Vec<AtRest<B>>,
    keeps: bool,
    functions: impl FnOnce(&Topology) -> Result<Vec<Known>, RescanError>,
) -> Result<Rescanned<B>, RescanFailed<B>> {
    let prepared = prepare(system, &at_rest, keeps, functions);
    let Change {
        mut new,
        touched,
        fresh,
        mut groups,
        mut ended,
    } = match prepared {
        Ok(change) => change,
        Err(error) => return Err(RescanFailed { at_rest, error }),
    };
    let mut topology = system.topology.lock();
    if topology.changes != new.changes {
        drop(topology);
        let error = RescanError::Busy;
        return Err(RescanFailed { at_rest, error });
    }
    new.changes += 1;
    let old = core::mem::replace(&mut *topology, new);
    drop(topology);
    drop(old);
    {
        // What somebody else did under the same id is not charged to them.
        let mut registry = system.registry.lock();
        for group in &fresh {
            registry.strangers.forget(&group.inner().requesters);
        }
    }
    // Within what was reserved: nothing fails from here on.
    let is_touched = |group: &AtRest<B>| touched.contains(&group.id());
    ended.extend(
        touched
            .iter()
            .filter(|id| !fresh.iter().any(|group| group.id() == **id)),
    );
    groups.extend(at_rest.into_iter().filter(|group| !is_touched(group)));
    groups.extend(fresh);
    Ok(Rescanned { groups, ended })
}

/// A change that is worked out, and not yet made.
struct Change<B: Backend> {
    new: Topology,
    /// Groups that do not stay as they are.
    touched: Vec<GroupId>,
    fresh: Vec<AtRest<B>>,
    /// Empty, with room for all.
    groups: Vec<AtRest<B>>,
    ended: Vec<GroupId>,
}

fn prepare<B: Backend>(
    system: &Shared<System<B>>,
    at_rest: &[AtRest<B>],
    keeps: bool,
    functions: impl FnOnce(&Topology) -> Result<Vec<Known>, RescanError>,
) -> Result<Change<B>, RescanError> {
    let stranger = |group: &&AtRest<B>| !Shared::ptr_eq(group.system(), system);
    if let Some(stranger) = at_rest.iter().find(stranger) {
        return Err(RescanError::OtherSystem(stranger.id()));
    }
    let old = system.topology.lock().copy()?;
    let (then, known) = (facts(&old.functions)?, functions(&old)?);
    let now = facts(&known)?;
    let (was, is) = (group_plans(&then)?, group_plans(&now)?);
    let senders = Senders::new(&now)?;
    let stays = |at: PciAddress| {
        let of_its_own = now.iter().filter(|function| function.address == at);
        let phantoms = of_its_own.flat_map(PciFunction::phantom_ids);
        let through = now.iter().flat_map(|bridge| bridge.ids_for(at));
        let ids = [at, senders.of(at)].into_iter();
        keeps && (ids.chain(phantoms).chain(through)).any(|id| system.is_pinned(id))
    };
    silence_new(system, (&was, &is), (&then, &now), stays);
    let mut new = Topology {
        functions: known,
        placed: Vec::new(),
        next: old.next,
        changes: old.changes,
    };
    let touched = touched(&old, &was, &is, at_rest)?;
    let mut fresh: Vec<AtRest<B>> = Vec::new();
    let mut numbered: Vec<GroupId> = Vec::new();
    for plan in is.into_iter().filter(|plan| !plan.members.is_empty()) {
        if was.contains(&plan) {
            for &member in &plan.members {
                if let Some(group) = old.group_of(member) {
                    push(&mut new.placed, Placed { member, group })?;
                }
            }
            continue;
        }
        let before = plan
            .members
            .iter()
            .filter_map(|member| old.group_of(*member));
        let id = before.filter(|id| !numbered.contains(id)).min();
        let id = id.unwrap_or_else(|| {
            let id = GroupId::numbered(new.next);
            new.next = new.next.wrapping_add(1);
            id
        });
        push(&mut numbered, id)?;
        let Some(mut inner) = group(system, id, plan, &senders)? else {
            continue;
        };
        let mut last = None;
        for part in at_rest {
            let shares = |member: &PciAddress| part.members().contains(member);
            if inner.members.iter().any(shares) {
                inner.claims = inner.claims.max(part.inner().claims);
                inner.is_unseen |= part.inner().is_unseen;
                // A guest's counts more than the hypervisor's.
                last = match (last, part.last_owner()) {
                    (Some(OwnerId::Vm(vm)), _) => Some(OwnerId::Vm(vm)),
                    (last, None) => last,
                    (_, owner) => owner,
                };
            }
        }
        for &member in &inner.members {
            push(&mut new.placed, Placed { member, group: id })?;
        }
        let group = match last {
            Some(owner) => inner.rest_after(owner),
            None => inner.rest(),
        };
        push(&mut fresh, group)?;
    }
    new.placed.sort_unstable_by_key(|placed| placed.member);
    let (mut groups, mut ended) = (Vec::new(), Vec::new());
    reserve(&mut groups, at_rest.len() + fresh.len())?;
    reserve(&mut ended, touched.len())?;
    Ok(Change {
        new,
        touched,
        fresh,
        groups,
        ended,
    })
}

/// The groups that do not come out as they were. Each was handed in.
fn touched<B: Backend>(
    old: &Topology,
    was: &[GroupPlan],
    is: &[GroupPlan],
    at_rest: &[AtRest<B>],
) -> Result<Vec<GroupId>, RescanError> {
    let mut touched = Vec::new();
    for plan in was.iter().filter(|plan| !is.contains(plan)) {
        let Some(group) = plan
            .members
            .first()
            .and_then(|member| old.group_of(*member))
        else {
            continue;
        };
        let is_here = at_rest.iter().any(|given| given.id() == group);
        if !is_here && !Fault::HeldGroupChanges.is_on() {
            return Err(RescanError::Held {
                group,
                function: culprit(plan, is),
            });
        }
        push(&mut touched, group)?;
    }
    Ok(touched)
}

/// The function for which a group does not come out as it was: one that leaves it, or that joins it.
fn culprit(was: &GroupPlan, is: &[GroupPlan]) -> PciAddress {
    let first = was.members.first().copied();
    let with = |plan: &&GroupPlan| {
        plan.members
            .iter()
            .any(|member| was.members.contains(member))
    };
    let other = is.iter().find(with).and_then(|now| {
        let (left, joined) = (
            was.members
                .iter()
                .find(|member| !now.members.contains(member)),
            now.members
                .iter()
                .find(|member| !was.members.contains(member)),
        );
        let port = now
            .upstream
            .iter()
            .find(|port| !was.upstream.contains(port));
        let id = now
            .requesters
            .iter()
            .find(|id| !was.requesters.contains(id));
        joined.or(left).or(port).or(id).copied()
    });
    let none = PciAddress::from_requester(hv_core::Segment(0), 0);
    other.or(first).unwrap_or(none)
}

/// Takes bus mastering, and translations of their own, from what is new and does not stay on: functions that were not listed, and members that were in no plan.
fn silence_new<B: Backend>(
    system: &System<B>,
    (was, is): (&[GroupPlan], &[GroupPlan]),
    (then, now): (&[PciFunction], &[PciFunction]),
    stays: impl Fn(PciAddress) -> bool,
) {
    let config = system.backend.platform();
    let known = |at: PciAddress| then.iter().any(|function| function.address == at);
    let placed = |at: &PciAddress| was.iter().any(|plan| plan.members.contains(at));
    if !then.is_empty() {
        // At the start bring-up did this for bridges.
        for function in now.iter().filter(|function| !known(function.address)) {
            clear_bus_mastering(config, function.address);
            // As bring-up did for the others: what it was let do by whoever had it before.
            stop_leftover(config, function.address);
            stop_caches(config, function.address);
        }
    }
    for member in is.iter().flat_map(|plan| &plan.members) {
        if !placed(member) && !stays(*member) {
            clear_bus_mastering(config, *member);
            stop_leftover(config, *member);
            stop_caches(config, *member);
        }
    }
}

/// The same for caches of memory (CXL.cache). A group with one that stays on is never attached.
fn stop_caches(config: &impl PciConfig, function: PciAddress) {
    if let Err(control) = stop_caching(config, function) {
        log::error!(
            "{function} reaches memory past its unit and does not give that up (CXL control {control:#06x})"
        );
    }
}

fn facts(known: &[Known]) -> Result<Vec<PciFunction>, OutOfMemory> {
    let mut facts = Vec::new();
    for known in known {
        push(&mut facts, known.given)?;
    }
    Ok(facts)
}

fn reserve<T>(list: &mut Vec<T>, room: usize) -> Result<(), OutOfMemory> {
    let bytes = room * size_of::<T>();
    list.try_reserve(room).map_err(|_| OutOfMemory { bytes })
}

fn group<B: Backend>(
    system: &Shared<System<B>>,
    id: GroupId,
    plan: GroupPlan,
    senders: &Senders,
) -> Result<Option<Inner<B>>, OutOfMemory> {
    let GroupPlan {
        members,
        requesters,
        upstream,
        ports,
    } = plan;
    // A unit is known by functions: an id that came later is that of a function which it knows.
    let unit_of = |requester: &PciAddress| {
        let by_own = Fault::UnitByOwnId.is_on();
        let sender = if by_own {
            *requester
        } else {
            senders.of(*requester)
        };
        system.backend.unit_of(sender)
    };
    let unit = members.first().and_then(unit_of);
    let same = requesters
        .iter()
        .all(|requester| unit_of(requester) == unit);
    let caps = unit.and_then(|unit| system.backend.unit_caps(unit));
    let (Some(unit), Some(caps), true) = (unit, caps, same) else {
        log::warn!("{id} {members:?} is not covered by one unit: it can never be claimed");
        return Ok(None);
    };
    let mut regions: Vec<ReservedRegion> = Vec::new();
    for requester in &requesters {
        let own = || system.backend.reserved_for(*requester);
        let is_doorbell = |region: &ReservedRegion| region.kind == ReservedKind::Doorbell;
        let has_doorbell = own().any(|region| is_doorbell(&region));
        // Firmware may name an id, or its function and mean the id too. Messages go where the id's own do.
        let functions = system.backend.reserved_for(senders.of(*requester));
        let functions = functions.filter(|region| !(has_doorbell && is_doorbell(region)));
        for region in own().chain(functions) {
            // Firmware names a region once for each device that shares it.
            if !regions.contains(&region) {
                push(&mut regions, region)?;
            }
        }
    }
    Ok(Some(Inner {
        id,
        unit,
        caps,
        members,
        requesters,
        upstream,
        ports,
        regions,
        is_overridden: false,
        is_unseen: false,
        has_asked: false,
        claims: 0,
        trust: Trust::Untrusted,
        has_cxl_word: false,
        has_incoherent_word: false,
        system: system.clone(),
    }))
}
