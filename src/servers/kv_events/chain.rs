//! Translates an engine's blocks into ours.
//!
//! Engines hash blocks by rules that change with version and configuration, so their hashes are only names here:
//! each event brings the token ids, and our own hash is computed from them and from that of the block before. A
//! block whose beginning was not heard has no hash of ours and is passed over.
//!
//! An engine may hold the same block twice (two prompts that came at once) and tells of each copy, so copies are
//! counted. Must not know sockets or channels.

use super::{
    counts::Counts,
    decode::{EngineHash, Event, Stored, is_set},
    msgpack::{Items, Value},
};
use crate::{
    snapshot::KvChange,
    tokens::{BlockRule, block_hash},
};
use std::{
    collections::{HashMap, hash_map::Entry},
    num::NonZeroU32,
    sync::Arc,
};

/// Most blocks that are followed of one server: 14 million tokens in blocks of 16, and as many tokens as a card of
/// 140 GB holds of a small model in blocks of one. The table fills what it allocates, 35 MiB.
pub(super) const BLOCKS_MAX: usize = (1 << 20) / 8 * 7;

/// The blocks of one server that are in its cache, by the engine's names.
pub(super) struct Chain {
    blocks: HashMap<EngineHash, Block>,
    most: usize,
    root: u64,
    counts: Arc<Counts>,
    /// The ids of the block that is hashed; kept for its memory.
    ids: Vec<u32>,
}

struct Block {
    /// Our hash.
    hash: u64,
    /// How often the engine holds it.
    copies: u32,
}

impl Chain {
    /// Follows at most `most` blocks.
    pub(super) fn new(most: usize, counts: Arc<Counts>) -> Self {
        let rule = BlockRule { block_tokens: NonZeroU32::MIN, adapter: "", salt: "" };
        Self { blocks: HashMap::new(), most, root: rule.root(), counts, ids: Vec::new() }
    }

    /// Nothing is known any more.
    pub(super) fn forget(&mut self) {
        // A new one, since a cleared one keeps its memory.
        self.blocks = HashMap::new();
    }

    /// The view is lost: nothing is known, and whoever listens must hear it.
    pub(super) fn lose(&mut self, out: &mut Vec<KvChange>) {
        self.counts.lost.add(1);
        self.clear(out);
    }

    /// Adds to `out` what an event changes.
    pub(super) fn apply(&mut self, event: Event<'_>, out: &mut Vec<KvChange>) {
        match event {
            Event::Stored(stored) => self.stored(&stored, out),
            Event::Removed { hashes, group } => self.removed(hashes, group, out),
            Event::Cleared => self.clear(out),
            Event::Apart => self.counts.apart.add(1),
            Event::Unknown => self.counts.unknown.add(1),
            Event::Unreadable { removal } => {
                self.counts.unreadable.add(1);
                if removal {
                    self.lose(out);
                }
            }
        }
    }

    fn clear(&mut self, out: &mut Vec<KvChange>) {
        self.forget();
        // What came before it in the same batch is void too.
        out.clear();
        out.push(KvChange::Cleared);
    }

    fn stored(&mut self, event: &Stored<'_>, out: &mut Vec<KvChange>) {
        let mut parent = match event.parent {
            None => self.root,
            Some(hash) => match self.blocks.get(&named(hash, event.group)) {
                Some(block) => block.hash,
                None => return self.counts.orphans.add(1),
            },
        };
        let (mut tokens, mut extra) = (event.tokens, event.extra);
        let block_tokens = event.block_tokens.get();
        for hash in event.hashes {
            if extra.as_mut().and_then(Iterator::next).is_some_and(is_set) {
                // An image, or a salt that only this field tells. All that follows stands upon it.
                return self.counts.apart.add(1);
            }
            let Some(hash) =
                EngineHash::of(hash).filter(|_| self.read_ids(&mut tokens, block_tokens))
            else {
                return self.counts.unreadable.add(1);
            };
            parent = block_hash(parent, &self.ids);
            if !self.hold(named(hash, event.group), parent, block_tokens, out) {
                return self.lose(out);
            }
            self.counts.stored.add(1);
        }
    }

