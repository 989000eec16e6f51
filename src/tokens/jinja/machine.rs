//! Runs a template: scopes, statements, and what a run may cost.

use super::{
    Stop, access,
    args::Args,
    ast::{Call, For, Macro, NameId, Program, Statement, Target},
    filters,
    value::{Seq, Value},
};
use crate::tokens::{python, template::TEXT_BYTES_MAX};
use std::sync::Arc;

/// Deepest nesting of blocks, expressions and calls at once.
const DEPTH_MAX: usize = 250;

/// What a run may cost, and what it knows of the world.
pub(in crate::tokens) struct Limits<'a> {
    /// Steps it may take.
    pub(in crate::tokens) fuel: u64,
    /// The time that `strftime_now` tells.
    pub(in crate::tokens) now: &'a dyn Fn() -> jiff::Zoned,
}

/// Renders a template with variables, which are a dict.
pub(in crate::tokens) fn render(
    program: &Program,
    variables: &Value,
    limits: &Limits<'_>,
) -> Result<String, Stop> {
    let given = |name: &Arc<str>| match variables {
        Value::Dict(dict) => dict.get(name).cloned(),
        _ => None,
    };
    let mut machine = Machine {
        program,
        given: program.names.texts.iter().map(given).collect(),
        fuel: limits.fuel,
        now: limits.now,
        depth: 0,
        scopes: vec![Scope { above: None, variables: Vec::new(), kept: true }],
        spare: Vec::new(),
        macros: Vec::new(),
        namespaces: Vec::new(),
        loops: Vec::new(),
        turns: Vec::new(),
    };
    let mut out = String::new();
    match machine.run(&program.body, 0, &mut out) {
        Ok(()) => Ok(out),
        Err(Stop::Break | Stop::Continue) => Err(Stop::failed("break outside of a loop")),
        Err(stop) => Err(stop),
    }
}

/// A run of a template.
pub(super) struct Machine<'t> {
    pub(super) program: &'t Program,
    /// The variables given, by name.
    given: Vec<Option<Value>>,
    fuel: u64,
    pub(super) now: &'t dyn Fn() -> jiff::Zoned,
    depth: usize,
    scopes: Vec<Scope>,
    /// Emptied lists of variables, for the next scopes.
    spare: Vec<Vec<(NameId, Value)>>,
    /// Macros with the scope they were written in.
    pub(super) macros: Vec<(&'t Macro, usize)>,
    pub(super) namespaces: Vec<Vec<(Arc<str>, Value)>>,
    pub(super) loops: Vec<Loop<'t>>,
    /// What joiners and cyclers remember.
    pub(super) turns: Vec<usize>,
}

/// Variables set in one place, and the scope around it.
struct Scope {
    above: Option<usize>,
    variables: Vec<(NameId, Value)>,
    /// A macro may still look into it.
    kept: bool,
}

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

impl<'t> Machine<'t> {
    // === costs ===

    /// Takes steps off the fuel.
    pub(super) fn spend(&mut self, steps: u64) -> Result<(), Stop> {
        self.fuel = self.fuel.checked_sub(steps).ok_or(Stop::Fuel)?;
        Ok(())
    }

