//! What events of every form and age are read as, and a way to write them for other tests.

use super::{
    super::msgpack::write::{bytes, list, map, nil, signed, text, unsigned, unsigneds},
    *,
};
use proptest::prelude::*;

/// A batch as publishers of today send it.
pub(crate) fn batch(events: &[Vec<u8>]) -> Vec<u8> {
    let time = [[0xcb].as_slice(), &1.5f64.to_be_bytes()].concat();
    list(&[time, list(events), unsigned(0)])
}

/// A `BlockStored` in map form, with more fields behind those that must be there.
pub(crate) fn stored(
    hashes: &[u64],
    parent: Option<u64>,
    ids: &[u32],
    block_tokens: u32,
    more: &[(&str, Vec<u8>)],
) -> Vec<u8> {
    let mut fields = vec![
        ("type", text("BlockStored")),
        ("block_hashes", unsigneds(hashes.iter().copied())),
        ("parent_block_hash", parent.map_or_else(nil, unsigned)),
        ("token_ids", unsigneds(ids.iter().map(|id| u64::from(*id)))),
        ("block_size", unsigned(block_tokens.into())),
    ];
    fields.extend_from_slice(more);
    map(&fields)
}

pub(crate) fn removed(hashes: &[u64]) -> Vec<u8> {
    let hashes = unsigneds(hashes.iter().copied());
    map(&[("type", text("BlockRemoved")), ("block_hashes", hashes), ("medium", text("GPU"))])
}

pub(crate) fn cleared() -> Vec<u8> {
    map(&[("type", text("AllBlocksCleared"))])
}

