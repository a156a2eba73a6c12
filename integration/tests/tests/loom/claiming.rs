//! Models of claims: the table of groups itself, over groups that the subsystem gave.

use std::sync::Arc;

use hv_core::{OwnerId, VmId};
use hv_iommu::{AtRest, ClaimError, GroupId, GroupTable, Whereabouts};

use crate::arena::{Use, become_cpu};
use crate::board::{Board, DEVICES, machine};
use crate::explore::{models, saw};

/// A table of groups, and what whoever holds the first of them does with it.
struct Shared {
    table: GroupTable<Board>,
    group: GroupId,
    held: Use,
}

impl Shared {
    fn new() -> Arc<Self> {
        let (_, groups) = machine(0);
        let table = GroupTable::new(groups).unwrap();
        let group = table.find(DEVICES[0]).unwrap().group();
        let held = Use::new();
        Arc::new(Self { table, group, held })
    }

    /// A guest claims the group, uses it, and puts it back if it is to.
    fn claim(&self, number: u16, puts_back: bool) -> Result<(), ClaimError> {
        let vm = VmId::new(number).unwrap();
        let group = self.table.claim_for_guest(self.group, vm)?;
        let here = self.table.find(DEVICES[0]).unwrap();
        assert_eq!(here.holder(), Some(OwnerId::Vm(vm)));
        self.held.have_alone();
        if puts_back {
            let rest = group.release().without_reset("a model");
            assert!(self.table.put_back(rest).is_ok());
        }
        Ok(())
    }
}

fn held_by(group: GroupId, number: u16) -> ClaimError {
    let holder = OwnerId::Vm(VmId::new(number).unwrap());
    ClaimError::Held { group, holder }
}

fn on_cpu<T: 'static>(
    shared: &Arc<Shared>,
    cpu: u32,
    act: impl FnOnce(&Shared) -> T + 'static,
) -> loom::thread::JoinHandle<T> {
    let shared = shared.clone();
    loom::thread::spawn(move || {
        become_cpu(cpu);
        act(&shared)
    })
}

/// Two guests claim one group and keep it.
fn two_claims() {
    let shared = Shared::new();
    let other = on_cpu(&shared, 1, |shared| shared.claim(2, false));
    let mine = shared.claim(1, false);
    match (mine, other.join().unwrap()) {
        (Ok(()), Err(error)) => {
            saw("the first gets it");
            assert_eq!(error, held_by(shared.group, 1));
        }
        (Err(error), Ok(())) => {
            saw("the second gets it");
            assert_eq!(error, held_by(shared.group, 2));
        }
        other => panic!("{other:?}"),
    }
}

/// A guest gives the group up while another one claims it, and a third CPU takes it to reset its devices.
fn claim_against_release() {
    let shared = Shared::new();
    let guest = on_cpu(&shared, 1, |shared| shared.claim(2, true));
    let hypervisor = on_cpu(&shared, 2, |shared| {
        let taken = shared.table.take_at_rest(shared.group)?;
        assert!(matches!(taken, AtRest::Claimable(_)), "{taken:?}");
        shared.held.have_alone();
        assert!(shared.table.put_back(taken).is_ok());
        Ok(())
    });
    let mine = shared.claim(1, true);
    let others = [guest.join().unwrap(), hypervisor.join().unwrap()];
    let all = [mine, others[0], others[1]];
    if all == [Ok(()); 3] {
        saw("one after the other has it");
    }
    for (by, outcome) in all.into_iter().enumerate() {
        let Err(error) = outcome else { continue };
        saw("somebody is refused");
        let ClaimError::Held { holder, .. } = error else {
            panic!("{error}");
        };
        let holders = [1, 2].map(|number| OwnerId::Vm(VmId::new(number).unwrap()));
        let guest = holders.iter().position(|other| *other == holder);
        let who = guest.unwrap_or(2);
        assert!(who != by && all[who].is_ok(), "{error}");
    }
    assert!(all.contains(&Ok(())));
    let rest = Whereabouts::AtRest(shared.group);
    assert_eq!(shared.table.whereabouts(shared.group), Some(rest));
}

models! {
    /// Of two who claim a group one gets it, and the other hears who.
    /// Shows: bc05.
    bc05_of_two_claims_one_gets_the_group: Exhaustive,
        sees ["the first gets it", "the second gets it"], two_claims;

    /// Whoever has a group has it alone, and sees all that the one before did with it.
    /// Shows: bc05.
    bc05_a_group_goes_from_holder_to_holder: Three(2),
        sees ["one after the other has it", "somebody is refused"], claim_against_release;
}
