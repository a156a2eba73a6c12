//! A queue whose batches have a sync each: what hardware is told of ends in one, whoever rings.

use super::*;

fn with_sync_each(log2: u8, ends: Ends) -> (&'static CommandQueue, Fake) {
    let shape = QueueShape::new(log2, ends, DEADLINE).unwrap();
    assert!(!shape.has_sync_each() && shape.with_sync_each().has_sync_each());
    let (queue, fake) = Fake::of(shape.with_sync_each());
    (Box::leak(Box::new(queue)), fake)
}

/// Shows: bc14.
#[test]
fn bc14_who_comes_before_the_bell_is_rung_brings_a_sync_that_is_rung_with_it() {
    let (queue, fake) = with_sync_each(3, Ends::WrapBit);
    fake.eager.set(false);
    // Between the reservation of the first, with the bell, and its look at what is published.
    fake.plan(Point::Put, move |fake| {
        let error = queue.submit(fake, &[Entry::Command(2)]).unwrap_err();
        assert!(matches!(error, UnitError::Busy { .. }), "{error}");
    });
    let ticket = queue.submit(&fake, &[Entry::Command(1)]).unwrap();
    assert_eq!((fake.rung.get(), fake.tail.get().index()), (1, 4));
    fake.read(usize::MAX);
    let executed = [
        Entry::Command(1),
        Entry::Sync(2),
        Entry::Command(2),
        Entry::Sync(4),
    ];
    assert_eq!(*fake.executed.lock().unwrap(), executed);
    assert_eq!(queue.poll(&fake, ticket), Ok(true));
}

/// Nobody leads here but the first of each pair, and places come round again and again.
/// Shows: bc14.
#[test]
fn bc14_a_ring_of_batches_with_a_sync_each_wraps() {
    for (log2, ends) in [(2, Ends::WrapBit), (3, Ends::OneFree), (3, Ends::WrapBit)] {
        let (queue, fake) = with_sync_each(log2, ends);
        for number in 0..20 {
            fake.plan(Point::Put, move |fake| {
                let second = [Entry::Command(2 * number + 1)];
                assert!(queue.submit(fake, &second).is_err());
            });
            let first = [Entry::Command(2 * number)];
            let ticket = queue.submit(&fake, &first).unwrap();
            assert_eq!(queue.poll(&fake, ticket), Ok(true));
        }
        assert_eq!(fake.commands(), (0..40).collect::<Vec<_>>());
        let executed = fake.executed.lock().unwrap();
        let syncs = executed.iter().skip(1).step_by(2);
        let expected = (1..=40).map(|sync| Entry::Sync(2 * sync));
        assert!(syncs.copied().eq(expected), "{executed:?}");
    }
}

/// An empty batch is a sync, with the bell and without.
#[test]
fn an_empty_batch_is_a_sync_alone() {
    let (queue, fake) = with_sync_each(3, Ends::WrapBit);
    fake.plan(Point::Put, move |fake| {
        assert!(queue.submit(fake, &[]).is_err());
    });
    queue.submit(&fake, &[]).unwrap();
    let executed = [Entry::Sync(1), Entry::Sync(2)];
    assert_eq!(*fake.executed.lock().unwrap(), executed);
}