fn one(event: Vec<u8>, check: impl FnOnce(Event<'_>)) {
    let payload = batch(&[event, cleared()]);
    let mut batch = Batch::open(&payload).unwrap();
    check(batch.next().unwrap().unwrap());
    assert_eq!(batch.next(), Some(Ok(Event::Cleared)), "the next one is found");
    assert_eq!(batch.next(), None);
}

#[test]
fn both_forms_of_an_event_say_the_same() {
    let array = list(&[
        text("BlockStored"),
        unsigneds([u64::MAX, 8]),
        signed(-1),
        unsigneds([1, 2, 3, 4]),
        unsigned(2),
        nil(),
        text("GPU"),
    ]);
    let more = [("medium", text("GPU")), ("lora_id", nil()), ("new", list(&[nil()]))];
    let map = stored(&[u64::MAX, 8], Some(u64::MAX), &[1, 2, 3, 4], 2, &more);
    for event in [array, map] {
        one(event, |event| {
            let Event::Stored(stored) = event else { panic!("{event:?}") };
            let hashes: Vec<_> = stored.hashes.map(EngineHash::of).collect();
            assert_eq!(hashes, [Some(EngineHash(u64::MAX.into())), Some(EngineHash(8))]);
            assert_eq!(stored.parent, hashes[0], "-1 has the same 64 bits");
            assert_eq!((stored.block_tokens.get(), stored.tokens.left()), (2, 4));
            assert_eq!((stored.extra, stored.group), (None, 0));
        });
    }
    let array = list(&[text("BlockRemoved"), unsigneds([7])]);
    for event in [array, removed(&[7])] {
        one(event, |event| {
            let Event::Removed { hashes, group: 0 } = event else { panic!("{event:?}") };
            assert_eq!(hashes.collect::<Vec<_>>(), [Value::Unsigned(7)]);
        });
    }
    one(list(&[text("AllBlocksCleared")]), |event| assert_eq!(event, Event::Cleared));
}

#[test]
fn a_batch_may_be_a_map_and_may_have_no_rank() {
    let events = list(&[cleared()]);
    for payload in [
        map(&[("ts", unsigned(1)), ("events", events.clone()), ("data_parallel_rank", nil())]),
        list(&[unsigned(1), events]),
    ] {
        let events: Vec<_> = Batch::open(&payload).unwrap().collect();
        assert_eq!(events, [Ok(Event::Cleared)]);
    }
    for payload in [unsigned(1), list(&[unsigned(1)]), map(&[("ts", nil())]), b"{}".to_vec()] {
        assert_eq!(Batch::open(&payload).err(), Some(Malformed::Kind), "{payload:x?}");
    }
}

#[test]
fn hashes_of_every_form_are_told_apart() {
    let sha = [0xab; 32];
    let of = |value| EngineHash::of(value).map(|hash| hash.0);
    assert_eq!(of(Value::Bytes(&sha)), Some(u128::from_be_bytes([0xab; 16])));
    assert_eq!(of(Value::Bytes(&[1, 0])), Some(256));
    assert_eq!(of(Value::Negative(-2)), Some(u128::from(u64::MAX - 1)));
    for none in [Value::Nil, Value::Bytes(b""), Value::Float, Value::Map] {
        assert_eq!(of(none), None);
    }
    one(map(&[("type", text("BlockRemoved")), ("block_hashes", list(&[bytes(&sha)]))]), |event| {
        let Event::Removed { hashes, .. } = event else { panic!("{event:?}") };
        assert_eq!(hashes.collect::<Vec<_>>(), [Value::Bytes(&sha)]);
    });
}

#[test]
fn other_caches_are_left_apart() {
    for (field, value, expected) in [
        ("medium", text("CPU"), true),
        ("medium", text("STORAGE"), true),
        ("medium", nil(), false),
        ("lora_id", unsigned(1), true),
        ("lora_id", unsigned(0), false),
        ("lora_id", text("sql"), true),
        ("lora_name", text("sql"), true),
        ("lora_name", text(""), false),
        ("cache_salt", text("tenant"), true),
        ("kv_cache_spec_kind", text("sliding_window"), true),
        ("kv_cache_spec_kind", text("full_attention"), false),
        ("session_id", text("x"), false),
    ] {
        one(stored(&[1], None, &[1, 2], 2, &[(field, value)]), |event| {
            assert_eq!(event == Event::Apart, expected, "{field}: {event:?}");
        });
    }
    let fields = [("type", text("BlockRemoved")), ("medium", text("CPU_PINNED"))];
    one(map(&fields), |event| assert_eq!(event, Event::Apart));
}

#[test]
fn what_cannot_be_read_is_told_from_what_is_not_known() {
    let size = |size: u64, ids: u64| {
        map(&[
            ("type", text("BlockStored")),
            ("block_hashes", unsigneds([1])),
            ("token_ids", unsigneds(0..ids)),
            ("block_size", unsigned(size)),
        ])
    };
    let unreadable = |removal| Event::Unreadable { removal };
    for (event, expected) in [
        (size(0, 0), unreadable(false)),
        (size(4, 3), unreadable(false)),
        (size(u64::from(u32::MAX) + 2, 1), unreadable(false)),
        (stored(&[1], None, &[1], 1, &[("extra_keys", text("x"))]), unreadable(false)),
        (stored(&[1], None, &[1], 1, &[("parent_block_hash", list(&[]))]), unreadable(false)),
        (map(&[("type", text("BlockRemoved"))]), unreadable(true)),
        (map(&[("type", text("BlockMoved"))]), Event::Unknown),
        (map(&[("kind", text("BlockStored"))]), Event::Unknown),
        (list(&[]), Event::Unknown),
        (list(&[unsigned(1), nil()]), Event::Unknown),
    ] {
        one(event, |event| assert_eq!(event, expected));
    }
}

#[test]
fn a_payload_cut_anywhere_is_an_error_and_no_more() {
    let payload = batch(&[stored(&[1], None, &[5, 6], 2, &[]), removed(&[1]), cleared()]);
    // The rank at the end, nine bytes, is read by nobody.
    for cut in 0..payload.len() - 9 {
        let whole = Batch::open(&payload[..cut]).map(|batch| batch.collect::<Vec<_>>());
        assert!(whole.map_or(true, |events| events.iter().any(Result::is_err)), "cut at {cut}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(batch) = Batch::open(&bytes) {
            batch.for_each(drop);
        }
        let payload = batch(&[bytes]);
        Batch::open(&payload).unwrap().for_each(drop);
    }
}
