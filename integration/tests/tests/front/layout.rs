//! iommufd `cmd_fail`, `cmd_length`, `cmd_ex_fail`: too short, longer, with a tail.

use hv_iommu::front::Code;

use super::requests::{self, READ};
use super::stand::{MEMORY, Stand};

/// One request of each command that would be done, or refused for what it names alone.
fn each(id: u32) -> Vec<Vec<u8>> {
    vec![
        requests::create(39),
        requests::map(id, READ, 0x9000, MEMORY, 0x1000),
        requests::copy(id, READ, id, 0x9000, 0x2_0000, 0x1000),
        requests::split(id, 0xa000),
        requests::query(id, 0x9000),
        requests::unmap(id, 0x9000, 0x1000),
        requests::unmap_all(id),
        requests::allow(id, 0x10_0000, 0x1000),
        requests::reserve(id, 0x20_0000, 0x1000),
        requests::drop_window(id),
        requests::dirty(id, 0, 0x9000, 0x1000, MEMORY),
        requests::retry(id),
        requests::destroy(id),
    ]
}

#[test]
fn cmd_length_every_command_too_short_is_refused() {
    let mut stand = Stand::new(100);
    let id = stand.create();
    let before = stand.state(&[id]);
    for request in each(id) {
        for length in 0..request.len() {
            // Cut off, with and without the length that it then has.
            let cut = request[..length].to_vec();
            assert_eq!(stand.refused(&cut), Code::TooShort, "{request:x?}");
            if length >= 8 {
                let mut said = requests::with_length(cut);
                assert_eq!(stand.refused(&said), Code::TooShort);
                // More bytes than it says: those it says count.
                said.extend(&request[length..]);
                assert_eq!(stand.refused(&said), Code::TooShort);
            }
        }
        assert_eq!(stand.state(&[id]), before);
    }
    assert_eq!(each(id).len(), 13, "one for each command");
    stand.end();
}

#[test]
fn cmd_ex_fail_longer_is_the_same_with_zeroes_and_refused_with_anything_else() {
    let mut stand = Stand::new(100);
    let id = stand.create();
    for request in each(id) {
        let before = stand.state(&[id]);
        for place in [0, 1, 7, 63] {
            let mut longer = request.clone();
            longer.resize(request.len() + 64, 0);
            longer[request.len() + place] = 1;
            let longer = requests::with_length(longer);
            assert_eq!(stand.refused(&longer), Code::UnknownFields);
            assert_eq!(stand.state(&[id]), before);
        }
        let mut long = request.clone();
        long.resize(257, 0);
        assert_eq!(stand.refused(&requests::with_length(long)), Code::TooLong);
        assert_eq!(stand.state(&[id]), before);
        // Behind what the request says that it has, anything may be: it is not looked at.
        let mut zeroes = request.clone();
        zeroes.resize(request.len() + 24, 0);
        let mut zeroes = requests::with_length(zeroes);
        zeroes.push(0xff);
        let longer = stand.call(&zeroes);
        // A fresh stand tells what the short form does.
        assert_ne!(longer.refused, Some(Code::UnknownFields));
        assert_ne!(longer.refused, Some(Code::TooShort));
    }
    // The whole list was done as its short forms are: the space is gone.
    assert_eq!(stand.refused(&requests::unmap_all(id)), Code::UnknownId);
    stand.end();
}

#[test]
fn cmd_fail_unknown_commands_versions_and_flags() {
    let mut stand = Stand::new(100);
    let id = stand.create();
    let before = stand.state(&[id]);
    for command in [0, 14, 15, 0x100, 0xffff] {
        let request = requests::request(command, &[(u64::from(id), 4), (0, 4)]);
        assert_eq!(stand.refused(&request), Code::UnknownCommand);
    }
    for version in [0_u16, 2, 0xffff] {
        for mut request in each(id) {
            request[..2].copy_from_slice(&version.to_le_bytes());
            assert_eq!(stand.refused(&request), Code::UnknownVersion);
        }
    }
    // Each reserved or flag field, with a bit that is none.
    for (number, request) in each(id).into_iter().enumerate() {
        let places: &[usize] = match number {
            0 => &[12],
            2 => &[12, 20],
            _ => &[12],
        };
        for place in places {
            let mut request = request.clone();
            request[place + 3] = 0x80;
            assert_eq!(stand.refused(&request), Code::UnknownFlags, "{request:x?}");
        }
    }
    // Neither reading nor writing.
    let none = requests::map(id, 0, 0x9000, MEMORY, 0x1000);
    assert_eq!(stand.refused(&none), Code::UnknownFlags);
    // A copy is of its source's kind.
    let registers = requests::copy(id, READ | 4, id, 0x9000, 0x2_0000, 0x1000);
    assert_eq!(stand.refused(&registers), Code::UnknownFlags);
    assert_eq!(stand.state(&[id]), before);
    stand.end();
}
