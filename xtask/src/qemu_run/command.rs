//! QEMU's command line for a run, and the guards that end QEMU when this program is gone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::arch::{Arch, Board};
use crate::tools::find_in_path;

/// How much of the disk, from its begin, the image reads and digests.
pub(crate) const READ_BYTES: u64 = 16 << 20;
/// Where on the disk the image writes.
pub(crate) const WRITE_OFFSET: u64 = 24 << 20;
/// How much it writes there.
pub(crate) const WRITE_BYTES: u64 = 64 << 10;

/// The page of the disk that blocked commands name: what a device stores there when its read of memory was blocked is
/// up to the device, as long as it is nothing from memory.
pub(crate) const SCRATCH: (u64, u64) = (30 << 20, 4 << 10);

/// Where QEMU waits for a debugger.
pub(crate) const GDB_PORT: u16 = 1234;

/// What differs from run to run.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// Its architecture.
    pub(crate) arch: Arch,
    /// The board, where there are several.
    pub(crate) board: Option<Board>,
    /// Processors.
    pub(crate) smp: u32,
    /// The image to boot.
    pub(crate) image: PathBuf,
    /// Names of the scenarios.
    pub(crate) scenarios: Vec<&'static str>,
    /// Planted faults to switch on, in a build that has them.
    pub(crate) faults: Vec<String>,
    /// Where QEMU's own trace of the IOMMU goes.
    pub(crate) trace: Option<PathBuf>,
    /// Whether the machine stands still until a debugger lets it go.
    pub(crate) gdb: bool,
    /// More words for QEMU.
    pub(crate) extra: Vec<String>,
}

impl Machine {
    /// The words that the image reads.
    fn kernel_words(&self, nonce: u64) -> String {
        let mut words = vec![
            format!("scenario={}", self.scenarios.join(",")),
            format!("nonce={nonce:016x}"),
            format!("read-bytes={READ_BYTES}"),
            format!("write-offset={WRITE_OFFSET}"),
            format!("write-bytes={WRITE_BYTES}"),
        ];
        if !self.faults.is_empty() {
            words.push(format!("fault={}", self.faults.join(",")));
        }
        words.join(" ")
    }

    /// QEMU's arguments for this machine with the given disk.
    pub(crate) fn arguments(&self, disk: &Path, nonce: u64) -> Vec<String> {
        // QEMU splits option values at commas; a comma in a path is doubled.
        let disk = disk.display().to_string().replace(',', ",,");
        let fixed = [
            self.board_words(),
            "-accel tcg,thread=multi -cpu max -m 512 -nodefaults -display none",
            "-serial stdio -no-reboot",
            "-device nvme,drive=disk0,serial=hv0001,addr=3",
            "-device pcie-root-port,id=rp0,chassis=1,addr=4",
            "-device virtio-rng-pci,bus=rp0,iommu_platform=on,disable-legacy=on",
        ];
        let mut arguments: Vec<String> = fixed.join(" ").split(' ').map(str::to_owned).collect();
        arguments.extend(["-smp".to_owned(), self.smp.to_string()]);
        arguments.extend([
            "-drive".to_owned(),
            format!("file={disk},if=none,id=disk0,format=raw"),
        ]);
        arguments.extend(["-kernel".to_owned(), self.image.display().to_string()]);
        arguments.extend(["-append".to_owned(), self.kernel_words(nonce)]);
        if let Some(file) = &self.trace {
            for prefix in self.arch.trace_prefixes() {
                arguments.extend(["-trace".to_owned(), format!("enable={prefix}*")]);
            }
            arguments.extend(["-D".to_owned(), file.display().to_string()]);
        }
        if self.gdb {
            arguments.extend([
                "-gdb".to_owned(),
                format!("tcp::{GDB_PORT}"),
                "-S".to_owned(),
            ]);
        }
        arguments.extend(self.extra.iter().cloned());
        arguments
    }

    /// The board with its IOMMU, and the device that ends the run with a code.
    fn board_words(&self) -> &'static str {
        match (self.arch, self.board) {
            (Arch::X86_64, _) => {
                "-machine q35 -device intel-iommu,intremap=on,aw-bits=48 -device isa-debug-exit,iobase=0xf4,iosize=4"
            }
            (Arch::Aarch64, None | Some(Board::Nested)) => {
                "-machine virt,virtualization=on,gic-version=3,iommu=smmuv3 -semihosting-config enable=on,target=native"
            }
            (Arch::Aarch64, Some(Board::Stage2)) => {
                "-machine virt-9.1,virtualization=on,gic-version=3,iommu=smmuv3 -global arm-smmuv3.stage=2 \
                 -semihosting-config enable=on,target=native"
            }
            (Arch::Aarch64, Some(Board::Stage1)) => {
                "-machine virt-9.1,virtualization=on,gic-version=3,iommu=smmuv3 -global arm-smmuv3.stage=1 \
                 -semihosting-config enable=on,target=native"
            }
        }
    }

    /// The machine in a few words, for people.
    pub(crate) fn shown(&self) -> String {
        match self.board {
            Some(board) => format!("{}, board {}, smp {}", self.arch, board.name(), self.smp),
            None => format!("{}, smp {}", self.arch, self.smp),
        }
    }
}