    /// Takes the ids of one block; false if they are not ids.
    fn read_ids(&mut self, tokens: &mut Items<'_>, block_tokens: u32) -> bool {
        let many = usize::try_from(block_tokens).unwrap_or(usize::MAX);
        self.ids.clear();
        self.ids.extend(tokens.take(many).map_while(|value| match value {
            Value::Unsigned(id) => u32::try_from(id).ok(),
            _ => None,
        }));
        self.ids.len() == many
    }

    /// One copy more of a block; false if there is no room for it.
    fn hold(
        &mut self,
        name: EngineHash,
        hash: u64,
        block_tokens: u32,
        out: &mut Vec<KvChange>,
    ) -> bool {
        let full = self.blocks.len() >= self.most;
        match self.blocks.entry(name) {
            Entry::Occupied(mut held) => {
                let held = held.get_mut();
                if held.hash == hash {
                    held.copies = held.copies.saturating_add(1);
                    return true;
                }
                // Old engines name a block by its own tokens alone, whatever stands before it. Such a name
                // tells of one block only: the last.
                remove(held.hash, out);
                *held = Block { hash, copies: 1 };
            }
            Entry::Vacant(_) if full => return false,
            Entry::Vacant(place) => {
                place.insert(Block { hash, copies: 1 });
            }
        }
        store(hash, block_tokens, out);
        true
    }

    fn removed(&mut self, hashes: Items<'_>, group: u64, out: &mut Vec<KvChange>) {
        for hash in hashes {
            let Some(hash) = EngineHash::of(hash) else {
                self.counts.unreadable.add(1);
                return self.lose(out);
            };
            // What is not followed need not be told: it was stored before we listened, or is apart.
            let Entry::Occupied(mut held) = self.blocks.entry(named(hash, group)) else { continue };
            let copies = held.get().copies.saturating_sub(1);
            held.get_mut().copies = copies;
            if copies == 0 {
                remove(held.remove().hash, out);
                self.counts.removed.add(1);
            }
        }
    }
}

/// Groups of layers come and go by themselves, under the same names.
const fn named(hash: EngineHash, group: u64) -> EngineHash {
    // The upper half of a long hash is as random as the lower; that of a short one is empty.
    EngineHash(hash.0 ^ ((group as u128) << 64))
}

/// Adds to the last change where that says the same thing.
fn store(hash: u64, of: u32, out: &mut Vec<KvChange>) {
    match out.last_mut() {
        Some(KvChange::Stored { block_tokens, hashes }) if *block_tokens == of => hashes.push(hash),
        _ => out.push(KvChange::Stored { block_tokens: of, hashes: vec![hash] }),
    }
}

