//! A receipt is made where a completed flush was seen, and nowhere else.
//! Instead: `Domain::flush`, or `PendingUnmap::flush` for one range.
use hv_iommu::{DomainUid, FlushSpan, Receipt};

fn mistake(domain: DomainUid) -> Receipt {
    Receipt {
        domain,
        sequence: u64::MAX,
        span: FlushSpan::Domain,
    }
}

fn main() {}
// Shows: bc01, bc02, T17.
