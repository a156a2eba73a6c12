//! Entries of a group's requesters: made live and taken down, all of them or none.

#![expect(unsafe_code, reason = "binds devices to domains")]

use arrayvec::ArrayVec;
use hv_core::fault::Fault;
use hv_core::{OutOfMemory, Owner, PciAddress};

use crate::anchor::Anchor;
use crate::attach::AttachError;
use crate::backend::{Backend, UnitError};
use crate::faults::Gap;
use crate::group::{Group, Hold, Inner, Wedged};
use crate::shape::Shape;
use crate::system::Bound;

/// Why a group's requesters were not all bound.
pub(crate) enum BindFailed {
    /// None of them is.
    TakenBack(AttachError),
    /// Some entry may still be cached.
    Wedged {
        stuck: Stuck,
        /// How many requesters were bound, or tried, from the first on.
        bound: usize,
    },
}

/// Entries that the unit may not have forgotten.
pub(crate) struct Stuck {
    pub(crate) error: UnitError,
    /// How many the domain's reach still counts.
    pub(crate) entered: usize,
}

/// A group with entries that its unit did not forget. The unit was cut off.
pub(crate) fn wedged<B: Backend>(
    inner: Inner<B>,
    anchor: Anchor<B>,
    stuck: Stuck,
    bound: usize,
) -> Group<B, Wedged<B>> {
    let mut holds = ArrayVec::new();
    holds.push(Hold {
        anchor,
        bound,
        entered: stuck.entered,
    });
    let error = stuck.error;
    let state = Wedged { error, holds };
    Group { inner, state }
}

/// Enters the group into the register, before its entries are live: a unit that wedges cuts it off. Counts
/// it in its domain. A group that moves takes what it has used of its budget for faults along.
///
/// # Errors
/// [`AttachError::CutOff`] where a group that was cut off for its faults is to move, [`AttachError::OutOfMemory`],
/// [`AttachError::Exposed`]; nothing was entered or counted then.
pub(crate) fn register<B: Backend>(
    inner: &Inner<B>,
    anchor: &Anchor<B>,
) -> Result<(), AttachError> {
    let caches = inner.cxl_caches()?;
    let mut registry = inner.system.registry.lock();
    // Under the same lock as who cuts it off.
    let meter = registry.meter_of(inner.id);
    if meter.cut_off {
        return Err(AttachError::CutOff { group: inner.id });
    }
    let Some((_, owner)) = anchor.entries() else {
        return Ok(());
    };
    let count = inner.requesters.len();
    registry.bound.try_reserve(count).map_err(|_| {
        let bytes = count * size_of::<Bound>();
        OutOfMemory { bytes }
    })?;
    anchor.hold(inner)?;
    // What they sent while they were bound to nothing does not count any more, and they are quiet no longer.
    registry.strangers.forget(&inner.requesters);
    let caches = caches.into_iter().chain(core::iter::repeat(None));
    registry.bound.extend(
        inner
            .requesters
            .iter()
            .zip(caches)
            .map(|(requester, cxl_cache)| Bound {
                unit: inner.unit,
                requester: *requester,
                group: inner.id,
                domain: anchor.uid(),
                owner,
                meter,
                gap: Gap::None,
                ats: None,
                cxl_cache,
                is_untold: false,
                owes_reread: false,
                is_quiet: false,
            }),
    );
    Ok(())
}

/// Takes the group's entries of one domain from the register, and the group from the domain's count.
pub(crate) fn unregister<B: Backend>(inner: &Inner<B>, anchor: &Anchor<B>) {
    strike_out(inner, anchor);
    anchor.let_go(inner.trust);
}

/// Takes the group's entries of one domain from the register.
pub(crate) fn strike_out<B: Backend>(inner: &Inner<B>, anchor: &Anchor<B>) {
    let mut registry = inner.system.registry.lock();
    let other = |bound: &Bound| bound.group != inner.id || bound.domain != anchor.uid();
    registry.bound.retain(|bound| other(bound));
}

