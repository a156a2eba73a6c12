//! The disk of a run: an image file of random bytes, its digest, and the pattern that the image writes to it.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Size of the disk in bytes.
pub(crate) const DISK_BYTES: u64 = 32 << 20;

/// An image file with what it held at first; the file is removed when this is dropped.
pub(crate) struct Disk {
    path: PathBuf,
    before: Vec<u8>,
    nonce: u64,
}

impl Disk {
    /// Makes a disk of random content with a random nonce in `folder`, and removes what killed runs left there.
    pub(crate) fn create(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        remove_leftovers(folder);
        let before = random_bytes(DISK_BYTES)?;
        let nonce = u64::from_le_bytes(random_bytes(8)?.try_into().unwrap_or_default());
        // Tests of this package make several disks in one process.
        let path = folder.join(format!("disk-{}-{nonce:016x}.img", std::process::id()));
        let disk = Self {
            path,
            before,
            nonce,
        };
        fs::write(&disk.path, &disk.before)
            .with_context(|| format!("writing {}", disk.path.display()))?;
        Ok(disk)
    }

    /// The image file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The content the disk was made with.
    pub(crate) fn before(&self) -> &[u8] {
        &self.before
    }

    /// The number the written pattern starts from.
    pub(crate) fn nonce(&self) -> u64 {
        self.nonce
    }

    /// The content the file has now.
    pub(crate) fn read(&self) -> Result<Vec<u8>> {
        fs::read(&self.path).with_context(|| format!("reading {}", self.path.display()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A file that stays is removed by the next run.
        let _ = fs::remove_file(&self.path);
    }
}

/// SHA-256 of `bytes` in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The first `bytes` bytes of the pattern: word k, little-endian, is `splitmix64(nonce + k)`.
pub(crate) fn pattern(nonce: u64, bytes: usize) -> Vec<u8> {
    let words = (0..).map(|k| splitmix64(nonce.wrapping_add(k)));
    words.flat_map(u64::to_le_bytes).take(bytes).collect()
}

fn splitmix64(x: u64) -> u64 {
    let z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn random_bytes(count: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open("/dev/urandom")
        .and_then(|source| source.take(count).read_to_end(&mut bytes))
        .context("reading random bytes from /dev/urandom")?;
    Ok(bytes)
}

/// Removes disks whose maker no longer runs; failures leave a file in the build folder and matter to nobody.
fn remove_leftovers(folder: &Path) {
    let Ok(files) = fs::read_dir(folder) else {
        return;
    };
    for file in files.flatten() {
        let name = file.file_name();
        let name = name.to_string_lossy();
        let maker = name
            .strip_prefix("disk-")
            .and_then(|rest| rest.split('-').next());
        if maker
            .is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists())
        {
            let _ = fs::remove_file(file.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_is_splitmix64() {
        // The first outputs of the published generator for seed 1234567 start at state seed, one golden ratio a step;
        // here the counter goes up by one, so only the first word is shared with that sequence.
        assert_eq!(splitmix64(1_234_567), 6_457_827_717_110_365_317);
        assert_eq!(splitmix64(0), 0xE220_A839_7B1D_CDAF);
        let bytes = pattern(u64::MAX, 20);
        assert_eq!(bytes[..8], splitmix64(u64::MAX).to_le_bytes());
        assert_eq!(
            bytes[8..16],
            splitmix64(0).to_le_bytes(),
            "the counter wraps"
        );
        assert_eq!(bytes[16..], splitmix64(1).to_le_bytes()[..4]);
    }

    #[test]
    fn the_digest_is_sha256() {
        assert_eq!(
            sha256(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_disk_is_random_and_goes_away() {
        let folder = tempfile::tempdir().unwrap();
        let leftover = folder.path().join("disk-4294967295-0.img");
        fs::write(&leftover, "").unwrap();
        let disk = Disk::create(folder.path()).unwrap();
        assert!(!leftover.exists());
        assert_eq!(disk.before().len() as u64, DISK_BYTES);
        assert_eq!(disk.read().unwrap(), disk.before());
        let other = Disk::create(folder.path()).unwrap();
        assert_ne!(other.before()[..64], disk.before()[..64]);
        let path = disk.path().to_owned();
        drop(disk);
        assert!(!path.exists());
    }
}
