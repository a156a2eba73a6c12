//! Installs QEMU on Debian: from the release itself, or on bookworm from its backports.
//!
//! The backports entry lives in a temporary folder of sources that is handed to apt, so the system's own
//! configuration stays as it was. A newer release is never mixed in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::{self, run_quiet};
use crate::progress;
use crate::tools::apt_sources::{Format, with_suite};
use crate::tools::find_in_path;
use crate::tools::os_release::{DebianPackage, OsRelease};

const UPDATE_LIMIT: Duration = Duration::from_secs(180);
const INSTALL_LIMIT: Duration = Duration::from_secs(600);

/// How apt is run with the rights it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rights {
    Root,
    Sudo,
}

impl Rights {
    fn of_this_process() -> Option<Self> {
        if rustix::process::geteuid().is_root() {
            return Some(Self::Root);
        }
        find_in_path("sudo")?;
        let mut ask = Command::new("sudo");
        ask.args(["-n", "true"]);
        let finished = run_quiet(&mut ask, Duration::from_secs(20)).ok()?;
        finished.end.success().then_some(Self::Sudo)
    }

    /// `apt-get` that asks nothing. Under sudo `timeout` keeps the limit, as this process may not kill root's.
    fn apt_get(self, limit: Duration) -> Command {
        let (program, first): (&str, Vec<String>) = match self {
            Self::Root => ("env", vec![]),
            Self::Sudo => (
                "sudo",
                [
                    "-n",
                    "timeout",
                    "-k",
                    "5",
                    &limit.as_secs().to_string(),
                    "env",
                ]
                .map(String::from)
                .to_vec(),
            ),
        };
        let mut command = Command::new(program);
        command.args(first).args([
            "DEBIAN_FRONTEND=noninteractive",
            "LC_ALL=C.UTF-8",
            "apt-get",
        ]);
        command.args(["-o", "DPkg::Lock::Timeout=300"]);
        command
    }
}

/// Installs the package `name`, which has a QEMU, from `package`; `scratch` is a folder for temporary files.
///
/// # Errors
/// With the command to run by hand, when there are no rights for apt; with apt's own words when apt fails.
pub(crate) fn install_qemu(
    name: &str,
    os: &OsRelease,
    package: &DebianPackage,
    scratch: &Path,
    verbose: bool,
) -> Result<()> {
    let Some(rights) = Rights::of_this_process() else {
        bail!(
            "installing it needs root and sudo asks for a password here: \
             run `sudo -v && cargo xtask run-qemu`, or `cargo xtask run-qemu` as root"
        );
    };
    let mut options: Vec<String> = Vec::new();
    let mut from: Vec<String> = Vec::new();
    let mut sources = None;
    let origin = match package {
        DebianPackage::Plain => os.codename.clone(),
        DebianPackage::Backports(suite) => {
            let entries = machine_sources()?;
            let folder = TemporarySources::write(scratch, &entries, &os.codename, suite)?;
            options.extend([
                "-o".into(),
                format!("Dir::Etc::sourceparts={}", folder.path.display()),
            ]);
            options.extend(["-o".into(), "Dir::Etc::sourcelist=/dev/null".into()]);
            from.extend(["-t".into(), suite.clone()]);
            sources = Some(folder);
            suite.clone()
        }
    };
    println!("QEMU is installed now: Debian package {name} from {origin}.");
    let mut update = rights.apt_get(UPDATE_LIMIT);
    update.args(&options).arg("update");
    // A third party's archive may be broken without harm to QEMU; what matters shows at the installation.
    let updated = progress::run_job("apt-get update", &mut update, UPDATE_LIMIT, verbose)?;
    let mut install = rights.apt_get(INSTALL_LIMIT);
    install
        .args(&options)
        .args(["install", "--yes", "--no-install-recommends"])
        .args(&from)
        .arg(name);
    let job = format!("apt-get install {name} ({origin})");
    let installed = progress::run_job(&job, &mut install, INSTALL_LIMIT, verbose)?;
    drop(sources);
    if !installed.end.success() {
        bail!(
            "QEMU could not be installed: `{}` ended with {}{}",
            process::shown(&install),
            installed.end,
            if updated.end.success() {
                ""
            } else {
                " (and apt-get update had failed before)"
            }
        );
    }
    Ok(())
}

