//! That a fault stalls its transaction is said only of a unit that can: its id register gives the word.
//! Instead: `idr0.stall_model()`, and `StallModel::stall` or `StallModel::terminate` of it.
use hv_smmu::spec::id_registers::{Idr0, OnFault};

fn mistake(idr0: Idr0) -> OnFault {
    OnFault(idr0.stall())
}

fn main() {}
// Shows: bc12.
