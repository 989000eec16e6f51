//! Runs the loops of a template that was taken apart: a turn that was seen in the same surroundings is
//! taken from memory, any other is rendered and remembered.

use super::{
    CountError, Memo,
    cache::Entry,
    conversation::{self, Conversation, Turn},
    keys::{Key, KeyWriter},
    piece::{Budget, Encoder, Piece},
    plan::{Loop, Plan},
    reads::{Comparison, LoopNumber, LoopRead, Order, Place, Term, Use},
};
use crate::tokens::template::{self, TEXT_BYTES_MAX};
use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, Object, ObjectRepr, ValueKind},
};
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// One rendering of a frame: the function that its loops became.
pub(super) struct Turns {
    plan: Arc<Plan>,
    memo: Arc<Memo>,
    /// Of the template and the rules by which messages are prepared.
    key: Key,
    conversation: Arc<Conversation>,
    /// Locked for the length of one loop, by the one thread that renders.
    state: Mutex<Rendering>,
}

/// What has come of it so far.
pub(super) struct Rendering {
    pub(super) budget: Budget,
    pub(super) hits: u64,
    pub(super) misses: u64,
    /// The pieces of each loop that ran.
    pub(super) loops: Vec<Vec<Arc<Piece>>>,
    pub(super) failed: Option<CountError>,
    fuel: u64,
    bytes: usize,
    key: KeyWriter,
}

impl fmt::Debug for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Turns")
    }
}

/// What a turn is run with.
struct Round<'a> {
    number: usize,
    one: &'a Loop,
    items: &'a Items,
    /// The variables around the loop that it reads or writes.
    around: &'a Around,
}

/// Variables by name, few enough to be looked through.
struct Around(Vec<(String, Value)>);

impl Around {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }
}

/// What a loop goes over.
enum Items {
    Messages(Arc<Conversation>),
    Values(Vec<Value>),
}

impl Items {
    fn of(value: &Value) -> Result<Self, Error> {
        if let Some(all) = value.downcast_object::<Conversation>() {
            return Ok(Self::Messages(all));
        }
        Ok(Self::Values(value.try_iter()?.collect()))
    }

    fn len(&self) -> usize {
        match self {
            Self::Messages(all) => all.len(),
            Self::Values(all) => all.len(),
        }
    }

    fn value(&self, at: usize) -> Option<Value> {
        match self {
            Self::Messages(all) => (at < all.len()).then(|| conversation::turn(all, at)),
            Self::Values(all) => all.get(at).cloned(),
        }
    }

    fn write(&self, at: usize, key: &mut KeyWriter) -> Option<()> {
        match self {
            Self::Messages(all) => {
                key.tag(b'm').number(all.key(at)?);
                Some(())
            }
            Self::Values(all) => write_value(key, all.get(at)?),
        }
    }
}

impl Turns {
    pub(super) fn new(
        plan: Arc<Plan>,
        memo: Arc<Memo>,
        key: Key,
        conversation: Arc<Conversation>,
        budget: Budget,
    ) -> Self {
        let state = Mutex::new(Rendering {
            budget,
            hits: 0,
            misses: 0,
            loops: Vec::new(),
            failed: None,
            fuel: template::FUEL,
            bytes: 0,
            key: KeyWriter::default(),
        });
        Self { plan, memo, key, conversation, state }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, Rendering> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        let missing = || Error::from(ErrorKind::MissingArgument);
        let number = args.first().and_then(Value::as_usize).ok_or_else(missing)?;
        let items = Items::of(args.get(1).ok_or_else(missing)?)?;
        let mut around = Vec::new();
        if let Some(last) = args.get(2) {
            let named = Kwargs::try_from(last.clone())?;
            for name in named.args() {
                around.push((name.to_owned(), named.get::<Value>(name)?));
            }
        }
        let around = Around(around);
        let one = self.plan.loops.get(number).ok_or_else(missing)?;
        let round = Round { number, one, items: &items, around: &around };
        let steady = self.steady(&round);
        let mut rendering = self.state();
        let mut pieces = Vec::with_capacity(items.len());
        for at in 0..items.len() {
            let piece = self.turn(state, &mut rendering, &round, steady, at)?;
            rendering.bytes += piece.length;
            if rendering.bytes > TEXT_BYTES_MAX {
                return Err(Error::from(ErrorKind::WriteFailure));
            }
            pieces.push(piece);
        }
        rendering.loops.push(pieces);
        Ok(Value::from(format!("{}{}\n", self.plan.nonce, rendering.loops.len() - 1)))
    }