/// Name and text of each file that apt reads on this machine.
fn machine_sources() -> Result<Vec<(String, String)>> {
    let etc = Path::new("/etc/apt");
    let mut files = Vec::new();
    if let Ok(text) = fs::read_to_string(etc.join("sources.list")) {
        files.push(("machine-sources.list".to_owned(), text));
    }
    let folder = etc.join("sources.list.d");
    if let Ok(entries) = fs::read_dir(&folder) {
        for entry in entries {
            let name = entry
                .with_context(|| format!("reading {}", folder.display()))?
                .file_name();
            let name = name.to_string_lossy().into_owned();
            if Format::of_name(&name).is_some() {
                let path = folder.join(&name);
                files.push((
                    name,
                    fs::read_to_string(&path)
                        .with_context(|| format!("reading {}", path.display()))?,
                ));
            }
        }
    }
    files.sort();
    Ok(files)
}

/// A folder of apt sources that is removed when dropped.
struct TemporarySources {
    path: PathBuf,
}

impl TemporarySources {
    /// Copies the machine's own `entries` and adds one for `backports`, with the address the machine uses for `release`.
    fn write(
        scratch: &Path,
        entries: &[(String, String)],
        release: &str,
        backports: &str,
    ) -> Result<Self> {
        let entries_of = |suite: &str| -> Vec<(String, String)> {
            let rewritten = entries.iter().filter_map(|(name, text)| {
                Some((
                    format!("backports-of-{name}"),
                    with_suite(text, Format::of_name(name)?, suite, backports),
                ))
            });
            rewritten.filter(|(_, text)| !text.is_empty()).collect()
        };
        let known = !entries_of(backports).is_empty();
        let additions = if known {
            Vec::new()
        } else {
            entries_of(release)
        };
        if additions.is_empty() && !known {
            bail!(
                "no entry for {release} in /etc/apt, so the archive's address for {backports} is unknown: \
                 add a {backports} entry to /etc/apt/sources.list.d and run this again"
            );
        }
        let path = scratch.join(format!("apt-sources-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        let folder = Self { path };
        for (name, text) in entries.iter().chain(&additions) {
            let file = folder.path.join(name);
            fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(folder)
    }
}

impl Drop for TemporarySources {
    fn drop(&mut self) {
        // What stays behind on failure is a small folder inside the build folder.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str =
        "Types: deb\nURIs: http://archive.example/debian\nSuites: bookworm\nComponents: main\n";

    fn entries(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect()
    }

    #[test]
    fn the_folder_holds_the_machines_files_and_one_for_backports() {
        let scratch = tempfile::tempdir().unwrap();
        let own = entries(&[
            ("debian.sources", OWN),
            ("other.list", "deb http://other.example stable main\n"),
        ]);
        let folder =
            TemporarySources::write(scratch.path(), &own, "bookworm", "bookworm-backports")
                .unwrap();
        assert_eq!(
            fs::read_to_string(folder.path.join("debian.sources")).unwrap(),
            OWN
        );
        let added = fs::read_to_string(folder.path.join("backports-of-debian.sources")).unwrap();
        assert!(
            added.contains("URIs: http://archive.example/debian\nSuites: bookworm-backports\n"),
            "{added}"
        );
        assert!(!folder.path.join("backports-of-other.list").exists());
        let path = folder.path.clone();
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn an_entry_the_machine_has_is_not_added_again() {
        let scratch = tempfile::tempdir().unwrap();
        let own = entries(&[
            ("debian.sources", OWN),
            ("late.list", "deb http://a bookworm-backports main\n"),
        ]);
        let folder =
            TemporarySources::write(scratch.path(), &own, "bookworm", "bookworm-backports")
                .unwrap();
        assert_eq!(fs::read_dir(&folder.path).unwrap().count(), 2);
    }

    #[test]
    fn without_an_own_entry_the_address_is_not_invented() {
        let scratch = tempfile::tempdir().unwrap();
        let own = entries(&[("other.list", "deb http://other.example stable main\n")]);
        let error = TemporarySources::write(scratch.path(), &own, "bookworm", "bookworm-backports")
            .err()
            .unwrap();
        assert!(
            error.to_string().contains("no entry for bookworm"),
            "{error}"
        );
    }
}
