//! A loan is one pin of its lender's memory: two of it would end it twice.
//! Instead: `GuestMemory::lend` the range once for each borrower.
//! Shows: bc17.
use hv_core::{GuestMemory, Loan};

fn mistake(lender: &GuestMemory, loan: Loan) {
    let _ = lender.end_loan(loan.clone());
    let _ = lender.end_loan(loan);
}

fn main() {}