/// Binds every requester of the group, or none. The group is registered.
pub(crate) fn bind_all<O: Owner, B: Backend, S: Shape<O, B>>(
    inner: &Inner<B>,
    core: &S::Core,
) -> Result<(), BindFailed> {
    let system = &inner.system;
    let anchor = S::anchor(core);
    if anchor.entries().is_none() {
        return Ok(());
    }
    for (index, requester) in inner.requesters.iter().enumerate() {
        anchor.enter(inner.unit, inner.caps.sync_on_map);
        let resets = system.wedged.resets(inner.unit);
        let bound = system.away(|| {
            // SAFETY: the domain counts this group as attached, and `destroy` is refused while it does. That
            // is taken back only after `unbind` has completed.
            unsafe { S::bind(core, &system.backend, inner.unit, *requester) }
        });
        let waited = match bound {
            // Where it is refused, the entry is taken down again.
            Ok(Some(ticket)) => {
                system.wait_unless_refused(inner.unit, ticket, "the binding of a device")
            }
            Ok(None) => Ok(()),
            Err(error) => {
                // A unit that a backend waits for in between fails like one that is waited for here; other errors are
                // refusals.
                if matches!(error, UnitError::Timeout { .. } | UnitError::Wedged { .. }) {
                    system.request_failed(inner.unit, error, resets);
                }
                Err(error)
            }
        };
        let Err(error) = waited else { continue };
        // After most errors of `bind` the entry may be live. One that was live before is not ours.
        let foreign = matches!(bound, Err(UnitError::AlreadyBound { .. }));
        let undone = if foreign {
            Ok(())
        } else {
            unbind(inner, &anchor, *requester)
        };
        let this = match undone {
            Err(UnitError::NotBound { .. }) if bound.is_err() => Ok(()),
            other => other,
        };
        // `unbind` left after it had completed; what was never bound leaves here.
        let never = foreign || matches!(undone, Err(UnitError::NotBound { .. }));
        if never {
            anchor.leave(inner.unit);
        }
        let stays = usize::from(!never && undone.is_err());
        let before = inner.requesters.get(..index).unwrap_or(&[]);
        let others = unbind_all(inner, &anchor, before);
        let entered = stays + others.as_ref().err().map_or(0, |stuck| stuck.entered);
        return Err(match this.and(others.map_err(|stuck| stuck.error)) {
            Ok(()) => BindFailed::TakenBack(error.into()),
            Err(error) => {
                system.cut_off(inner.unit);
                BindFailed::Wedged {
                    stuck: Stuck { error, entered },
                    // An entry of somebody else is not ours to take down.
                    bound: index + usize::from(!foreign),
                }
            }
        });
    }
    Ok(())
}

/// The requesters whose entries a detach takes down: all of them.
pub(crate) fn bound_requesters<B: Backend>(inner: &Inner<B>) -> &[PciAddress] {
    let requesters = inner.requesters.as_slice();
    if Fault::UnbindSkipsAlias.is_on() {
        return requesters.get(..1).unwrap_or(&[]);
    }
    requesters
}

/// Unbinds these requesters and waits until the unit has forgotten each. If one fails, the unit is
/// cut off and the others are taken down all the same: fewer live entries are better.
pub(crate) fn unbind_all<B: Backend>(
    inner: &Inner<B>,
    anchor: &Anchor<B>,
    requesters: &[PciAddress],
) -> Result<(), Stuck> {
    if anchor.entries().is_none() {
        return Ok(());
    }
    // Before an entry comes down, and before what a device holds is forgotten.
    inner.stop_asking();
    let mut failed = None;
    let mut entered = 0;
    for requester in requesters {
        if let Err(error) = unbind(inner, anchor, *requester) {
            // After the entry is down, so that a reset which is under way counts as too early for it.
            inner.system.cut_off(inner.unit);
            failed = failed.or(Some(error));
            entered += 1;
        }
    }
    failed.map_or(Ok(()), |error| Err(Stuck { error, entered }))
}

/// Unbinds one requester and waits until the unit has forgotten it.
pub(crate) fn unbind<B: Backend>(
    inner: &Inner<B>,
    anchor: &Anchor<B>,
    requester: PciAddress,
) -> Result<(), UnitError> {
    let system = &inner.system;
    let Some((id, _)) = anchor.entries() else {
        return Ok(());
    };
    let ticket = system.away(|| system.backend.unbind(inner.unit, requester, id))?;
    system.wait(inner.unit, ticket, "the unbinding of a device")?;
    anchor.leave(inner.unit);
    Ok(())
}
