//! Places with numbers that are used again, and tickets that know whether theirs still is.

/// Finds a waiting request again. It outlives the request harmlessly: the place may be another's by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    at: u32,
    turn: u32,
}

/// Values in places that are used again.
#[derive(Debug)]
pub struct Slab<T> {
    cells: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
    length: usize,
}

impl Ticket {
    /// The same as one number.
    pub const fn number(self) -> u64 {
        ((self.turn as u64) << 32) | self.at as u64
    }
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Slab<T> {
    /// Nothing.
    pub const fn new() -> Self {
        Self { cells: Vec::new(), free: Vec::new(), length: 0 }
    }

    /// How many there are.
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Puts one in.
    pub fn insert(&mut self, value: T) -> Ticket {
        self.length += 1;
        if let Some(at) = self.free.pop()
            && let Some((turn, cell)) = self.cells.get_mut(at as usize)
        {
            *cell = Some(value);
            return Ticket { at, turn: *turn };
        }
        // The queue is bounded far below this.
        let at = u32::try_from(self.cells.len()).unwrap_or(u32::MAX);
        self.cells.push((0, Some(value)));
        Ticket { at, turn: 0 }
    }

    /// One of them, if it is still there.
    pub fn get(&self, ticket: Ticket) -> Option<&T> {
        let (turn, cell) = self.cells.get(ticket.at as usize)?;
        cell.as_ref().filter(|_| *turn == ticket.turn)
    }

    /// One of them, to change.
    pub fn get_mut(&mut self, ticket: Ticket) -> Option<&mut T> {
        let (turn, cell) = self.cells.get_mut(ticket.at as usize)?;
        cell.as_mut().filter(|_| *turn == ticket.turn)
    }

    /// Takes one out.
    pub fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let (turn, cell) = self.cells.get_mut(ticket.at as usize)?;
        if *turn != ticket.turn {
            return None;
        }
        let value = cell.take()?;
        *turn = turn.wrapping_add(1);
        self.free.push(ticket.at);
        self.length -= 1;
        Some(value)
    }

    /// True when there is nothing.
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// All of them, oldest place first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.cells.iter().filter_map(|(_, cell)| cell.as_ref())
    }

    /// All of them, with their tickets.
    pub fn tickets(&self) -> impl Iterator<Item = (Ticket, &T)> {
        self.cells.iter().enumerate().filter_map(|(at, (turn, cell))| {
            let at = u32::try_from(at).unwrap_or(u32::MAX);
            Some((Ticket { at, turn: *turn }, cell.as_ref()?))
        })
    }

    /// The same, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Ticket, &mut T)> {
        self.cells.iter_mut().enumerate().filter_map(|(at, (turn, cell))| {
            let at = u32::try_from(at).unwrap_or(u32::MAX);
            Some((Ticket { at, turn: *turn }, cell.as_mut()?))
        })
    }
}
