//! Loops whose turns are remembered: a turn that was run in the same surroundings is not run again.

use super::{
    Stop, access,
    ast::{For, NameId, Target},
    loops::Loop,
    machine::Machine,
    ops::Comparison,
    reads::{LoopNumber, LoopRead, Place, Reads, Term, Use},
    value::{Global, Seq, Value},
};
use crate::tokens::{
    memo::{Key, KeyWriter, Piece},
    template::TEXT_BYTES_MAX,
};
use std::sync::Arc;

/// Where turns are remembered.
pub(in crate::tokens) trait Memory {
    /// What a turn wrote when it had this key.
    fn recall(&mut self, key: Key) -> Option<Arc<Piece>>;

    /// Takes what a turn wrote and set, and remembers it if it has a key.
    fn keep(
        &mut self,
        key: Option<Key>,
        text: &str,
        written: Vec<Value>,
    ) -> Result<Arc<Piece>, Stop>;
}

/// What a turn's key is made of.
struct Round<'t> {
    reads: &'t Reads,
    items: Arc<Seq>,
    /// The variables around the loop that are read or set.
    around: Vec<(NameId, Value)>,
}

impl Round<'_> {
    fn get(&self, name: NameId) -> Option<&Value> {
        self.around.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }
}

impl<'t> Machine<'t> {
    /// Runs a loop whose turns can be remembered. What they write is put aside as pieces.
    pub(super) fn walk_remembered(
        &mut self,
        node: &'t For,
        reads: &'t Reads,
        over: &Value,
        scope: usize,
        out: &str,
    ) -> Result<(), Stop> {
        self.spend(over.weight())?;
        let items = self.items_of(over)?;
        let names = reads.variables.keys().chain(reads.writes.iter().map(|(name, _)| name));
        let around = names.map(|name| (*name, self.look_up(scope, *name))).collect();
        let round = Round { reads, items: Arc::clone(&items), around };
        let number = self.open_loop(Loop::whole(Arc::clone(&items), (node, scope)));
        // What a turn sets may also go by another name among what the next one reads.
        let changing = !reads.writes.is_empty();
        let mut steady = self.steady_key(node, &round);
        let mut key = KeyWriter::default();
        let mut text = String::new();
        for (at, item) in items.items.iter().enumerate() {
            self.spend(1)?;
            if changing && at > 0 {
                steady = self.steady_key(node, &round);
            }
            let found = steady.and_then(|steady| self.turn_key(&mut key, steady, &round, at));
            let known =
                found.and_then(|key| self.memory.as_mut().and_then(|memory| memory.recall(key)));
            let piece = match known {
                Some(piece) => {
                    self.set_again(&round, &piece);
                    piece
                }
                None => {
                    text.clear();
                    self.one_turn(node, (number, at), item, scope, &mut text)?;
                    let written = self.written(&round);
                    let found = found.filter(|_| written.iter().all(is_plain));
                    match self.memory.as_mut() {
                        Some(memory) => memory.keep(found, &text, written)?,
                        None => return Err(Stop::failed("no memory")),
                    }
                }
            };
            self.bytes_aside += piece.length;
            if self.bytes_aside > TEXT_BYTES_MAX {
                return Err(Stop::TooLong);
            }
            self.pieces.push((out.len(), piece));
        }
        self.close_loop(number);
        Ok(())
    }

    fn one_turn(
        &mut self,
        node: &'t For,
        (number, at): (usize, usize),
        item: &Value,
        scope: usize,
        text: &mut String,
    ) -> Result<(), Stop> {
        let inner = self.open(scope);
        if let Some(name) = node.loop_name {
            self.turn_to(number, at);
            self.set(inner, name, Value::Loop(number));
        }
        if let Target::Name(name) = node.target {
            self.set(inner, name, item.clone());
        }
        let ended = self.run(&node.body, inner, text);
        self.close(inner);
        match ended {
            Ok(()) | Err(Stop::Continue) => Ok(()),
            Err(stop) => Err(stop),
        }
    }

    // === keys ===

    /// The part of a key that is the same for all turns; `None` if it cannot be told.
    fn steady_key(&self, node: &For, round: &Round<'_>) -> Option<Key> {
        let mut key = KeyWriter::default();
        // Loops of one template differ in where they stand.
        key.number(self.memory_key).number(u128::from(node.number));
        for (name, used) in &round.reads.variables {
            self.write_use(&mut key, round.get(*name)?, used)?;
        }
        Some(key.key())
    }

