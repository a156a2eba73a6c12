//! Which system this is, as `/etc/os-release` says, and how QEMU gets onto it.

use std::fs;

use crate::arch::Arch;

/// The fields of os-release that matter here; empty when absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OsRelease {
    /// `ID`, as `debian` or `fedora`.
    pub(crate) id: String,
    /// `VERSION_ID`, as `12`; testing and unstable have none.
    pub(crate) version: String,
    /// `VERSION_CODENAME`, as `bookworm`.
    pub(crate) codename: String,
}

impl OsRelease {
    /// Reads this machine's file; a machine without one gives empty fields.
    pub(crate) fn of_this_machine() -> Self {
        let text = fs::read_to_string("/etc/os-release")
            .or_else(|_| fs::read_to_string("/usr/lib/os-release"));
        Self::parse(&text.unwrap_or_default())
    }

    /// Reads `KEY=value` lines, with or without quotes.
    pub(crate) fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let Some((key, value)) = line.trim().split_once('=') else {
                continue;
            };
            let value = value.trim().trim_matches(['"', '\'']).to_owned();
            match key {
                "ID" => found.id = value,
                "VERSION_ID" => found.version = value,
                "VERSION_CODENAME" => found.codename = value,
                _ => {}
            }
        }
        found
    }
}

/// Where Debian's package of a new enough QEMU comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DebianPackage {
    /// The release's own archive.
    Plain,
    /// This backports suite.
    Backports(String),
}

/// Says where QEMU comes from on this system, or the command a person has to run there for the one of `arch`.
pub(crate) fn debian_package(os: &OsRelease, arch: Arch) -> Result<DebianPackage, String> {
    if os.id != "debian" {
        let command = match (os.id.as_str(), arch) {
            ("ubuntu" | "linuxmint" | "pop", _) => {
                format!("sudo apt-get install {}", arch.debian_package())
            }
            ("fedora" | "rhel" | "centos" | "rocky" | "almalinux", Arch::X86_64) => {
                "sudo dnf install qemu-system-x86-core".into()
            }
            ("fedora" | "rhel" | "centos" | "rocky" | "almalinux", Arch::Aarch64) => {
                "sudo dnf install qemu-system-aarch64-core".into()
            }
            ("arch" | "manjaro", Arch::X86_64) => "sudo pacman -S qemu-system-x86".into(),
            ("arch" | "manjaro", Arch::Aarch64) => "sudo pacman -S qemu-system-aarch64".into(),
            ("alpine", _) => format!("sudo apk add {}", arch.emulator()),
            ("opensuse-leap" | "opensuse-tumbleweed", Arch::X86_64) => {
                "sudo zypper install qemu-x86".into()
            }
            ("opensuse-leap" | "opensuse-tumbleweed", Arch::Aarch64) => {
                "sudo zypper install qemu-arm".into()
            }
            ("nixos", _) => "nix-shell -p qemu".into(),
            _ => {
                return Err(format!(
                    "install QEMU 10 or newer with your system's packages (`brew install qemu` on macOS), so that {} \
                     is in PATH",
                    arch.emulator()
                ));
            }
        };
        return Err(format!("run `{command}`"));
    }
    match os.version.parse::<u32>() {
        Ok(12) => Ok(DebianPackage::Backports("bookworm-backports".into())),
        Ok(13..) => Ok(DebianPackage::Plain),
        Ok(old) => Err(format!(
            "Debian {old} has no new enough QEMU: upgrade to Debian 12 or newer, or build QEMU 10 from source"
        )),
        // Testing and unstable carry no version number.
        Err(_) => Ok(DebianPackage::Plain),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(text: &str) -> Result<DebianPackage, String> {
        debian_package(&OsRelease::parse(text), Arch::X86_64)
    }

    #[test]
    fn quotes_and_order_do_not_matter() {
        let os = OsRelease::parse(
            "NAME=\"Debian GNU/Linux\"\nVERSION_ID='12'\nVERSION_CODENAME=bookworm\nID=debian\n",
        );
        assert_eq!(
            os,
            OsRelease {
                id: "debian".into(),
                version: "12".into(),
                codename: "bookworm".into()
            }
        );
    }

    #[test]
    fn bookworm_takes_backports_and_later_releases_their_own() {
        assert_eq!(
            package("ID=debian\nVERSION_ID=\"12\""),
            Ok(DebianPackage::Backports("bookworm-backports".into()))
        );
        assert_eq!(
            package("ID=debian\nVERSION_ID=\"13\""),
            Ok(DebianPackage::Plain)
        );
        assert_eq!(
            package("ID=debian\nVERSION_CODENAME=forky"),
            Ok(DebianPackage::Plain)
        );
        assert!(
            package("ID=debian\nVERSION_ID=\"11\"")
                .unwrap_err()
                .contains("Debian 11")
        );
    }

    #[test]
    fn other_systems_get_the_command_to_run() {
        assert!(package("ID=fedora").unwrap_err().contains("dnf install"));
        assert!(package("ID=arch").unwrap_err().contains("pacman -S"));
        assert!(package("").unwrap_err().contains("qemu-system-x86_64"));
        let arm = |text| debian_package(&OsRelease::parse(text), Arch::Aarch64).unwrap_err();
        assert!(arm("ID=ubuntu").contains("qemu-system-arm"));
        assert!(arm("ID=fedora").contains("qemu-system-aarch64-core"));
        assert!(arm("").contains("qemu-system-aarch64"));
    }
}
