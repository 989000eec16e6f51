//! Who is next: texts that wait for a model, in turns by owner. One owner's thousand texts cost the others a turn
//! each round, not a thousand; and where there is no more room, the owner with the most gives up its newest.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
};

/// Whose text it is. Texts of one owner go one after another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner(u64);

impl Owner {
    /// Nobody in particular.
    pub const NOBODY: Self = Self(0);

    /// The owner of this name. Two names that fall together share their turns, which harms nobody.
    pub fn of(name: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// What waits. Bounded by whoever fills it.
pub(super) struct Turns<T> {
    /// Owners in the order of their turns, each with at least one.
    owners: VecDeque<(Owner, VecDeque<T>)>,
    len: usize,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { owners: VecDeque::new(), len: 0 }
    }
}

impl<T> Turns<T> {
    /// How many wait.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Puts one behind its owner's others.
    pub(super) fn push(&mut self, owner: Owner, item: T) {
        self.len += 1;
        match self.owners.iter_mut().find(|(known, _)| *known == owner) {
            Some((_, own)) => own.push_back(item),
            None => self.owners.push_back((owner, VecDeque::from([item]))),
        }
    }

    /// The next one, of the owner whose turn it is.
    pub(super) fn pop(&mut self) -> Option<(Owner, T)> {
        let (owner, mut own) = self.owners.pop_front()?;
        let item = own.pop_front()?;
        self.len -= 1;
        if !own.is_empty() {
            self.owners.push_back((owner, own));
        }
        Some((owner, item))
    }

    /// Makes room for one of this owner's: takes the newest of whoever has the most, if that is more than this owner
    /// would then have.
    pub(super) fn crowd_out(&mut self, owner: Owner) -> Option<T> {
        let own = self.owners.iter().find(|(known, _)| *known == owner);
        let own = own.map_or(0, |(_, own)| own.len());
        let (_, most) = self.owners.iter_mut().max_by_key(|(_, own)| own.len())?;
        if most.len() <= own + 1 {
            return None;
        }
        self.len -= 1;
        most.pop_back()
    }

    /// Drops them all.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(turns: &mut Turns<u32>) -> Vec<u32> {
        std::iter::from_fn(|| turns.pop()).map(|(_, item)| item).collect()
    }

    #[test]
    fn owners_take_turns() {
        let (one, other) = (Owner::of("one"), Owner::of("other"));
        let mut turns = Turns::default();
        (0..4).for_each(|item| turns.push(one, item));
        turns.push(other, 10);
        turns.push(other, 11);
        assert_eq!(all(&mut turns), [0, 10, 1, 11, 2, 3]);
        assert_eq!(turns.len(), 0);
    }

    #[test]
    fn whoever_has_the_most_makes_room() {
        let (one, other) = (Owner::of("one"), Owner::of("other"));
        let mut turns = Turns::default();
        (0..4).for_each(|item| turns.push(one, item));
        assert_eq!(turns.crowd_out(one), None, "nobody has more than itself");
        assert_eq!(turns.crowd_out(other), Some(3));
        turns.push(other, 10);
        assert_eq!(turns.crowd_out(other), Some(2));
        turns.push(other, 11);
        assert_eq!(turns.crowd_out(other), None, "both have two");
    }

    proptest! {
        /// Nothing is lost, each owner's stay in order, and between two turns of an owner that waits every other owner
        /// has at most one.
        #[test]
        fn turns_are_fair(items in proptest::collection::vec(0_u8..4, 0..60)) {
            let mut turns = Turns::default();
            for (number, owner) in items.iter().enumerate() {
                turns.push(Owner(u64::from(*owner)), number);
            }
            prop_assert_eq!(turns.len(), items.len());
            let popped: Vec<(Owner, usize)> = std::iter::from_fn(|| turns.pop()).collect();
            prop_assert_eq!(popped.len(), items.len());
            for owner in 0..4 {
                let places: Vec<usize> = (0..popped.len()).filter(|at| popped[*at].0 == Owner(owner)).collect();
                prop_assert!(places.windows(2).all(|two| popped[two[0]].1 < popped[two[1]].1));
                prop_assert!(places.windows(2).all(|two| two[1] - two[0] <= 4));
                prop_assert!(places.first().is_none_or(|first| *first < 4));
            }
        }
    }
}
