//! Finds QEMU, judges its version and has it installed where that is possible.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use console::style;

use crate::arch::Arch;
use crate::process::run_quiet;
use crate::tools::os_release::{OsRelease, debian_package};
use crate::tools::{debian, find_in_path};

const QUERY_LIMIT: Duration = Duration::from_secs(30);

/// A release of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    major: u32,
    minor: u32,
    micro: u32,
}

/// The scenarios were run on this release and later ones.
const TESTED: Version = Version::new(10, 0, 0);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// What a release is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fitness {
    /// The scenarios are run on it.
    Tested,
    /// It should work but was not tried.
    Untested,
    /// It cannot work.
    TooOld,
}

impl Version {
    /// The release with this number.
    pub(crate) const fn new(major: u32, minor: u32, micro: u32) -> Self {
        Self {
            major,
            minor,
            micro,
        }
    }

    /// Reads the first line of `qemu-system-x86_64 --version`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once("version ")?;
        let number = rest
            .split(|c: char| !(c.is_ascii_digit() || c == '.'))
            .next()?;
        let mut parts = number.split('.').map(str::parse::<u32>);
        let major = parts.next()?.ok()?;
        let minor = parts.next()?.ok()?;
        let micro = parts.next().and_then(Result::ok).unwrap_or(0);
        Some(Self {
            major,
            minor,
            micro,
        })
    }

    /// Judges the release for the image of `arch`.
    pub(crate) fn fitness(self, arch: Arch) -> Fitness {
        if self < arch.oldest_qemu() {
            Fitness::TooOld
        } else if self < TESTED {
            Fitness::Untested
        } else {
            Fitness::Tested
        }
    }
}

/// A QEMU that can be used.
#[derive(Clone, Debug)]
pub(crate) struct Qemu {
    /// The program.
    pub(crate) program: PathBuf,
    /// Its release.
    pub(crate) version: Version,
}

/// Finds a usable QEMU for the image of `arch`, and installs one on Debian if there is none or only one that is too old.
///
/// # Errors
/// One sentence with the command to run, when there is no usable QEMU and none could be installed.
pub(crate) fn ensure(arch: Arch, scratch: &Path, verbose: bool) -> Result<Qemu> {
    let why = match find(arch)? {
        Some(qemu) => match qemu.version.fitness(arch) {
            Fitness::Tested => return Ok(qemu),
            Fitness::Untested => {
                println!(
                    "{} QEMU {} was not tried with these scenarios (tested: {TESTED} and later); going on.",
                    style("warning:").yellow().bold(),
                    qemu.version
                );
                return Ok(qemu);
            }
            Fitness::TooOld => format!(
                "QEMU {} at {} is too old: the emulated {} needs {} or newer",
                qemu.version,
                qemu.program.display(),
                arch.iommu(),
                arch.oldest_qemu()
            ),
        },
        None => format!("{} is not in PATH", arch.emulator()),
    };
    let os = OsRelease::of_this_machine();
    let package = match debian_package(&os, arch) {
        Ok(package) => package,
        Err(advice) => bail!("{why}: {advice}"),
    };
    println!("{why}.");
    debian::install_qemu(arch.debian_package(), &os, &package, scratch, verbose)
        .with_context(|| why.clone())?;
    match find(arch)? {
        Some(qemu) if qemu.version.fitness(arch) != Fitness::TooOld => {
            println!("QEMU {} is installed.", qemu.version);
            Ok(qemu)
        }
        Some(qemu) => bail!(
            "after the installation {} is still QEMU {}: remove it or put a newer one before it in PATH",
            qemu.program.display(),
            qemu.version
        ),
        None => bail!(
            "the installation went through but {} is still not in PATH: add /usr/bin to PATH",
            arch.emulator()
        ),
    }
}

fn find(arch: Arch) -> Result<Option<Qemu>> {
    let Some(program) = find_in_path(arch.emulator()) else {
        return Ok(None);
    };
    let finished = run_quiet(Command::new(&program).arg("--version"), QUERY_LIMIT)?;
    let text = finished.stdout();
    let Some(version) = Version::parse(&text) else {
        bail!(
            "`{} --version` gives no version: expected \"QEMU emulator version N.N.N\", found {:?} ({})",
            program.display(),
            text.lines().next().unwrap_or_default(),
            finished.end
        );
    };
    Ok(Some(Qemu { program, version }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_lines_of_real_builds_are_read() {
        let debian = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright (c) 2003-2025";
        assert_eq!(Version::parse(debian), Some(Version::new(10, 0, 2)));
        let fedora = "QEMU emulator version 9.1.3 (qemu-9.1.3-2.fc41)";
        assert_eq!(Version::parse(fedora), Some(Version::new(9, 1, 3)));
        assert_eq!(
            Version::parse("QEMU emulator version 8.2.0-rc1"),
            Some(Version::new(8, 2, 0))
        );
        assert_eq!(Version::parse("something else"), None);
        assert_eq!(Version::parse("QEMU emulator version x"), None);
    }

    #[test]
    fn the_two_bounds_are_where_they_should_be() {
        let judged = |text: &str, arch| {
            Version::parse(&format!("QEMU emulator version {text}"))
                .unwrap()
                .fitness(arch)
        };
        let fitness = |text: &str| judged(text, Arch::X86_64);
        assert_eq!(fitness("7.2.19"), Fitness::TooOld);
        assert_eq!(fitness("8.1.5"), Fitness::TooOld);
        assert_eq!(fitness("8.2.0"), Fitness::Untested);
        assert_eq!(fitness("9.2.4"), Fitness::Untested);
        assert_eq!(fitness("10.0.0"), Fitness::Tested);
        assert_eq!(fitness("11.1.0"), Fitness::Tested);
        assert_eq!(judged("9.1.3", Arch::Aarch64), Fitness::TooOld);
        assert_eq!(judged("9.2.0", Arch::Aarch64), Fitness::Untested);
        assert_eq!(judged("10.0.2", Arch::Aarch64), Fitness::Tested);
    }
}
