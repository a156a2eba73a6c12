//! Counts what passed and what failed, from the result lines of cargo's test runs.

/// What a step brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Tests or checks that passed.
    pub(crate) passed: usize,
    /// A line for each one that failed.
    pub(crate) failures: Vec<String>,
}

impl Counts {
    /// One check.
    pub(crate) fn of_check(name: &str, ok: bool) -> Self {
        if ok {
            Self {
                passed: 1,
                failures: vec![],
            }
        } else {
            Self::failure(name)
        }
    }

    /// One failure.
    pub(crate) fn failure(what: impl Into<String>) -> Self {
        Self {
            passed: 0,
            failures: vec![what.into()],
        }
    }

    /// Adds up.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failures.extend(other.failures);
    }

    /// Reads the output of a test run that ended well or not (`success`). A run that failed without a failed test, as
    /// when it does not build, counts as one failure, and so does a run without any test.
    pub(crate) fn of_test_run<'a>(
        step: &str,
        lines: impl Iterator<Item = &'a str>,
        success: bool,
    ) -> Self {
        let mut counts = Self::default();
        let mut failed = 0;
        for line in lines {
            if let Some((passed, also_failed)) = result_line(line) {
                counts.passed += passed;
                failed += also_failed;
            } else if let Some(name) = line
                .strip_prefix("test ")
                .and_then(|rest| rest.strip_suffix(" ... FAILED"))
            {
                counts.failures.push(format!("{step}: {name}"));
            }
        }
        // A test whose output broke its line still counts.
        for _ in counts.failures.len()..failed {
            counts
                .failures
                .push(format!("{step}: a failed test whose name was not seen"));
        }
        if counts.failures.is_empty() && !success {
            counts.failures.push(format!(
                "{step}: the run failed outside of a test (see its output)"
            ));
        } else if counts.failures.is_empty() && counts.passed == 0 {
            counts
                .failures
                .push(format!("{step}: expected at least one test, found none"));
        }
        counts
    }
}

/// `test result: ok. 5 passed; 1 failed; ...`
fn result_line(line: &str) -> Option<(usize, usize)> {
    let (_, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut parts = rest.split("; ");
    let passed = parts.next()?.strip_suffix(" passed")?.parse().ok()?;
    let failed = parts.next()?.strip_suffix(" failed")?.parse().ok()?;
    Some((passed, failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str, success: bool) -> (usize, Vec<String>) {
        let counts = Counts::of_test_run("unit", text.lines(), success);
        (counts.passed, counts.failures)
    }

    #[test]
    fn result_lines_of_several_binaries_add_up() {
        let text = "running 2 tests\ntest a ... ok\n\
                    test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
                    test result: ok. 40 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.00s\n";
        assert_eq!(run(text, true), (42, vec![]));
    }

    #[test]
    fn failed_tests_are_named() {
        let text = "test tables::map ... FAILED\n\
                    test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(run(text, false), (3, vec!["unit: tables::map".to_owned()]));
    }

    #[test]
    fn a_run_that_fails_without_a_failed_test_is_a_failure() {
        assert_eq!(run("error: could not compile", false).1.len(), 1);
        let all_well = "test result: ok. 2 passed; 0 failed; 0 ignored\n";
        assert_eq!(run(all_well, false).1.len(), 1);
    }

    #[test]
    fn a_run_without_tests_is_a_failure() {
        assert_eq!(run("", true).1.len(), 1);
        assert_eq!(
            run("test result: ok. 0 passed; 0 failed; 0 ignored\n", true)
                .1
                .len(),
            1
        );
    }

    #[test]
    fn a_failure_without_a_name_counts() {
        assert_eq!(
            run(
                "test result: FAILED. 0 passed; 2 failed; 0 ignored\n",
                false
            )
            .1
            .len(),
            2
        );
    }
}
