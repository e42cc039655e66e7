//! Tests of the label format: where fields are, and what is refused.

use proptest::prelude::*;

use super::*;
use crate::io::slots;
use crate::replica::testing::label;
use crate::units::{GIB, MIB};

/// A label's bytes with some of them changed and the CRC made right again.
fn patched(at: usize, bytes: &[u8]) -> [u8; SLOT_SIZE] {
    let mut slot = label().encode();
    slot[at..at + bytes.len()].copy_from_slice(bytes);
    let seq = slots::seq(&slot);
    slots::seal(&mut slot, seq);
    slot
}

#[test]
fn a_label_survives_encoding() {
    let mut label = label();
    label.flags = Flags {
        clean: true,
        rebuilding: false,
        snap_pending: true,
    };
    label.pending_snapshot = Some(PendingSnapshot {
        id: Uuid::from_u128(77),
        generation: 5,
    });
    for id in 1..40 {
        label
            .ancestors
            .push(GenerationId::from_uuid(Uuid::from_u128(id)));
    }
    assert_eq!(label.ancestors.iter().count(), ANCESTORS_MAX);
    assert!(label.descends_from(label.generation_id));
    assert!(label.descends_from(GenerationId::from_uuid(Uuid::from_u128(39))));
    assert!(!label.descends_from(GenerationId::from_uuid(Uuid::from_u128(1))));
    assert_eq!(Label::decode(&label.encode()), Ok(label));
}

#[test]
fn fields_are_where_the_specification_puts_them() {
    let label = label();
    let slot = label.encode();
    let check = |at: usize, expected: &[u8]| {
        assert_eq!(&slot[at..at + expected.len()], expected, "at {at}");
    };
    check(0, b"RPLABEL1");
    check(8, &[1, 0, 0, 0]);
    check(12, &4096_u32.to_le_bytes());
    check(16, &label.slot_seq.to_le_bytes());
    check(40, label.replica.uuid().as_bytes());
    check(56, label.volume.uuid().as_bytes());
    check(72, label.pool.uuid().as_bytes());
    check(88, label.writer.uuid().as_bytes());
    check(104, &MIB.to_le_bytes());
    check(112, &label.data_len.to_le_bytes());
    check(120, &4096_u32.to_le_bytes());
    check(124, &20_u32.to_le_bytes());
    check(128, &label.generation.to_le_bytes());
    check(136, label.generation_id.uuid().as_bytes());
    check(152, &label.epoch.to_le_bytes());
    check(160, label.owner.uuid().as_bytes());
    check(224, &[2, 0, 1, 0]);
    check(256, label.members[0].replica.uuid().as_bytes());
    check(256 + 16, &[3]);
    check(256 + 24, &label.members[0].since_gen.to_le_bytes());
    check(320 + 16, &[1, 1]);
    check(320 + 32, label.members[1].insync_id.uuid().as_bytes());
    check(1792, b"\x02\0db\0");
    check(4092, &crc32c::crc32c(&slot[..4092]).to_le_bytes());
}

#[test]
fn what_is_not_a_label_is_told_from_what_may_not_be_used() {
    let check = |bytes: &[u8], expected: LabelError, intact: bool| {
        let error = Label::decode(bytes).unwrap_err();
        assert_eq!(error, expected);
        assert_eq!(error.is_intact(), intact, "{error}");
    };
    check(&[], LabelError::Length(0), false);
    check(&[1; 5000], LabelError::Length(5000), false);
    check(&[0; 4096], LabelError::Zero, false);
    check(&[0xff; 4096], LabelError::Magic, false);
    let mut torn = label().encode();
    torn[2000] ^= 1;
    check(&torn, LabelError::Checksum, false);
    let version = LabelError::Version { major: 2, minor: 1 };
    check(&patched(8, &[2, 0, 1, 0]), version, true);
    check(&patched(32, &[4]), LabelError::Incompat(4), true);
}

#[test]
fn minor_versions_and_compatible_features_are_read() {
    assert!(Label::decode(&patched(10, &[9])).is_ok());
    let label = Label::decode(&patched(24, &[1])).unwrap();
    assert_eq!((label.compat, label.access()), (1, Access::ReadWrite));
}

/// L5.
#[test]
fn unknown_features_of_writers_make_it_read_only() {
    let label = Label::decode(&patched(28, &[1])).unwrap();
    assert_eq!(label.access(), Access::ReadOnly);
}

#[test]
fn senseless_fields_are_refused_by_name() {
    let check = |at: usize, bytes: &[u8], name: &str| match Label::decode(&patched(at, bytes)) {
        Err(LabelError::Field { field, .. }) => assert_eq!(field, name),
        other => panic!("{name}: {other:?}"),
    };
    let max = u64::MAX.to_le_bytes();
    check(12, &[0, 0], "header length");
    check(36, &[0x10], "flags");
    check(40, &[0; 16], "replica uuid");
    check(56, &[0; 16], "volume uuid");
    check(72, &[0; 16], "pool uuid");
    check(104, &0_u64.to_le_bytes(), "data_offset");
    check(104, &4096_u64.to_le_bytes(), "data_offset");
    check(104, &(u64::MAX << 20).to_le_bytes(), "data_len");
    check(112, &0_u64.to_le_bytes(), "data_len");
    check(112, &4097_u64.to_le_bytes(), "data_len");
    check(112, &max, "data_len");
    check(120, &1024_u32.to_le_bytes(), "lb_size");
    check(124, &0_u32.to_le_bytes(), "region_shift");
    check(124, &63_u32.to_le_bytes(), "region_shift");
    check(124, &max[..4], "region_shift");
    check(112, &(1_u64 << 50).to_le_bytes(), "region_shift");
    check(128, &[0; 8], "generation");
    check(16, &max, "slot_seq");
    check(128, &max, "generation");
    check(152, &max, "epoch");
    check(136, &[0; 16], "generation uuid");
    check(224, &[0], "member_count");
    check(224, &[17], "member_count");
    check(224, &[0xff, 0xff], "member_count");
    check(226, &[2], "own slot");
    check(226, &[0], "member uuid of the own slot");
    check(256, label().replica.uuid().as_bytes(), "member uuid");
    check(256 + 16, &[0], "member state");
    check(256 + 16, &[6], "member state");
    check(1792, &[0, 0], "volume name");
    check(1792, &[65, 0], "volume name length");
    check(1792, &[0xff, 0xff], "volume name length");
    check(1794, &[0xff], "volume name");
    check(1794, b"/", "volume name");
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(
        at in 0_usize..4000,
        bytes in proptest::collection::vec(any::<u8>(), 1..90),
        all in proptest::collection::vec(any::<u8>(), 4096),
    ) {
        let _ = Label::decode(&patched(at, &bytes));
        let mut slot: [u8; SLOT_SIZE] = all.try_into().unwrap();
        slot[..8].copy_from_slice(&MAGIC);
        slots::seal(&mut slot, 1);
        let _ = Label::decode(&slot);
    }

    #[test]
    fn what_decodes_encodes_to_what_decodes_to_the_same(
        at in 0_usize..4000,
        bytes in proptest::collection::vec(any::<u8>(), 1..9),
    ) {
        if let Ok(label) = Label::decode(&patched(at, &bytes)) {
            prop_assert_eq!(Label::decode(&label.encode()), Ok(label));
        }
    }
}

#[test]
fn the_file_must_hold_labels_and_data() {
    let mut label = label();
    label.data_len = 20 * GIB;
    assert_eq!(label.file_len(), 20 * GIB + MIB);
}