    fn turn_key(
        &self,
        key: &mut KeyWriter,
        steady: Key,
        round: &Round<'_>,
        at: usize,
    ) -> Option<Key> {
        let reads = round.reads;
        key.clear();
        key.number(steady);
        self.write(key, round.items.items.get(at)?)?;
        for read in &reads.of_loop {
            self.write_loop(key, round, *read, at)?;
        }
        for (left, how, right) in &reads.comparisons {
            let (left, right) = (self.number(left, round, at)?, self.number(right, round, at)?);
            key.tag(u8::from(match how {
                Comparison::Eq => left == right,
                Comparison::Ne => left != right,
                Comparison::Lt => left < right,
                Comparison::Le => left <= right,
                Comparison::Gt => left > right,
                Comparison::Ge => left >= right,
                Comparison::In | Comparison::NotIn => return None,
            }));
        }
        for (name, used) in &reads.variables {
            for place in &used.items {
                if let Place::Beside(by) = place {
                    let at = i128::try_from(at).ok()?.checked_add(*by)?;
                    self.write_item(key, round.get(*name)?, at)?;
                }
            }
        }
        // A turn may leave what it could set as it was.
        for (name, attribute) in &reads.writes {
            let namespace = round.get(*name)?;
            self.write_attribute(key, namespace, attribute)?;
            if reads.variables.get(name).is_some_and(|used| used.whole) {
                self.write(key, namespace)?;
            }
        }
        Some(key.key())
    }

    fn write_loop(
        &self,
        key: &mut KeyWriter,
        round: &Round<'_>,
        read: LoopRead,
        at: usize,
    ) -> Option<()> {
        let items = &round.items.items;
        let other = match read {
            LoopRead::First => {
                key.tag(u8::from(at == 0));
                return Some(());
            }
            LoopRead::Last => {
                key.tag(u8::from(at + 1 == items.len()));
                return Some(());
            }
            LoopRead::Number(number) => {
                key.number(number.at(at, items.len())? as u128);
                return Some(());
            }
            LoopRead::Previous => at.checked_sub(1),
            LoopRead::Next => at.checked_add(1),
        };
        match other.and_then(|other| items.get(other)) {
            Some(item) => self.write(key, item),
            None => {
                key.tag(b'-');
                Some(())
            }
        }
    }

    fn number(&self, term: &Term, round: &Round<'_>, at: usize) -> Option<i128> {
        let whole = |value: &Value| match value {
            Value::Int(number) => Some(*number),
            _ => None,
        };
        match term {
            Term::Number(number) => Some(*number),
            Term::Loop(number) => LoopNumber::at(*number, at, round.items.items.len()),
            Term::Variable(name) => whole(round.get(*name)?),
            Term::Attribute(name, attribute) => {
                whole(&self.attribute_now(round.get(*name)?, attribute)?)
            }
            Term::Length(name) => match round.get(*name)? {
                list @ (Value::List(_) | Value::Tuple(_) | Value::Dict(_)) => {
                    i128::try_from(list.length()?).ok()
                }
                _ => None,
            },
            Term::Sum(left, right) => {
                self.number(left, round, at)?.checked_add(self.number(right, round, at)?)
            }
            Term::Difference(left, right) => {
                self.number(left, round, at)?.checked_sub(self.number(right, round, at)?)
            }
        }
    }

    /// Writes what is read of a variable, but for what changes from turn to turn.
    fn write_use(&self, key: &mut KeyWriter, value: &Value, used: &Use) -> Option<()> {
        if used.whole {
            return self.write(key, value);
        }
        for attribute in &used.attributes {
            self.write_attribute(key, value, attribute)?;
        }
        for place in &used.items {
            match place {
                Place::At(at) => self.write_item(key, value, *at)?,
                // Whether there is a list at all.
                Place::Beside(_) => {
                    key.text(value.type_name());
                }
            }
        }
        Some(())
    }

    /// Writes an item of a list, counted from its end below zero, as Python does.
    fn write_item(&self, key: &mut KeyWriter, list: &Value, at: i128) -> Option<()> {
        let (Value::List(seq) | Value::Tuple(seq)) = list else {
            // Another kind of value, or one that gives an error.
            return None;
        };
        let length = i128::try_from(seq.items.len()).ok()?;
        let at = if at < 0 { at.checked_add(length)? } else { at };
        match usize::try_from(at).ok().and_then(|at| seq.items.get(at)) {
            Some(item) => self.write(key, item),
            None => {
                key.tag(b'-');
                Some(())
            }
        }
    }

    /// Writes an attribute as the template would see it now, or that asking for it is an error.
    fn write_attribute(&self, key: &mut KeyWriter, of: &Value, name: &Arc<str>) -> Option<()> {
        match of {
            Value::Namespace(_) => self.write(key, &self.attribute_now(of, name)?),
            Value::Loop(_) => None,
            other => match access::get_attribute(other, name) {
                Ok(value) => self.write(key, &value),
                Err(_) => {
                    key.tag(b'!');
                    Some(())
                }
            },
        }
    }