    /// The part of a turn's key that is the same for all turns of a loop; `None` if it cannot be told.
    fn steady(&self, round: &Round<'_>) -> Option<Key> {
        let mut key = KeyWriter::default();
        key.number(self.key).number(round.number as u128);
        for (name, used) in &round.one.reads.variables {
            write_use(&mut key, round.around.get(name)?, used)?;
        }
        Some(key.key())
    }

    fn turn(
        &self,
        state: &mut State<'_, '_>,
        rendering: &mut Rendering,
        round: &Round<'_>,
        steady: Option<Key>,
        at: usize,
    ) -> Result<Arc<Piece>, Error> {
        let key = steady.and_then(|steady| turn_key(round, &mut rendering.key, steady, at));
        if let Some(key) = key
            && let Some(Entry::Piece(piece)) = self.memo.cache.get(key)
        {
            rendering.hits += 1;
            apply(state, round, &piece)?;
            return Ok(piece);
        }
        rendering.misses += 1;
        let text = self.render(state, rendering, round, at)?;
        let written = written(round);
        if let Some(failed) = self.conversation.failed() {
            rendering.failed.get_or_insert(failed.clone());
            return Err(Error::from(ErrorKind::InvalidOperation));
        }
        let steady_values = written.iter().all(is_scalar);
        let Some(cuts) = &self.memo.cuts else {
            return Err(Error::from(ErrorKind::InvalidOperation));
        };
        let mut encoder = Encoder {
            vocabulary: &self.memo.vocabulary,
            cuts,
            cache: &self.memo.cache,
            budget: rendering.budget,
            hits: 0,
            misses: 0,
            last: None,
        };
        let piece = encoder.piece(&text, written.into_boxed_slice());
        rendering.budget = encoder.budget;
        let piece = Arc::new(piece.map_err(|error| {
            rendering.failed.get_or_insert(error);
            Error::from(ErrorKind::InvalidOperation)
        })?);
        if let Some(key) = key.filter(|_| steady_values) {
            self.memo.cache.put(key, Entry::Piece(Arc::clone(&piece)));
        }
        Ok(piece)
    }

    /// Renders the loop's body for one message.
    fn render(
        &self,
        state: &mut State<'_, '_>,
        rendering: &mut Rendering,
        round: &Round<'_>,
        at: usize,
    ) -> Result<String, Error> {
        // Rendering costs more than its text, so it is booked as some.
        const RENDER_BYTES: usize = 512;
        rendering.budget.take(RENDER_BYTES).map_err(|error| {
            rendering.failed.get_or_insert(error);
            Error::from(ErrorKind::InvalidOperation)
        })?;
        let item = round.items.value(at).unwrap_or_default();
        // The body sees what it would see in the loop; messages are opened here at the latest.
        let item = item.downcast_object_ref::<Turn>().map(Turn::plain).unwrap_or(item);
        let beside = |by: isize| at.checked_add_signed(by).and_then(|at| round.items.value(at));
        let of_loop = LoopValue {
            index0: at,
            length: round.items.len(),
            previous: beside(-1),
            next: beside(1),
        };
        let mut variables = round.around.0.clone();
        variables.push((round.one.target.clone(), item));
        variables.push(("loop".to_owned(), Value::from_object(of_loop)));
        variables.retain(|(_, value)| !value.is_undefined());
        let body = state.env().get_template(&template::turn_name(round.number))?;
        let rendered = body.render_captured(Value::from_pairs(variables))?;
        let spent = rendered.state().fuel_levels().map_or(0, |(spent, _)| spent);
        match rendering.fuel.checked_sub(spent) {
            Some(left) => rendering.fuel = left,
            None => return Err(Error::from(ErrorKind::OutOfFuel)),
        }
        Ok(rendered.output().to_owned())
    }
}

impl Object for Turns {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        self.run(state, args)
    }
}

// === a turn's key ===

