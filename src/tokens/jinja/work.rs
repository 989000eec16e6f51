//! Work that is done deep inside a single step, such as comparing lists of lists: it is counted on the side,
//! and the step after it ends the run if it was too much.

use std::cell::Cell;

/// Comparisons that one run may make.
const MOST: u64 = 20_000_000;

thread_local! {
    static LEFT: Cell<u64> = const { Cell::new(MOST) };
}

/// A run begins.
pub(super) fn begin() {
    LEFT.set(MOST);
}

/// Takes note of some work. `false`: there was too much, and what comes of it no longer matters.
pub(super) fn done(steps: u64) -> bool {
    let left = LEFT.get().saturating_sub(steps);
    LEFT.set(left);
    left > 0
}