    /// An attribute as the template would see it now.
    fn attribute_now(&self, of: &Value, name: &Arc<str>) -> Option<Value> {
        match of {
            Value::Namespace(at) => {
                let attributes = self.namespaces.get(*at)?;
                let found = attributes.iter().find(|(known, _)| known == name);
                Some(found.map_or(Value::Undefined, |(_, value)| value.clone()))
            }
            Value::Loop(_) => None,
            // Where it fails, the body fails, or does not get there.
            other => Some(access::get_attribute(other, name).unwrap_or(Value::Undefined)),
        }
    }

    /// Writes a whole value; `None` for values that have more to them than can be written.
    fn write(&self, key: &mut KeyWriter, value: &Value) -> Option<()> {
        match value {
            Value::Undefined => drop(key.tag(b'u')),
            Value::None => drop(key.tag(b'n')),
            Value::Bool(flag) => drop(key.tag(b'b').tag(u8::from(*flag))),
            Value::Int(number) => drop(key.tag(b'i').number(*number as u128)),
            Value::Float(number) => drop(key.tag(b'f').number(u128::from(number.to_bits()))),
            Value::Str(text) => drop(key.tag(b's').text(text)),
            Value::Safe(text) => drop(key.tag(b'h').text(text)),
            Value::List(seq) | Value::Tuple(seq) => {
                key.tag(if matches!(value, Value::List(_)) { b'l' } else { b't' });
                key.tag(u8::from(seq.is_group)).number(seq.items.len() as u128);
                return seq.items.iter().try_for_each(|item| self.write(key, item));
            }
            Value::Dict(dict) => {
                if let Some(made) = dict.key() {
                    key.tag(b'm').number(made);
                    return Some(());
                }
                key.tag(b'd').number(dict.entries.len() as u128);
                return dict.entries.iter().try_for_each(|(name, item)| {
                    self.write(key, name)?;
                    self.write(key, item)
                });
            }
            Value::Range(start, stop, step) => {
                key.tag(b'r').number(*start as u128).number(*stop as u128).number(*step as u128);
            }
            Value::Namespace(at) => {
                let attributes = self.namespaces.get(*at)?;
                key.tag(b'a').number(attributes.len() as u128);
                return attributes.iter().try_for_each(|(name, value)| {
                    key.text(name);
                    self.write(key, value)
                });
            }
            Value::Global(
                global
                @ (Global::Range | Global::Dict | Global::Namespace | Global::RaiseException),
            ) => drop(key.tag(b'g').tag(*global as u8)),
            // The clock and what remembers give something else each time.
            Value::Global(_)
            | Value::View(..)
            | Value::Once(_)
            | Value::Method(_)
            | Value::Macro(_)
            | Value::Loop(_) => return None,
        }
        Some(())
    }

    // === what a turn sets ===

    /// The values now of what the loop sets.
    fn written(&self, round: &Round<'_>) -> Vec<Value> {
        let now = |(name, attribute): &(NameId, Arc<str>)| {
            round.get(*name).and_then(|namespace| self.attribute_now(namespace, attribute))
        };
        round.reads.writes.iter().map(|write| now(write).unwrap_or(Value::Undefined)).collect()
    }

    /// Sets what a remembered turn set.
    fn set_again(&mut self, round: &Round<'_>, piece: &Piece) {
        for ((name, attribute), value) in round.reads.writes.iter().zip(&piece.written) {
            let Some(Value::Namespace(at)) = round.get(*name) else { continue };
            let known = self.namespaces.get(*at).into_iter().flatten();
            let known = known.into_iter().any(|(known, _)| known == attribute);
            // What was never set and is not set now has no place among the attributes.
            if known || !matches!(value, Value::Undefined) {
                self.set_attribute(*at, attribute, value.clone());
            }
        }
    }
}

/// Whether a value can outlive the request: it is no part of a message, and not large.
fn is_plain(value: &Value) -> bool {
    const ITEMS_MAX: usize = 32;
    const TEXT_MAX: usize = 1024;
    match value {
        Value::Undefined | Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => true,
        Value::Str(text) | Value::Safe(text) => text.len() <= TEXT_MAX,
        Value::List(seq) | Value::Tuple(seq) => {
            let plain =
                |item: &Value| is_plain(item) && !matches!(item, Value::List(_) | Value::Tuple(_));
            seq.items.len() <= ITEMS_MAX && seq.items.iter().all(plain)
        }
        _ => false,
    }
}