fn turn_key(round: &Round<'_>, key: &mut KeyWriter, steady: Key, at: usize) -> Option<Key> {
    let reads = &round.one.reads;
    key.clear();
    key.number(steady);
    round.items.write(at, key)?;
    for read in &reads.of_loop {
        write_loop(key, round, *read, at)?;
    }
    for comparison in &reads.comparisons {
        key.tag(u8::from(compare(comparison, round, at)?));
    }
    for (name, used) in &reads.variables {
        let beside = used.items.iter().filter_map(|place| match place {
            Place::Beside(by) => Some(*by),
            Place::At(_) => None,
        });
        for by in beside {
            let list = round.around.get(name)?;
            write_item(key, list, i64::try_from(at).ok()?.checked_add(by)?)?;
        }
    }
    for (name, attribute) in &reads.writes {
        let namespace = round.around.get(name)?;
        write_value(key, &namespace.get_attr(attribute).ok()?)?;
        if reads.variables.get(name).is_some_and(|used| used.whole) {
            write_value(key, namespace)?;
        }
    }
    Some(key.key())
}

fn write_loop(key: &mut KeyWriter, round: &Round<'_>, read: LoopRead, at: usize) -> Option<()> {
    let length = round.items.len();
    match read {
        LoopRead::First => drop(key.tag(u8::from(at == 0))),
        LoopRead::Last => drop(key.tag(u8::from(at + 1 == length))),
        LoopRead::Number(number) => drop(key.number(number.of_turn(at, length)? as u128)),
        LoopRead::Previous | LoopRead::Next => {
            let other = if read == LoopRead::Next { at.checked_add(1) } else { at.checked_sub(1) };
            match other.filter(|other| *other < length) {
                Some(other) => round.items.write(other, key)?,
                None => drop(key.tag(b'-')),
            }
        }
    }
    Some(())
}

impl LoopNumber {
    fn of_turn(self, at: usize, length: usize) -> Option<i64> {
        let number = match self {
            Self::Index0 => at,
            Self::Index => at + 1,
            Self::RevIndex0 => length.checked_sub(at + 1)?,
            Self::RevIndex => length.checked_sub(at)?,
            Self::Length => length,
        };
        i64::try_from(number).ok()
    }
}

fn compare(comparison: &Comparison, round: &Round<'_>, at: usize) -> Option<bool> {
    let (left, right) =
        (number(&comparison.left, round, at)?, number(&comparison.right, round, at)?);
    Some(match comparison.how {
        Order::Eq => left == right,
        Order::Ne => left != right,
        Order::Lt => left < right,
        Order::Le => left <= right,
        Order::Gt => left > right,
        Order::Ge => left >= right,
    })
}

fn number(term: &Term, round: &Round<'_>, at: usize) -> Option<i64> {
    let whole = |value: &Value| {
        let fits = value.kind() == ValueKind::Number && value.is_integer();
        fits.then(|| i64::try_from(value.clone()).ok()).flatten()
    };
    let variable = |name: &str| round.around.get(name);
    match term {
        Term::Number(number) => Some(*number),
        Term::Loop(number) => number.of_turn(at, round.items.len()),
        Term::Variable(name) => whole(variable(name)?),
        Term::Attribute(name, attribute) => whole(&variable(name)?.get_attr(attribute).ok()?),
        Term::Length(name) => match variable(name)? {
            text if text.kind() == ValueKind::String => None,
            list => i64::try_from(list.len()?).ok(),
        },
        Term::Sum(left, right) => number(left, round, at)?.checked_add(number(right, round, at)?),
        Term::Difference(left, right) => {
            number(left, round, at)?.checked_sub(number(right, round, at)?)
        }
    }
}

/// Writes what is read of a variable, but for what changes from turn to turn.
fn write_use(key: &mut KeyWriter, value: &Value, used: &Use) -> Option<()> {
    if used.whole {
        return write_value(key, value);
    }
    for attribute in &used.attributes {
        // Of nothing at all an attribute cannot be read; the template fails or does not get there.
        match value.get_attr(attribute) {
            Ok(value) => write_value(key, &value)?,
            Err(_) => drop(key.tag(b'!')),
        }
    }
    for place in &used.items {
        match place {
            Place::At(at) => write_item(key, value, *at)?,
            // Whether there is a list at all.
            Place::Beside(_) => drop(key.tag(value.kind() as u8)),
        }
    }
    Some(())
}