    /// Runs something one level deeper.
    pub(super) fn deeper<T>(
        &mut self,
        part: impl FnOnce(&mut Self) -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Stop::failed("the template nests too deeply"));
        }
        let result = part(self);
        self.depth -= 1;
        result
    }

    // === scopes ===

    /// Opens a scope within another.
    pub(super) fn open(&mut self, above: usize) -> usize {
        let variables = self.spare.pop().unwrap_or_default();
        self.scopes.push(Scope { above: Some(above), variables, kept: false });
        self.scopes.len() - 1
    }

    /// Closes a scope, unless a macro may still look into it.
    pub(super) fn close(&mut self, scope: usize) {
        let last = scope + 1 == self.scopes.len();
        if last
            && self.scopes.last().is_some_and(|scope| !scope.kept)
            && let Some(mut closed) = self.scopes.pop()
        {
            closed.variables.clear();
            self.spare.push(closed.variables);
        }
    }

    /// Keeps a scope and those around it, because a macro was made in it.
    fn keep(&mut self, scope: usize) {
        let mut next = Some(scope);
        while let Some(scope) = next.and_then(|at| self.scopes.get_mut(at)) {
            if scope.kept {
                return;
            }
            scope.kept = true;
            next = scope.above;
        }
    }

    pub(super) fn set(&mut self, scope: usize, name: NameId, value: Value) {
        let Some(scope) = self.scopes.get_mut(scope) else { return };
        match scope.variables.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => scope.variables.push((name, value)),
        }
    }

    /// The value of a name, as seen from a scope.
    pub(super) fn look_up(&self, scope: usize, name: NameId) -> Value {
        let mut next = Some(scope);
        while let Some(scope) = next.and_then(|at| self.scopes.get(at)) {
            if let Some((_, value)) = scope.variables.iter().find(|(known, _)| *known == name) {
                return value.clone();
            }
            next = scope.above;
        }
        let at = name as usize;
        if let Some(Some(value)) = self.given.get(at) {
            return value.clone();
        }
        match self.program.names.globals.get(at) {
            Some(Some(global)) => Value::Global(*global),
            _ => Value::Undefined,
        }
    }

    // === statements ===

    /// Runs statements in a scope.
    pub(super) fn run(
        &mut self,
        body: &'t [Statement],
        scope: usize,
        out: &mut String,
    ) -> Result<(), Stop> {
        for statement in body {
            self.spend(1)?;
            self.statement(statement, scope, out)?;
            if out.len() > TEXT_BYTES_MAX {
                return Err(Stop::TooLong);
            }
        }
        Ok(())
    }

    fn statement(
        &mut self,
        statement: &'t Statement,
        scope: usize,
        out: &mut String,
    ) -> Result<(), Stop> {
        match statement {
            Statement::Text(text) => out.push_str(text),
            Statement::Print(printed) => {
                let value = self.evaluate(printed, scope)?;
                self.spend(value.weight())?;
                python::write_text(out, &value)?;
            }
            Statement::If(branches, otherwise) => {
                for (condition, body) in branches {
                    if self.evaluate(condition, scope)?.is_true() {
                        return self.deeper(|machine| machine.run(body, scope, out));
                    }
                }
                return self.deeper(|machine| machine.run(otherwise, scope, out));
            }
            Statement::For(node) => {
                let over = self.evaluate(&node.over, scope)?;
                return self.deeper(|machine| machine.walk(node, &over, 0, scope, out));
            }
            Statement::Set(target, value) => {
                let value = self.evaluate(value, scope)?;
                self.assign(target, value, scope)?;
            }
            Statement::SetBlock(target, calls, body) => {
                let text = self.captured(body, scope)?;
                let value = self.filtered(text.into(), calls, scope)?;
                self.assign(target, value, scope)?;
            }
            Statement::With(values, body) => {
                let inner = self.open(scope);
                for (target, value) in values {
                    let value = self.evaluate(value, scope)?;
                    self.assign(target, value, inner)?;
                }
                self.deeper(|machine| machine.run(body, inner, out))?;
                self.close(inner);
            }
            Statement::Filter(calls, body) => {
                let text = self.captured(body, scope)?;
                let value = self.filtered(text.into(), calls, scope)?;
                python::write_text(out, &value)?;
            }
            Statement::Macro(name, made) => {
                let value = self.make_macro(made, scope)?;
                self.set(scope, *name, value);
            }
            Statement::Call(called, caller) => {
                let caller = self.make_macro(caller, scope)?;
                let value = self.call_with(called, Some(caller), scope)?;
                python::write_text(out, &value)?;
            }
            Statement::Break => return Err(Stop::Break),
            Statement::Continue => return Err(Stop::Continue),
        }
        Ok(())
    }

    fn make_macro(&mut self, made: &'t Macro, scope: usize) -> Result<Value, Stop> {
        self.spend(8)?;
        self.keep(scope);
        self.macros.push((made, scope));
        Ok(Value::Macro(self.macros.len() - 1))
    }

    /// The text of statements, in a scope of their own.
    fn captured(&mut self, body: &'t [Statement], scope: usize) -> Result<String, Stop> {
        let inner = self.open(scope);
        let mut text = String::new();
        self.deeper(|machine| machine.run(body, inner, &mut text))?;
        self.close(inner);
        Ok(text)
    }

    fn filtered(&mut self, value: Value, calls: &'t [Call], scope: usize) -> Result<Value, Stop> {
        calls.iter().try_fold(value, |value, call| self.filter(call, value, scope))
    }

    /// Applies a filter.
    pub(super) fn filter(
        &mut self,
        call: &'t Call,
        value: Value,
        scope: usize,
    ) -> Result<Value, Stop> {
        let args = self.arguments(&call.arguments, scope)?;
        self.weigh(&value, &args)?;
        let made = filters::apply(&call.name, &value, args)?;
        self.spend(made.weight())?;
        Ok(made)
    }

    /// Pays for the work that a call's arguments are.
    pub(super) fn weigh(&mut self, value: &Value, args: &Args) -> Result<(), Stop> {
        let list = args.list.iter().map(Value::weight);
        let named = args.named.iter().map(|(_, value)| value.weight());
        self.spend(value.weight() + list.chain(named).sum::<u64>())
    }

    fn assign(&mut self, target: &'t Target, value: Value, scope: usize) -> Result<(), Stop> {
        match target {
            Target::Name(name) => self.set(scope, *name, value),
            Target::Attribute(name, attribute) => {
                let Value::Namespace(at) = self.look_up(scope, *name) else {
                    return Err(Stop::failed("cannot assign attribute on non-namespace object"));
                };
                if attribute.starts_with('_') {
                    return Err(Stop::failed("namespaces have no underscored attributes"));
                }
                if let Some(attributes) = self.namespaces.get_mut(at) {
                    match attributes.iter_mut().find(|(known, _)| known == attribute) {
                        Some((_, old)) => *old = value,
                        None => attributes.push((attribute.clone(), value)),
                    }
                }
            }
            Target::Tuple(targets) => {
                let items = access::items(&value)?;
                if items.items.len() != targets.len() {
                    return Err(Stop::failed("another number of values to unpack"));
                }
                for (target, item) in targets.iter().zip(&items.items) {
                    self.assign(target, item.clone(), scope)?;
                }
            }
        }
        Ok(())
    }

    // === loops ===

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
        self.loops.push(Loop { items, rest, looked, at: 0, depth, changed: None, home });
        let number = self.loops.len() - 1;
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
                if let Some(state) = self.loops.get_mut(number) {
                    state.at = at;
                }
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
        if node.loop_name.is_none() && number + 1 == self.loops.len() {
            self.loops.pop();
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

    fn items_of(&mut self, over: &Value) -> Result<Arc<Seq>, Stop> {
        match over {
            Value::Loop(_) => Err(Stop::failed("a loop over a loop's state is not known")),
            other => access::items(other),
        }
    }
}
