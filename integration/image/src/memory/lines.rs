//! Which cache lines a run of bytes touches.

/// First byte of each line that holds one of the `bytes` bytes from `from`; `line` is a power of two.
pub fn line_starts(from: u64, bytes: u64, line: u64) -> impl Iterator<Item = u64> {
    let first = from & !(line - 1);
    let end = from.saturating_add(bytes);
    let count = if bytes == 0 {
        0
    } else {
        (end - first).div_ceil(line)
    };
    (0..count).map(move |index| first + index * line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_touched_line_is_named_once() {
        let starts = |from, bytes| line_starts(from, bytes, 64).collect::<Vec<_>>();
        assert_eq!(starts(0x1000, 64), [0x1000]);
        assert_eq!(starts(0x1000, 65), [0x1000, 0x1040]);
        assert_eq!(starts(0x103f, 2), [0x1000, 0x1040]);
        assert_eq!(starts(0x1008, 8), [0x1000]);
        assert_eq!(starts(0x1008, 0), [0; 0]);
    }
}