/// `program` with a second guard around it, as far as the system has the tools: `setpriv` ends it when this program
/// dies without a chance to do so itself, `timeout` when the limit is over by far.
pub(crate) fn guarded(program: &Path, limit: Duration) -> Command {
    let mut words: Vec<String> = Vec::new();
    if find_in_path("setpriv").is_some() {
        words.extend(["setpriv", "--pdeathsig", "TERM"].map(String::from));
    }
    if find_in_path("timeout").is_some() {
        words.extend(
            [
                "timeout",
                "--kill-after=2",
                &(limit.as_secs() + 5).to_string(),
            ]
            .map(String::from),
        );
    }
    words.push(program.display().to_string());
    let mut words = words.into_iter();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            arch: Arch::X86_64,
            board: None,
            smp: 4,
            image: "/tmp/hv-image".into(),
            scenarios: vec!["discover", "kernel-dma"],
            faults: vec![],
            trace: None,
            gdb: false,
            extra: vec![],
        }
    }

    fn after(arguments: &[String], name: &str) -> String {
        let at = arguments.iter().position(|word| word == name).unwrap();
        arguments[at + 1].clone()
    }

    #[test]
    fn the_kernel_words_follow_the_contract() {
        let arguments = machine().arguments(Path::new("/tmp/d.img"), 0xab);
        assert_eq!(
            after(&arguments, "-append"),
            "scenario=discover,kernel-dma nonce=00000000000000ab read-bytes=16777216 write-offset=25165824 \
             write-bytes=65536"
        );
        assert_eq!(after(&arguments, "-smp"), "4");
        assert!(arguments.contains(&"intel-iommu,intremap=on,aw-bits=48".to_owned()));
        let faulty = Machine {
            faults: vec!["a".into(), "b".into()],
            ..machine()
        };
        assert!(after(&faulty.arguments(Path::new("/d"), 0), "-append").ends_with(" fault=a,b"));
    }

    #[test]
    fn the_arm_board_has_an_smmu_with_the_stages_that_were_asked_for() {
        let arm = |board| Machine {
            arch: Arch::Aarch64,
            board,
            ..machine()
        };
        let words = |board| arm(board).arguments(Path::new("/d"), 0);
        let board = "virt,virtualization=on,gic-version=3,iommu=smmuv3";
        assert_eq!(after(&words(None), "-machine"), board);
        assert_eq!(after(&words(Some(Board::Nested)), "-machine"), board);
        // The newer board sets the stages itself, and ignores the property.
        for (choice, stage) in [(Board::Stage2, 2), (Board::Stage1, 1)] {
            let words = words(Some(choice));
            assert!(after(&words, "-machine").starts_with("virt-9.1,"));
            assert_eq!(
                after(&words, "-global"),
                format!("arm-smmuv3.stage={stage}")
            );
        }
        let traced = Machine {
            trace: Some("t.log".into()),
            gdb: true,
            ..arm(None)
        };
        let words = traced.arguments(Path::new("/d"), 0).join(" ");
        assert!(
            words.ends_with(
                "-trace enable=smmu_* -trace enable=smmuv3_* -D t.log -gdb tcp::1234 -S"
            )
        );
    }

    #[test]
    fn a_comma_in_the_disks_path_is_doubled() {
        let arguments = machine().arguments(Path::new("/tmp/a,b.img"), 0);
        assert_eq!(
            after(&arguments, "-drive"),
            "file=/tmp/a,,b.img,if=none,id=disk0,format=raw"
        );
    }

    #[test]
    fn trace_and_further_words_come_last() {
        let traced = Machine {
            trace: Some("t.log".into()),
            extra: vec!["-d".into(), "int".into()],
            ..machine()
        };
        let arguments = traced.arguments(Path::new("/d"), 0);
        assert_eq!(
            arguments[arguments.len() - 6..],
            ["-trace", "enable=vtd_*", "-D", "t.log", "-d", "int"]
        );
    }

    #[test]
    fn the_guarded_program_keeps_its_exit_code() {
        let mut command = guarded(Path::new("sh"), Duration::from_secs(20));
        command.args(["-c", "exit 33"]);
        let finished = crate::process::run_quiet(&mut command, Duration::from_secs(20)).unwrap();
        assert_eq!(finished.end, crate::process::End::Exited(33));
    }
}
