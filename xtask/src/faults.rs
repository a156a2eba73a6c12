//! What each deliberate fault takes out, in the words of the lists in `hv-core`, which are read as text: no task is built
//! against the crates that it checks.

/// The lists of faults.
const LISTS: [&str; 2] = [
    include_str!("../../hv-core/src/fault/list.rs"),
    include_str!("../../hv-core/src/fault/smmu.rs"),
];

/// What a fault takes out, in a sentence; `None` for one that is not there.
pub(crate) fn what(name: &str) -> Option<String> {
    let named = format!("= {name:?},");
    let mut said = Vec::new();
    for line in LISTS.into_iter().flat_map(str::lines).map(str::trim) {
        match line.strip_prefix("///") {
            Some(words) => said.push(words.trim()),
            None if line.ends_with(&named) => return Some(said.join(" ")),
            None => said.clear(),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ladder::PLANTED_FAULTS;

    #[test]
    fn each_planted_fault_says_what_it_takes_out() {
        for planted in PLANTED_FAULTS {
            let said = what(planted.fault).unwrap_or_default();
            assert!(said.ends_with('.'), "{}: {said:?}", planted.fault);
        }
        assert_eq!(
            what("skip_cut_off").as_deref(),
            Some("Devices behind a wedged unit keep bus mastering.")
        );
        assert_eq!(what("cut_off"), None);
    }
}
