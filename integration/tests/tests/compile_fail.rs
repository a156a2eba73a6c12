//! Mistakes that must not compile, with the messages that a user reads; and the right ways beside.
//!
//! Each file in `compile_fail/` is named after a mistake and says what to do instead. The messages
//! are pinned, so that a case cannot start to fail for another reason. After a change of the
//! interface, look at the new ones and take them over:
//!
//! ```text
//! TRYBUILD=overwrite cargo test -p hv-tests --test compile_fail
//! ```

#![cfg(not(hv_loom))]

#[test]
fn mistakes_do_not_compile_and_right_ways_do() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/compile_pass/*.rs");
    cases.compile_fail("tests/compile_fail/*.rs");
}