fn remove(hash: u64, out: &mut Vec<KvChange>) {
    match out.last_mut() {
        Some(KvChange::Removed { hashes }) => hashes.push(hash),
        _ => out.push(KvChange::Removed { hashes: vec![hash] }),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            counts::Tally,
            decode::{
                Batch,
                tests::{batch, cleared, removed, stored},
            },
            msgpack::write::{list, map, nil, text, unsigned, unsigneds},
        },
        *,
    };
    use proptest::prelude::*;

    fn chain(most: usize) -> Chain {
        Chain::new(most, Arc::default())
    }

    /// What the events of one batch change.
    fn heard(chain: &mut Chain, events: &[Vec<u8>]) -> Vec<KvChange> {
        let payload = batch(events);
        let mut out = Vec::new();
        for event in Batch::open(&payload).unwrap() {
            chain.apply(event.unwrap(), &mut out);
        }
        out
    }

    fn ours(block_tokens: u32, ids: &[u32]) -> Vec<u64> {
        let block_tokens = NonZeroU32::new(block_tokens).unwrap();
        BlockRule { block_tokens, adapter: "", salt: "" }.blocks(ids).hashes
    }

    fn new(block_tokens: u32, hashes: &[u64]) -> KvChange {
        KvChange::Stored { block_tokens, hashes: hashes.to_vec() }
    }

    fn gone(hashes: &[u64]) -> KvChange {
        KvChange::Removed { hashes: hashes.to_vec() }
    }

    /// An index that is fed by events must meet the hashes that counting a prompt gives.
    #[test]
    fn events_give_the_hashes_of_the_counted_prompt() {
        let ids: Vec<u32> = (0..96).map(|id| id * 7919).collect();
        let expected = ours(16, &ids);
        let mut chain = chain(100);
        let events = [
            stored(&[901, 902], None, &ids[..32], 16, &[]),
            stored(&[903], Some(902), &ids[32..48], 16, &[("medium", text("GPU"))]),
        ];
        assert_eq!(heard(&mut chain, &events), [new(16, &expected[..3])]);
        let events = [stored(&[904, 905, 906], Some(903), &ids[48..], 16, &[])];
        assert_eq!(heard(&mut chain, &events), [new(16, &expected[3..])]);
        assert_eq!(heard(&mut chain, &[removed(&[906, 905])]), [gone(&[expected[5], expected[4]])]);
        assert_eq!(heard(&mut chain, &[removed(&[906, 1])]), []);
        // SGLang's pages may hold one token.
        let events = [stored(&[1, 2], None, &ids[..2], 1, &[])];
        assert_eq!(heard(&mut chain, &events), [new(1, &ours(1, &ids[..2]))]);
    }

    #[test]
    fn what_has_no_known_beginning_is_passed_over() {
        let mut chain = chain(100);
        assert_eq!(heard(&mut chain, &[stored(&[2], Some(1), &[5], 1, &[])]), []);
        assert_eq!(heard(&mut chain, &[stored(&[3], Some(2), &[6], 1, &[])]), []);
        assert_eq!(chain.counts.read(), Tally { orphans: 2, ..Tally::default() });
    }

    #[test]
    fn order_is_kept_and_a_clearing_voids_what_came_before() {
        let mut chain = chain(100);
        let [one, two] = [ours(1, &[5])[0], ours(1, &[6])[0]];
        let events =
            [stored(&[1], None, &[5], 1, &[]), removed(&[1]), stored(&[1], None, &[5], 1, &[])];
        assert_eq!(heard(&mut chain, &events), [new(1, &[one]), gone(&[one]), new(1, &[one])]);
        let events = [removed(&[1]), cleared(), stored(&[2], None, &[6], 1, &[])];
        assert_eq!(heard(&mut chain, &events), [KvChange::Cleared, new(1, &[two])]);
    }

    /// vLLM holds a block twice when two prompts that share it come at once. Taking the first removal for the
    /// last lost the index a beginning that every prompt shared, for as long as the engine ran.
    #[test]
    fn a_block_is_gone_with_its_last_copy() {
        let mut chain = chain(100);
        let twice = [stored(&[1], None, &[5], 1, &[]), stored(&[1], None, &[5], 1, &[])];
        let hash = ours(1, &[5]);
        assert_eq!(heard(&mut chain, &twice), [new(1, &hash)]);
        assert_eq!(heard(&mut chain, &[removed(&[1])]), []);
        assert_eq!(heard(&mut chain, &[removed(&[1])]), [gone(&hash)]);
    }

    #[test]
    fn groups_of_layers_hold_blocks_by_themselves() {
        let mut chain = chain(100);
        let group = |group: u64| [("group_idx", unsigned(group))];
        let hash = ours(1, &[5]);
        assert_eq!(heard(&mut chain, &[stored(&[1], None, &[5], 1, &group(1))]), [new(1, &hash)]);
        assert_eq!(heard(&mut chain, &[removed(&[1])]), [], "group 0 never had it");
        let of_one = map(&[
            ("type", text("BlockRemoved")),
            ("block_hashes", unsigneds([1])),
            ("group_idx", unsigned(1)),
        ]);
        assert_eq!(heard(&mut chain, &[of_one]), [gone(&hash)]);
    }

    #[test]
    fn blocks_of_other_chains_are_followed_no_further() {
        let mut chain = chain(100);
        let keys = list(&[nil(), list(&[text("image")]), nil()]);
        let events = [
            stored(&[1, 2, 3], None, &[5, 6, 7], 1, &[("extra_keys", keys)]),
            stored(&[4], Some(3), &[8], 1, &[]),
            stored(&[9], None, &[5], 1, &[("lora_name", text("sql"))]),
            stored(&[10], Some(9), &[6], 1, &[]),
        ];
        assert_eq!(heard(&mut chain, &events), [new(1, &ours(1, &[5]))]);
        let expected = Tally { stored: 1, apart: 2, orphans: 2, ..Tally::default() };
        assert_eq!(chain.counts.read(), expected);
    }

    #[test]
    fn a_name_of_two_blocks_tells_of_the_last() {
        let mut chain = chain(100);
        let events =
            [stored(&[1, 2], None, &[5, 6], 1, &[]), stored(&[3, 2], None, &[7, 6], 1, &[])];
        let (first, second) = (ours(1, &[5, 6]), ours(1, &[7, 6]));
        assert_eq!(
            heard(&mut chain, &events),
            [new(1, &[first[0], first[1], second[0]]), gone(&[first[1]]), new(1, &[second[1]]),]
        );
        assert_eq!(heard(&mut chain, &[removed(&[2])]), [gone(&[second[1]])]);
    }

    #[test]
    fn more_blocks_than_are_followed_lose_the_view() {
        let mut chain = chain(2);
        let events = [stored(&[1, 2, 3, 4], None, &[5, 6, 7, 8], 1, &[])];
        assert_eq!(heard(&mut chain, &events), [KvChange::Cleared]);
        assert_eq!(chain.blocks.len(), 0);
        assert_eq!(chain.counts.read().lost, 1);
        let events = [stored(&[1, 2], None, &[5, 6], 1, &[])];
        assert_eq!(heard(&mut chain, &events), [new(1, &ours(1, &[5, 6]))], "and it begins again");
    }

    #[test]
    fn a_removal_that_cannot_be_read_loses_the_view() {
        let mut chain = chain(100);
        let strange = map(&[("type", text("BlockRemoved")), ("block_hashes", list(&[nil()]))]);
        let nothing = map(&[("type", text("BlockRemoved"))]);
        for event in [strange, nothing] {
            heard(&mut chain, &[stored(&[1], None, &[5], 1, &[])]);
            assert_eq!(heard(&mut chain, &[event]), [KvChange::Cleared]);
        }
        let pairs = map(&[
            ("type", text("BlockStored")),
            ("block_hashes", unsigneds([1])),
            ("token_ids", list(&[list(&[unsigned(1), unsigned(2)])])),
            ("block_size", unsigned(1)),
        ]);
        assert_eq!(heard(&mut chain, &[pairs]), [], "what is not known to be stored harms nobody");
        let expected = Tally { stored: 2, unreadable: 3, lost: 2, ..Tally::default() };
        assert_eq!(chain.counts.read(), expected);
    }

    proptest! {
        /// Whatever an engine tells, what we say is stored and not removed is what the table holds.
        #[test]
        fn what_was_told_adds_up_to_what_is_held(
            steps in proptest::collection::vec((0..3u8, 1..6u64, 0..6u64, 0..4u32), 0..60),
        ) {
            let mut chain = chain(4);
            let mut told = std::collections::HashSet::new();
            for (what, name, parent, id) in steps {
                let parent = (parent > 0).then_some(parent);
                let event = match what {
                    0 => removed(&[name]),
                    _ => stored(&[name], parent, &[id], 1, &[]),
                };
                for change in heard(&mut chain, &[event]) {
                    match change {
                        KvChange::Stored { hashes, .. } => told.extend(hashes),
                        KvChange::Removed { hashes } => hashes.iter().for_each(|hash| { told.remove(hash); }),
                        KvChange::Cleared => told.clear(),
                    }
                }
                prop_assert!(chain.blocks.len() <= 4);
                let held: std::collections::HashSet<u64> =
                    chain.blocks.values().map(|block| block.hash).collect();
                prop_assert!(told.is_subset(&held), "nothing is told that is not held");
            }
        }
    }
}
