//! Pages of a shared range belong to several users: nobody changes their size under the others.
//! Instead: map pages of the size that is wanted, or use a range that one user has.
use hv_core::{KernelPaging, PageCount};
use hv_iommu::SharedRange;
use hv_tests::fake::Fake;

fn mistake(shared: SharedRange<KernelPaging, Fake>) {
    let _ = shared.merge();
    let _ = shared.split_large_at(PageCount::ONE);
}

fn main() {}
// Shows: bc09.
