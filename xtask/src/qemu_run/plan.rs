//! Which boots a run comes to: what runs on which architecture with which planted faults, and what has to come of it.

use anyhow::{Result, bail};

use super::Expectation;
use crate::arch::Arch;
use crate::ladder::{PLANTED_FAULTS, Planted};
use crate::scenarios;

/// One boot of the image, and what it has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Boot {
    /// Of which architecture.
    pub(crate) arch: Arch,
    /// What runs.
    pub(crate) scenarios: Vec<&'static str>,
    /// What has to come of it.
    pub(crate) expect: Expectation,
}

/// Which boots there are. One fault alone has to be caught by each scenario that is listed for it, or by those of them
/// that are named; each has a boot of its own, as what fails leaves the machine in any state. Before them, all have to pass
/// in the same image with the fault switched off.
///
/// # Errors
/// When a fault is not known, or is none of the architecture that is asked for, or if no scenario is left.
pub(crate) fn plan(
    archs: &[Arch],
    faults: &[String],
    named: &[String],
    picked: Vec<&'static str>,
) -> Result<Vec<Boot>> {
    let mut boots = Vec::new();
    for arch in archs {
        if !are_planted(*arch, archs, faults)? {
            continue;
        }
        let picked = scenarios::on(*arch, &picked);
        if picked.is_empty() {
            println!("--> {arch} has no {}: not run", named.join(", "));
            continue;
        }
        let catches = |scenario: &&'static str| {
            let mut listed = PLANTED_FAULTS.iter();
            listed.find(|planted| {
                [planted.fault] == faults
                    && planted.scenario == *scenario
                    && planted.archs.contains(arch)
            })
        };
        let caught: Vec<&'static Planted> = picked.iter().filter_map(catches).collect();
        if let [fault] = faults
            && !named.is_empty()
            && caught.is_empty()
        {
            // Nobody is stopped: that the others pass with it is worth knowing. But it is told before anything is built.
            println!("{}", unlisted(fault, &picked, *arch));
        }
        let is_caught = !caught.is_empty() && (named.is_empty() || caught.len() == picked.len());
        let boot = |scenarios: Vec<&'static str>, expect| Boot {
            arch: *arch,
            scenarios,
            expect,
        };
        if is_caught {
            let all = caught.iter().map(|planted| planted.scenario);
            boots.push(boot(all.collect(), Expectation::Control));
            let each = caught.into_iter();
            boots.extend(
                each.map(|planted| boot(vec![planted.scenario], Expectation::Caught(planted))),
            );
        } else {
            boots.push(boot(picked, Expectation::Pass));
        }
    }
    if boots.is_empty() {
        bail!(
            "{} shows something on another architecture only: expected --arch with that one (`cargo xtask run-qemu --list` \
             says which)",
            named.join(", ")
        );
    }
    Ok(boots)
}

/// What is said where a fault is tried with scenarios that are not there to catch it.
fn unlisted(fault: &str, picked: &[&str], arch: Arch) -> String {
    let listed = PLANTED_FAULTS.iter();
    let catch: Vec<&str> = listed
        .filter(|planted| planted.fault == fault && planted.archs.contains(&arch))
        .map(|planted| planted.scenario)
        .collect();
    format!(
        "note: {fault} is there for {} to catch on {arch}; {} has to pass in spite of it",
        catch.join(" and "),
        picked.join(", "),
    )
}

/// Whether the image of `arch` has all these faults. One that only another architecture has is left out where that
/// one is run too.
///
/// # Errors
/// When there is no such fault, or only on an architecture that is not run.
fn are_planted(arch: Arch, archs: &[Arch], faults: &[String]) -> Result<bool> {
    let mut all = true;
    for fault in faults {
        let places = || {
            let listed = PLANTED_FAULTS
                .iter()
                .filter(|planted| planted.fault == fault);
            listed.flat_map(|planted| planted.archs)
        };
        let Some(other) = places().next() else {
            let near = near(fault);
            let meant = match near.is_empty() {
                true => String::new(),
                false => format!("; did you mean {}?", near.join(" or ")),
            };
            bail!(
                "unknown fault {fault:?}: expected one that `cargo xtask run-qemu --list` shows{meant}"
            );
        };
        if places().any(|place| *place == arch) {
            continue;
        }
        if !archs.iter().any(|run| places().any(|place| place == run)) {
            bail!(
                "the fault {fault} has no meaning or shows nothing on {arch}: expected --arch {other} with it (`cargo \
                 xtask run-qemu --list` says where each is planted)"
            );
        }
        all = false;
    }
    Ok(all)
}

/// Names of faults that somebody may have meant: those that differ little, or share a word of some length.
fn near(name: &str) -> Vec<&'static str> {
    let name = name.replace('-', "_");
    let words = |of: &str| -> Vec<String> {
        let long = of.split('_').filter(|word| word.len() >= 4);
        long.map(str::to_owned).collect()
    };
    let mine = words(&name);
    let mut found: Vec<(usize, &'static str)> = Vec::new();
    for Planted { fault, .. } in PLANTED_FAULTS {
        let far = distance(&name, fault);
        let shares = words(fault).iter().any(|word| mine.contains(word));
        let is_near = far <= 1 + name.len() / 4 || shares;
        if is_near && found.iter().all(|(_, known)| known != fault) {
            found.push((far, fault));
        }
    }
    found.sort();
    found.into_iter().take(3).map(|(_, fault)| fault).collect()
}

