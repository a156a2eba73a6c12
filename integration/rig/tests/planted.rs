//! The test of the rig: each deliberate fault of the driver is caught, and named. Needs `--cfg hv_fault`.

use hv_core::fault::Fault;
use hv_rig::planted::{ELSEWHERE, PLANTED};

#[test]
fn every_fault_of_the_driver_is_caught_by_the_rig_or_said_to_be_by_others() {
    assert!(PLANTED.len() >= 25, "{} are planted", PLANTED.len());
    for fault in Fault::ALL {
        let here = PLANTED.iter().filter(|planted| planted.fault == fault).count();
        let elsewhere = ELSEWHERE.iter().filter(|(other, _)| *other == fault).count();
        assert_eq!(here + elsewhere, 1, "{fault}");
    }
}

#[cfg(hv_fault)]
mod caught {
    //! One test per fault. Faults are switched on for the whole process, so they take turns.

    use std::sync::{Mutex, PoisonError};

    use hv_core::fault::Fault;
    use hv_rig::planted::{LIVES, PLANTED, hunt};

    static TURN: Mutex<()> = Mutex::new(());

    /// Without a fault the same lives break nothing: what is caught below is due to the fault.
    #[test]
    fn nothing_is_caught_where_no_fault_is() {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(hunt(), None);
    }

    fn caught(fault: Fault) {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        fault.switch_on();
        let found = hunt();
        fault.switch_off();
        let Some((lives, violation)) = found else {
            panic!("{fault} was not caught in {LIVES} lives");
        };
        println!("{fault} after {lives} lives: {violation}");
        let planted = PLANTED.iter().find(|planted| planted.fault == fault);
        let rules = planted.map_or(&[][..], |planted| planted.rules);
        assert!(
            rules.contains(&violation.rule),
            "{fault} was caught after {lives} lives, as {:?}; expected one of {rules:?}: {}",
            violation.rule,
            violation.what
        );
    }
}
