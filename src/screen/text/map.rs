//! Where the parts of a changed text came from, in little room.

use std::ops::Range;

/// Change points. Where a text needs more, neighbours are joined.
const RUNS_MAX: usize = 8192;

/// Units of equal size in a row: each `given` bytes that came from `taken`.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Where it begins in the new text.
    at: usize,
    /// Where it begins in the old one.
    from: usize,
    given: usize,
    taken: usize,
}

/// Where the parts of a text came from. Empty: it is as it was.
#[derive(Clone, Debug, Default)]
pub(super) struct Map {
    runs: Vec<Run>,
    /// Bytes of the new text.
    end: usize,
    /// Bytes of the old one.
    from_end: usize,
}

impl Map {
    /// `len` bytes were copied.
    pub(super) fn copy(&mut self, len: usize) {
        if len > 0 {
            self.add(1, 1);
            self.end += len;
            self.from_end += len;
        }
    }

    /// `given` bytes were written for `taken`.
    pub(super) fn unit(&mut self, taken: usize, given: usize) {
        // What became nothing is a gap between runs.
        if given > 0 {
            self.add(taken, given);
        }
        self.end += given;
        self.from_end += taken;
    }

    /// Makes the last run one of such units.
    fn add(&mut self, taken: usize, given: usize) {
        if let Some(last) = self.runs.last()
            && (last.taken, last.given) == (taken, given)
            && self.behind(last, self.end) == self.from_end
        {
            return;
        }
        if self.runs.len() >= RUNS_MAX {
            self.join();
        }
        self.runs.push(Run { at: self.end, from: self.from_end, given, taken });
    }

    /// Where the units before `end` of the new text end in the old one.
    fn behind(&self, run: &Run, end: usize) -> usize {
        run.from + (end - run.at).div_ceil(run.given.max(1)) * run.taken
    }

    /// Makes one unit of every two runs.
    fn join(&mut self) {
        let ends = self.runs.iter().skip(1).map(|run| run.at).chain([self.end]);
        let sides: Vec<_> = self
            .runs
            .iter()
            .zip(ends)
            .map(|(run, end)| (*run, end, self.behind(run, end)))
            .collect();
        let joined = sides.chunks(2).filter_map(|pair| {
            let (first, ..) = pair.first()?;
            let (_, end, from_end) = pair.last()?;
            let (given, taken) = (end - first.at, from_end - first.from);
            Some(Run { at: first.at, from: first.from, given, taken })
        });
        self.runs = joined.collect();
    }

    /// The part of the old text that a part of the new one came from.
    pub(super) fn origin(&self, range: Range<usize>) -> Range<usize> {
        if self.runs.is_empty() && self.end == 0 && self.from_end == 0 {
            return range;
        }
        let run = |at: usize| {
            let behind = self.runs.partition_point(|run| run.at <= at);
            self.runs.get(behind.checked_sub(1)?)
        };
        let (start, end) = (range.start.min(self.end), range.end.min(self.end));
        let first = run(start).filter(|_| start < self.end);
        let from = first.map_or(self.from_end, |run| {
            run.from + (start - run.at) / run.given.max(1) * run.taken
        });
        let last = end.checked_sub(1).filter(|last| *last >= start).and_then(run);
        from..last.map_or(from, |run| self.behind(run, end))
    }
}

#[cfg(test)]
impl Map {
    /// Whether it keeps to its bound.
    pub(super) fn is_small(&self) -> bool {
        self.runs.len() <= RUNS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_units_are_one_run() {
        let mut map = Map::default();
        map.copy(10);
        map.copy(5);
        for _ in 0..9999 {
            map.unit(3, 1);
        }
        assert_eq!(map.runs.len(), 2);
        assert_eq!(map.origin(14..17), 14..21);
        assert_eq!(map.origin(9000..9001), 15 + 3 * 8985..15 + 3 * 8986);
    }
}
