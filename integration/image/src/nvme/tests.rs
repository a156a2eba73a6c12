//! The driver against the model controller.

use super::super::model::{BLOCK_BYTES, BLOCKS, Buffer, Model, Mood};
use super::*;

const LIMIT: Duration = Duration::from_millis(50);

fn start(model: &Model) -> Controller<'_, Model, Buffer, Model> {
    let parts = Parts::alloc(model.clone(), &mut model.clone()).unwrap();
    Controller::start(parts, model, LIMIT).unwrap()
}

fn buffer(model: &Model, bytes: usize) -> Buffer {
    model.clone().alloc(bytes).unwrap()
}

#[test]
fn it_learns_who_the_controller_is() {
    let model = Model::new();
    let controller = start(&model);
    assert_eq!(&controller.info().serial[..], "hv0001");
    assert_eq!(controller.info().max_transfer_bytes, 64 << 10);
    assert_eq!(controller.namespace().blocks, BLOCKS);
    assert_eq!(controller.max_blocks(), 128);
}

#[test]
fn one_two_and_many_pages_are_moved() {
    let model = Model::new();
    let mut controller = start(&model);
    let data = buffer(&model, 64 << 10);
    // Enough commands to go round the queues twice, so that the phase changes.
    for round in 0..50 {
        for blocks in [1, 8, 9, 16, 128] {
            let lba = round * 20 + u64::from(blocks);
            controller.read(Lba(lba), blocks, &data, 0).unwrap();
            let mut out = vec![0; blocks as usize * BLOCK_BYTES];
            data.read(0, &mut out).unwrap();
            assert_eq!(out, model.disk(lba as usize * BLOCK_BYTES, out.len()));
        }
    }
    let pattern: Vec<u8> = (0..64 << 10).map(|i| (i * 3) as u8).collect();
    data.write(0, &pattern).unwrap();
    controller.write(Lba(100), 120, &data, 4096).unwrap();
    assert_eq!(
        model.disk(100 * BLOCK_BYTES, 120 * BLOCK_BYTES),
        pattern[4096..]
    );
}

#[test]
fn ranges_that_do_not_fit_are_refused() {
    let model = Model::new();
    let mut controller = start(&model);
    let data = buffer(&model, 8192);
    let range = |result: Result<(), NvmeError>| matches!(result, Err(NvmeError::BlockRange { .. }));
    assert!(range(controller.read(Lba(0), 0, &data, 0)));
    assert!(range(controller.read(Lba(0), 129, &data, 0)));
    assert!(range(controller.read(Lba(BLOCKS), 1, &data, 0)));
    assert!(range(controller.read(Lba(u64::MAX), 2, &data, 0)));
    let small = controller.read(Lba(0), 17, &data, 0);
    assert!(matches!(small, Err(NvmeError::Buffer(_))));
    let ragged = controller.read(Lba(0), 1, &data, 512);
    assert_eq!(ragged, Err(NvmeError::Unaligned { offset: 512 }));
    let pages = [data.iova(); 2];
    assert_eq!(
        controller.read_raw(Lba(0), 8, &pages),
        Err(NvmeError::PageCount {
            found: 2,
            expected: 1
        })
    );
    assert!(controller.read_raw(Lba(0), 8, &[]).is_err());
}

#[test]
fn raw_transfers_use_the_addresses_they_are_given() {
    let model = Model::new();
    let mut controller = start(&model);
    let pages = [0x70_0200, 0x90_0000, 0x80_0000].map(Iova::new);
    let status = controller.read_raw(Lba(4), 18, &pages).unwrap();
    assert!(status.is_success());
    let disk = model.disk(4 * BLOCK_BYTES, 18 * BLOCK_BYTES);
    assert_eq!(model.page(0x70_0000).unwrap()[0x200..], disk[..0xe00]);
    assert_eq!(model.page(0x90_0000).unwrap(), disk[0xe00..0x1e00]);
    assert_eq!(model.page(0x80_0000).unwrap()[..0x600], disk[0x1e00..]);
    assert!(
        controller
            .identify_raw(Iova::new(0xa0_0000))
            .unwrap()
            .is_success()
    );
    assert_eq!(model.page(0xa0_0000).unwrap()[4..10], *b"hv0001");
}

#[test]
fn a_silent_controller_is_a_timeout_and_works_after_a_restart() {
    let model = Model::new();
    let mut controller = start(&model);
    let data = buffer(&model, 4096);
    model.set_mood(Mood::Silent);
    let error = controller.read(Lba(0), 1, &data, 0).unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert_eq!(controller.read(Lba(0), 1, &data, 0), Err(NvmeError::Stuck));
    model.set_mood(Mood::Good);
    let parts = controller.stop().unwrap();
    let mut controller = Controller::start(parts, &model, LIMIT).unwrap();
    controller.read(Lba(0), 1, &data, 0).unwrap();
}

#[test]
fn failures_have_names() {
    let model = Model::new();
    let data = buffer(&model, 4096);
    let read = |mood| {
        model.set_mood(Mood::Good);
        let mut controller = start(&model);
        model.set_mood(mood);
        controller.read(Lba(0), 1, &data, 0).unwrap_err()
    };
    assert!(matches!(read(Mood::Fatal), NvmeError::Fatal { .. }));
    assert!(matches!(
        read(Mood::WrongId),
        NvmeError::WrongCompletion {
            expected: 0,
            found: 1
        }
    ));
    assert!(matches!(
        read(Mood::Refusing),
        NvmeError::Command { command: Wait::Io(IO_READ), status } if status.code() == 0x80
    ));
}

#[test]
fn a_controller_that_does_not_start_gives_its_parts_back() {
    let model = Model::new();
    model.set_mood(Mood::NeverReady);
    let parts = Parts::alloc(model.clone(), &mut model.clone()).unwrap();
    let Err(failure) = Controller::start(parts, &model, LIMIT) else {
        panic!("started without being ready");
    };
    assert!(matches!(
        failure.error,
        NvmeError::Timeout {
            what: Wait::Ready,
            ..
        }
    ));
    assert_eq!(failure.stopped, Ok(()));
    model.set_mood(Mood::Good);
    assert!(Controller::start(failure.parts, &model, LIMIT).is_ok());
}

#[test]
fn controllers_that_cannot_do_enough_are_refused() {
    let model = Model::new();
    let refused = |capabilities: u64| {
        model.write64(CAP, capabilities);
        let parts = Parts::alloc(model.clone(), &mut model.clone()).unwrap();
        match Controller::start(parts, &model, LIMIT) {
            Ok(_) => panic!("capabilities {capabilities:#x} were accepted"),
            Err(failure) => failure.error,
        }
    };
    assert!(matches!(
        refused(0x20_0000_001f),
        NvmeError::Unsupported { found: 32, .. }
    ));
    assert!(matches!(
        refused(0x00_0000_07ff),
        NvmeError::Unsupported { found: 0, .. }
    ));
    assert!(matches!(
        refused(0x1_0020_0000_07ff),
        NvmeError::Unsupported { found: 13, .. }
    ));
}