/// Writes an item of a list, counted from its end below zero, as Python does.
fn write_item(key: &mut KeyWriter, list: &Value, at: i64) -> Option<()> {
    let length = i64::try_from(list.len().unwrap_or(0)).ok()?;
    let at = if at < 0 { at.checked_add(length)? } else { at };
    let Some(at) = usize::try_from(at).ok().filter(|_| at < length) else {
        key.tag(b'-');
        return Some(());
    };
    if let Some(all) = list.downcast_object_ref::<Conversation>() {
        key.tag(b'm').number(all.key(at)?);
        return Some(());
    }
    write_value(key, &list.get_item_by_index(at).ok()?)
}

/// Writes a whole value; `None` for values that have more to them than can be written.
fn write_value(key: &mut KeyWriter, value: &Value) -> Option<()> {
    if let Some(turn) = value.downcast_object_ref::<Turn>() {
        key.tag(b'm').number(turn.key());
        return Some(());
    }
    if let Some(all) = value.downcast_object_ref::<Conversation>() {
        key.tag(b'c').number(all.len() as u128);
        return (0..all.len()).try_for_each(|at| {
            key.number(all.key(at)?);
            Some(())
        });
    }
    match value.kind() {
        ValueKind::Undefined => drop(key.tag(b'u')),
        ValueKind::None => drop(key.tag(b'n')),
        ValueKind::Bool => drop(key.tag(b'b').tag(u8::from(value.is_true()))),
        ValueKind::Number => {
            key.tag(if value.is_integer() { b'i' } else { b'f' }).text(&value.to_string());
        }
        ValueKind::String => {
            key.tag(if value.is_safe() { b'h' } else { b's' }).text(value.as_str()?);
        }
        ValueKind::Seq => {
            key.tag(if value.is_tuple() { b't' } else { b'l' }).number(value.len()? as u128);
            for item in value.try_iter().ok()? {
                write_value(key, &item)?;
            }
        }
        ValueKind::Map => {
            key.tag(b'd').number(value.len()? as u128);
            for (name, item) in value.as_object()?.try_iter_pairs()? {
                write_value(key, &name)?;
                write_value(key, &item)?;
            }
        }
        _ => return None,
    }
    Some(())
}

// === what a turn sets ===

fn is_scalar(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Undefined
            | ValueKind::None
            | ValueKind::Bool
            | ValueKind::Number
            | ValueKind::String
    )
}

/// The values now of what the loop sets.
fn written(round: &Round<'_>) -> Vec<Value> {
    let now = |(name, attribute): &(String, String)| {
        let namespace = round.around.get(name).cloned().unwrap_or_default();
        namespace.get_attr(attribute).unwrap_or_default()
    };
    round.one.reads.writes.iter().map(now).collect()
}

/// Sets what a remembered turn set.
fn apply(state: &mut State<'_, '_>, round: &Round<'_>, piece: &Piece) -> Result<(), Error> {
    for (at, ((name, attribute), value)) in
        round.one.reads.writes.iter().zip(&piece.written).enumerate()
    {
        let namespace = round.around.get(name).cloned().unwrap_or_default();
        let now = namespace.get_attr(attribute).unwrap_or_default();
        let same = now.kind() == value.kind()
            && now == *value
            && now.is_integer() == value.is_integer()
            && now.is_safe() == value.is_safe();
        if !same {
            let setter = state.env().get_template(&template::setter_name(round.number, at))?;
            let variables = [("namespace_", namespace), ("value_", value.clone())];
            setter.render_captured(Value::from_pairs(variables))?;
        }
    }
    Ok(())
}

/// The `loop` of a turn that is rendered by itself.
#[derive(Debug)]
struct LoopValue {
    index0: usize,
    length: usize,
    previous: Option<Value>,
    next: Option<Value>,
}

impl Object for LoopValue {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let number = |number: LoopNumber| number.of_turn(self.index0, self.length).map(Value::from);
        match key.as_str()? {
            "index0" => number(LoopNumber::Index0),
            "index" => number(LoopNumber::Index),
            "revindex0" => number(LoopNumber::RevIndex0),
            "revindex" => number(LoopNumber::RevIndex),
            "length" => number(LoopNumber::Length),
            "first" => Some(Value::from(self.index0 == 0)),
            "last" => Some(Value::from(self.index0 + 1 == self.length)),
            "previtem" => self.previous.clone(),
            "nextitem" => self.next.clone(),
            _ => None,
        }
    }
}
