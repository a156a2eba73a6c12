//! Models of domain ids: given out, used by an attached group, given back at the end of the domain, and
//! given out again (`bc07`: the triangle of allocating, freeing and attaching).

use std::sync::Arc;

use hv_iommu::ids::{DomainIds, Users};

use crate::arena::Use;
use crate::explore::{models, must_fail, saw};

/// One id, the users of the domain that has it, and what a unit has cached under it.
struct Id {
    ids: DomainIds,
    users: Users,
    cached: Use,
}

/// A group comes off its domain, another CPU ends the domain as soon as nobody uses it, and a third one
/// makes a domain and attaches a group of its own. `waits`: whether the end looks at the count.
fn detach_end_and_reuse(waits: bool) {
    let shared = Arc::new(Id {
        ids: DomainIds::new(2).unwrap(),
        users: Users::none(),
        cached: Use::new(),
    });
    let lease = shared.ids.take().unwrap();
    shared.users.enter();
    let detaching = {
        let shared = shared.clone();
        loom::thread::spawn(move || {
            // The last that the unit does under this id: from here on it has forgotten all.
            shared.cached.have_alone();
            shared.users.leave();
        })
    };
    let next = {
        let shared = shared.clone();
        loom::thread::spawn(move || {
            if let Some(lease) = shared.ids.take() {
                saw("the id is reused");
                // The unit caches something of the new domain.
                shared.cached.have_alone();
                drop(lease);
            }
        })
    };
    if !waits || shared.users.count() == 0 {
        shared.ids.give_back(lease);
    } else {
        saw("the domain is in use");
    }
    detaching.join().unwrap();
    next.join().unwrap();
}

/// Two CPUs take ids of the same word, and one gives its own back.
fn two_take_and_one_gives_back() {
    let shared = Arc::new((DomainIds::new(3).unwrap(), [Use::new(), Use::new()]));
    let used = |shared: &(DomainIds, [Use; 2])| {
        let lease = shared.0.take()?;
        shared.1[usize::from(lease.id().get()) - 1].have_alone();
        Some(lease)
    };
    let other = {
        let shared = shared.clone();
        loom::thread::spawn(move || {
            if let Some(lease) = used(&shared) {
                shared.0.give_back(lease);
            }
            used(&shared).map(|lease| lease.id())
        })
    };
    let mine = used(&shared);
    let theirs = other.join().unwrap();
    let mine = mine.map(|lease| lease.id());
    assert!(mine.is_some() && theirs.is_some(), "there are two ids");
    assert_ne!(mine, theirs, "two domains have one id");
    assert_eq!(shared.0.in_use(3), 2);
}

models! {
    /// An id is reused only after the last group of its domain was forgotten by the unit.
    bc07_an_id_is_reused_after_its_last_user: Three(2),
        sees ["the id is reused", "the domain is in use"], || detach_end_and_reuse(true);

    /// No two domains have one id, and none is lost.
    bc07_an_id_has_one_domain: Exhaustive, sees [], two_take_and_one_gives_back;
}

must_fail! {
    /// A domain ends under its group.
    no_look_at_the_users_of_an_id: Three(2), || detach_end_and_reuse(false);
}
