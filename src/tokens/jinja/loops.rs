//! Loops, and what `loop` tells of them.

use super::{
    Stop, access,
    args::Args,
    ast::For,
    machine::Machine,
    ops,
    value::{Seq, Value},
};
use std::sync::Arc;

/// What `loop` knows.
pub(super) struct Loop<'t> {
    /// Those that passed the loop's condition, as far as was looked.
    pub(super) items: Vec<Value>,
    /// All, and how many of them were looked at.
    rest: Arc<Seq>,
    looked: usize,
    pub(super) at: usize,
    pub(super) depth: usize,
    pub(super) changed: Option<Vec<Value>>,
    /// The loop and the scope around it.
    pub(super) home: (&'t For, usize),
}

impl<'t> Loop<'t> {
    /// A loop over all items, without a condition.
    pub(super) fn whole(rest: Arc<Seq>, home: (&'t For, usize)) -> Self {
        let (items, looked) = (rest.items.clone(), rest.items.len());
        Self { items, rest, looked, at: 0, depth: 0, changed: None, home }
    }
}

impl<'t> Machine<'t> {
    /// Begins a loop; gives its number.
    pub(super) fn open_loop(&mut self, begun: Loop<'t>) -> usize {
        self.loops.push(begun);
        self.loops.len() - 1
    }

    /// Ends a loop that nothing refers to.
    pub(super) fn close_loop(&mut self, number: usize) {
        if number + 1 == self.loops.len() {
            self.loops.pop();
        }
    }

    /// Tells a loop which turn it is at.
    pub(super) fn turn_to(&mut self, number: usize, at: usize) {
        if let Some(state) = self.loops.get_mut(number) {
            state.at = at;
        }
    }

    /// Runs a loop over a value.
    pub(super) fn walk(
        &mut self,
        node: &'t For,
        over: &Value,
        depth: usize,
        scope: usize,
        out: &mut String,
    ) -> Result<(), Stop> {
        self.spend(over.weight())?;
        let rest = self.items_of(over)?;
        let (items, looked) = match node.test {
            Some(_) => (Vec::new(), 0),
            None => (rest.items.clone(), rest.items.len()),
        };
        let home = (node, scope);
        let begun = Loop { items, rest, looked, at: 0, depth, changed: None, home };
        let number = self.open_loop(begun);
        if node.recursive {
            self.keep(scope);
        }
        // As in jinja2, `else` also runs when no turn came to its end.
        let mut completed = false;
        let mut at = 0;
        while let Some(item) = self.reach(number, at)? {
            self.spend(1)?;
            let inner = self.open(scope);
            if let Some(name) = node.loop_name {
                self.turn_to(number, at);
                self.set(inner, name, Value::Loop(number));
            }
            self.assign(&node.target, item, inner)?;
            let ended = self.run(&node.body, inner, out);
            self.close(inner);
            match ended {
                Ok(()) => completed = true,
                Err(Stop::Continue) => {}
                Err(Stop::Break) => break,
                Err(stop) => return Err(stop),
            }
            at += 1;
        }
        if node.loop_name.is_none() {
            self.close_loop(number);
        }
        if !completed && !node.otherwise.is_empty() {
            let inner = self.open(scope);
            self.run(&node.otherwise, inner, out)?;
            self.close(inner);
        }
        Ok(())
    }

    /// The item at a place of a loop. The condition is asked no further than that, as it may look at what
    /// the loop's own body changes.
    pub(super) fn reach(&mut self, number: usize, at: usize) -> Result<Option<Value>, Stop> {
        loop {
            let Some(state) = self.loops.get_mut(number) else { return Ok(None) };
            if let Some(item) = state.items.get(at) {
                return Ok(Some(item.clone()));
            }
            let Some(item) = state.rest.items.get(state.looked).cloned() else { return Ok(None) };
            state.looked += 1;
            let (node, scope) = state.home;
            let inner = self.open(scope);
            self.assign(&node.target, item.clone(), inner)?;
            let passes = match &node.test {
                Some(test) => self.evaluate(test, inner)?.is_true(),
                None => true,
            };
            self.close(inner);
            if passes && let Some(state) = self.loops.get_mut(number) {
                state.items.push(item);
            }
        }
    }

    pub(super) fn items_of(&mut self, over: &Value) -> Result<Arc<Seq>, Stop> {
        match over {
            Value::Loop(_) => Err(Stop::failed("a loop over a loop's state is not known")),
            other => access::items(other),
        }
    }

    /// `loop.name`
    pub(super) fn loop_attribute(&mut self, number: usize, name: &str) -> Result<Value, Stop> {
        let Some(state) = self.loops.get(number) else { return Ok(Value::Undefined) };
        let (at, depth) = (state.at, state.depth);
        let ahead = match name {
            "last" | "nextitem" => at + 1,
            "length" | "revindex" | "revindex0" => usize::MAX,
            _ => 0,
        };
        let next = if ahead > 0 { self.reach(number, ahead)? } else { None };
        let Some(state) = self.loops.get(number) else { return Ok(Value::Undefined) };
        let length = state.items.len();
        Ok(match name {
            "index" => Value::count(at + 1),
            "index0" => Value::count(at),
            "revindex" => Value::count(length - at),
            "revindex0" => Value::count(length - at - 1),
            "first" => Value::Bool(at == 0),
            "last" => Value::Bool(next.is_none()),
            "length" => Value::count(length),
            "depth" => Value::count(depth + 1),
            "depth0" => Value::count(depth),
            "previtem" => {
                let item = at.checked_sub(1).and_then(|at| state.items.get(at));
                item.cloned().unwrap_or(Value::Undefined)
            }
            "nextitem" => next.unwrap_or(Value::Undefined),
            "cycle" => Value::Method(Arc::new((Value::Loop(number), "cycle"))),
            "changed" => Value::Method(Arc::new((Value::Loop(number), "changed"))),
            _ => Value::Undefined,
        })
    }

    pub(super) fn loop_method(
        &mut self,
        number: usize,
        name: &str,
        args: Args,
    ) -> Result<Value, Stop> {
        let told = || Stop::failed("no items for cycling given");
        let Some(state) = self.loops.get_mut(number) else { return Err(told()) };
        if !args.named.is_empty() {
            return Err(Stop::failed("takes no keyword arguments"));
        }
        if name == "cycle" {
            let at = state.at.checked_rem(args.list.len()).ok_or_else(told)?;
            return args.list.get(at).cloned().ok_or_else(told);
        }
        let same = state.changed.as_ref().is_some_and(|last| {
            last.len() == args.list.len()
                && last.iter().zip(&args.list).all(|(one, two)| ops::same(one, two))
        });
        state.changed = Some(args.list);
        Ok(Value::Bool(!same))
    }

    pub(super) fn call_loop(&mut self, number: usize, args: Args) -> Result<Value, Stop> {
        let [over] = args.places(1)?;
        let state = self.loops.get(number);
        let again = state.map(|state| (state.home, state.depth + 1));
        let again = again.filter(|((node, _), _)| node.recursive);
        let ((node, scope), depth) = again.ok_or_else(|| {
            Stop::failed("The loop must have the 'recursive' marker to be called recursively.")
        })?;
        let mut text = String::new();
        let over = over.unwrap_or(Value::None);
        self.deeper(|machine| machine.walk(node, &over, depth, scope, &mut text))?;
        Ok(text.into())
    }
}