/// How many letters have to be put in, taken out or replaced to make `one` into `other`.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, letter) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (place, with) in other.iter().enumerate() {
            let same = diagonal + usize::from(letter != *with);
            diagonal = row[place + 1];
            row[place + 1] = same.min(diagonal + 1).min(row[place] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boots(archs: &[Arch], faults: &[&str], scenarios: &[&str]) -> Result<Vec<Boot>> {
        let list = |names: &[&str]| -> Vec<String> {
            names.iter().map(|name| (*name).to_owned()).collect()
        };
        let named = list(scenarios);
        let picked = scenarios::pick(&named)?;
        plan(archs, &list(faults), &named, picked)
    }

    #[test]
    fn one_fault_has_to_be_caught_by_each_scenario_that_is_named_or_listed() {
        // How often a scenario runs, and whether one of these faults has to make it fail then.
        let shown = |archs: &[Arch], fault: &str, named: &[&str]| -> Vec<(Arch, String, &str)> {
            let boots = boots(archs, &[fault], named).unwrap();
            let each = boots.into_iter().map(|boot| {
                let expect = match boot.expect {
                    Expectation::Pass => "pass",
                    Expectation::Control => "control",
                    Expectation::Caught(planted) => {
                        assert_eq!(
                            (planted.fault, vec![planted.scenario]),
                            (fault, boot.scenarios.clone())
                        );
                        "caught"
                    }
                };
                (boot.arch, boot.scenarios.join(","), expect)
            });
            each.collect()
        };
        let (x86, arm) = (Arch::X86_64, Arch::Aarch64);
        let row = |arch, scenarios: &str, expect| (arch, scenarios.to_owned(), expect);
        let both = [
            row(x86, "revoke,reassign", "control"),
            row(x86, "revoke", "caught"),
            row(x86, "reassign", "caught"),
        ];
        let flush = "skip_iotlb_flush";
        assert_eq!(shown(&[x86], flush, &[]), both);
        assert_eq!(shown(&[x86], flush, &["revoke", "reassign"]), both);
        let one = [
            row(x86, "reassign", "control"),
            row(x86, "reassign", "caught"),
        ];
        assert_eq!(shown(&[x86], flush, &["reassign"]), one);
        assert_eq!(
            shown(&Arch::ALL, "ignore_permissions", &[]),
            [
                row(x86, "blocked", "control"),
                row(x86, "blocked", "caught"),
                row(arm, "blocked", "control"),
                row(arm, "blocked", "caught"),
            ]
        );
        // A fault of one vendor's driver is not planted in the other's.
        assert_eq!(
            shown(&Arch::ALL, "drop_last_scope", &[]),
            [
                row(x86, "discover", "control"),
                row(x86, "discover", "caught")
            ]
        );
    }

    #[test]
    fn what_is_not_listed_for_a_fault_has_to_pass_with_it() {
        let all = scenarios::on(Arch::X86_64, &scenarios::pick(&[]).unwrap());
        let one = ["skip_iotlb_flush"];
        for (faults, named) in [
            (&one[..], &["discover"][..]),
            (&one[..], &["revoke", "discover"][..]),
            (&["skip_iotlb_flush", "swap_neighbours"][..], &[]),
            (&[], &[]),
        ] {
            let boots = boots(&[Arch::X86_64], faults, named).unwrap();
            let [boot] = &boots[..] else {
                panic!("{boots:?}");
            };
            let mut asked = named.to_vec();
            asked.sort_by_key(|name| all.iter().position(|known| known == name));
            let asked = if named.is_empty() { all.clone() } else { asked };
            assert_eq!(
                (&boot.scenarios[..], boot.expect),
                (&asked[..], Expectation::Pass)
            );
        }
    }

    #[test]
    fn a_scenario_runs_where_there_is_what_it_shows() {
        let all = boots(&Arch::ALL, &[], &["nested"]).unwrap();
        let [boot] = &all[..] else {
            panic!("{all:?}");
        };
        assert_eq!(boot.arch, Arch::Aarch64);
        let none = boots(&[Arch::X86_64], &[], &["nested"]).unwrap_err();
        assert!(none.to_string().contains("expected --arch"), "{none}");
        let all = boots(&Arch::ALL, &[], &[]).unwrap();
        let has = |boot: &Boot| boot.scenarios.contains(&"nested");
        assert_eq!(all.iter().map(has).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn a_fault_with_the_scenario_of_another_is_told() {
        let told = unlisted("skip_iotlb_flush", &["discover"], Arch::X86_64);
        assert!(
            told.contains("reassign and revoke") && told.contains("discover has to pass"),
            "{told}"
        );
    }

    #[test]
    fn a_fault_that_is_not_there_is_told_with_those_that_are_near_it() {
        let told = |archs: &[Arch], fault| boots(archs, &[fault], &[]).unwrap_err().to_string();
        let typo = told(&[Arch::X86_64], "skip_iotlb_flsh");
        assert!(
            typo.contains("did you mean skip_iotlb_flush") && typo.contains("--list"),
            "{typo}"
        );
        let part = told(&[Arch::X86_64], "leave-translation");
        assert!(part.contains("leave_translation_off"), "{part}");
        let nothing = told(&[Arch::X86_64], "qqq");
        assert!(
            nothing.contains("--list") && !nothing.contains("did you mean"),
            "{nothing}"
        );
        let other = told(&[Arch::Aarch64], "drop_last_scope");
        assert!(other.contains("--arch x86_64"), "{other}");
        assert_eq!(distance("abc", "abc"), 0);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
