//! The front that a guest talks to: iommufd `cmd_fail`, `cmd_length`, `cmd_ex_fail`; each refusal with a code of its
//! own and without a trace; and seeded damage of requests against a model.

#![cfg(not(hv_loom))]

mod fuzz;
mod layout;
#[expect(dead_code, reason = "the machine serves other tests too")]
#[path = "../ownership/machine.rs"]
mod machine;
mod model;
mod refusals;
mod requests;
mod stand;
mod written;
