//! Requests as a guest writes them: by hand, not with the layouts of the crate.

/// A request with this command and these fields, each with its width in bytes.
pub(crate) fn request(command: u16, fields: &[(u64, usize)]) -> Vec<u8> {
    let mut bytes = vec![1, 0];
    bytes.extend(command.to_le_bytes());
    bytes.extend([0; 4]);
    for (value, width) in fields {
        bytes.extend(&value.to_le_bytes()[..*width]);
    }
    with_length(bytes)
}

/// The same bytes, with their own length in the header.
pub(crate) fn with_length(mut bytes: Vec<u8>) -> Vec<u8> {
    let length = bytes.len() as u32;
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes
}

pub(crate) const READ: u64 = 1;
pub(crate) const WRITE: u64 = 2;

pub(crate) fn create(bits: u64) -> Vec<u8> {
    request(1, &[(bits, 4), (0, 4)])
}

pub(crate) fn destroy(id: u32) -> Vec<u8> {
    one(2, id)
}

pub(crate) fn map(id: u32, flags: u64, at: u64, gpa: u64, bytes: u64) -> Vec<u8> {
    let id = (u64::from(id), 4);
    request(3, &[id, (flags, 4), (at, 8), (gpa, 8), (bytes, 8)])
}

pub(crate) fn unmap(id: u32, at: u64, bytes: u64) -> Vec<u8> {
    span(4, id, at, bytes)
}

pub(crate) fn unmap_all(id: u32) -> Vec<u8> {
    one(5, id)
}

pub(crate) fn split(id: u32, at: u64) -> Vec<u8> {
    request(6, &[(u64::from(id), 4), (0, 4), (at, 8)])
}

pub(crate) fn copy(id: u32, flags: u64, source: u32, from: u64, at: u64, bytes: u64) -> Vec<u8> {
    let (id, source) = ((u64::from(id), 4), (u64::from(source), 4));
    request(
        7,
        &[
            id,
            (flags, 4),
            source,
            (0, 4),
            (from, 8),
            (at, 8),
            (bytes, 8),
        ],
    )
}

pub(crate) fn allow(id: u32, at: u64, bytes: u64) -> Vec<u8> {
    span(8, id, at, bytes)
}

pub(crate) fn reserve(id: u32, at: u64, bytes: u64) -> Vec<u8> {
    span(9, id, at, bytes)
}

pub(crate) fn drop_window(id: u32) -> Vec<u8> {
    one(10, id)
}

pub(crate) fn query(id: u32, at: u64) -> Vec<u8> {
    request(11, &[(u64::from(id), 4), (0, 4), (at, 8)])
}

pub(crate) fn dirty(id: u32, flags: u64, at: u64, bytes: u64, bitmap: u64) -> Vec<u8> {
    let id = (u64::from(id), 4);
    request(12, &[id, (flags, 4), (at, 8), (bytes, 8), (bitmap, 8)])
}

pub(crate) fn retry(id: u32) -> Vec<u8> {
    one(13, id)
}

fn one(command: u16, id: u32) -> Vec<u8> {
    request(command, &[(u64::from(id), 4), (0, 4)])
}

fn span(command: u16, id: u32, at: u64, bytes: u64) -> Vec<u8> {
    request(command, &[(u64::from(id), 4), (0, 4), (at, 8), (bytes, 8)])
}
