//! Bringing units up consumes what was found out about them: a second time would take live tables away.
//! Instead: keep the `Vtd` that the first one gave.
use hv_rig::Rig;
use hv_vtd::Discovery;

fn mistake(discovery: Discovery<Rig>) {
    let _first = discovery.bring_up();
    let _second = discovery.bring_up();
}

fn main() {}
// Shows: bc12.
