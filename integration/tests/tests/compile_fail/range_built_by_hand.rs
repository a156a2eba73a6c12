//! A range comes from its domain, which knows that nobody else has it.
//! Instead: `Domain::reserve`, or `allocate` on a driver's domain.
use hv_core::{IovaRange, KernelPaging};
use hv_iommu::{Free, Range};
use hv_tests::fake::Fake;

fn mistake(
    mine: Range<KernelPaging, Fake, Free>,
    span: IovaRange,
) -> Range<KernelPaging, Fake, Free> {
    Range { span, ..mine }
}

fn main() {}
