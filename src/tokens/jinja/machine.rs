//! Runs a template: scopes, statements, and what a run may cost.

use super::{
    Stop, access,
    args::Args,
    ast::{Call, Expression, For, Macro, NameId, Program, Statement, Target},
    filters,
    loops::Loop,
    turns::Memory,
    value::Value,
    work,
};
use crate::tokens::{
    memo::{Key, Piece},
    python,
    template::TEXT_BYTES_MAX,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Deepest nesting of blocks, expressions and calls at once.
const DEPTH_MAX: usize = 200;

/// Longest that a run may take.
const TIME_MAX: Duration = Duration::from_secs(2);

/// Steps between looks at the clock.
const LOOK_EVERY: u32 = 512;

/// What a run may cost, and what it knows of the world.
pub(in crate::tokens) struct Limits<'a> {
    /// Steps it may take.
    pub(in crate::tokens) fuel: u64,
    /// The time that `strftime_now` tells.
    pub(in crate::tokens) now: &'a dyn Fn() -> jiff::Zoned,
}

/// What a template wrote.
pub(in crate::tokens) struct Rendered {
    /// Its text, but for what loops with a memory wrote.
    pub(in crate::tokens) text: String,
    /// That, with the places in the text where it belongs.
    pub(in crate::tokens) pieces: Vec<(usize, Arc<Piece>)>,
}

/// Renders a template with variables, which are a dict. With a memory, and the key of the template in it,
/// loops whose turns can be remembered put what they write aside.
pub(in crate::tokens) fn render<'t>(
    program: &'t Program,
    variables: &Value,
    limits: &Limits<'t>,
    memory: Option<(Key, &'t mut (dyn Memory + 't))>,
) -> Result<Rendered, Stop> {
    let given = |name: &Arc<str>| match variables {
        Value::Dict(dict) => dict.get(name).cloned(),
        _ => None,
    };
    work::begin();
    let mut machine = Machine {
        program,
        given: program.names.texts.iter().map(given).collect(),
        fuel: limits.fuel,
        until: Instant::now() + TIME_MAX,
        looks: 0,
        now: limits.now,
        depth: 0,
        scopes: vec![Scope { above: None, variables: Vec::new(), kept: true }],
        spare: Vec::new(),
        macros: Vec::new(),
        namespaces: Vec::new(),
        loops: Vec::new(),
        turns: Vec::new(),
        memory_key: memory.as_ref().map_or(0, |(key, _)| *key),
        memory: memory.map(|(_, memory)| memory),
        pieces: Vec::new(),
        bytes_aside: 0,
    };
    let mut out = String::new();
    match machine.run(&program.body, 0, &mut out) {
        Ok(()) => Ok(Rendered { text: out, pieces: machine.pieces }),
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
    /// When it must have ended, and how often it has spent: the clock is not looked at each time.
    until: Instant,
    looks: u32,
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
    /// Of the template and what prepares its messages.
    pub(super) memory_key: Key,
    pub(super) memory: Option<&'t mut (dyn Memory + 't)>,
    pub(super) pieces: Vec<(usize, Arc<Piece>)>,
    /// Text that the pieces stand for, bytes.
    pub(super) bytes_aside: usize,
}

/// Variables set in one place, and the scope around it.
struct Scope {
    above: Option<usize>,
    variables: Vec<(NameId, Value)>,
    /// A macro may still look into it.
    kept: bool,
}

impl<'t> Machine<'t> {
    // === costs ===

    /// Takes steps off the fuel.
    pub(super) fn spend(&mut self, steps: u64) -> Result<(), Stop> {
        self.fuel = self.fuel.checked_sub(steps).ok_or(Stop::Fuel)?;
        self.looks = self.looks.wrapping_add(1);
        let late = || self.looks.is_multiple_of(LOOK_EVERY) && Instant::now() > self.until;
        if !work::done(0) || late() { Err(Stop::Fuel) } else { Ok(()) }
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
    pub(super) fn keep(&mut self, scope: usize) {
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

    /// Runs one statement. Each kind has a function of its own, so that nesting takes little stack.
    fn statement(
        &mut self,
        statement: &'t Statement,
        scope: usize,
        out: &mut String,
    ) -> Result<(), Stop> {
        match statement {
            Statement::Text(text) => out.push_str(text),
            Statement::Print(printed) => return self.print(printed, scope, out),
            Statement::If(branches, otherwise) => {
                let body = self.branch(branches, otherwise, scope)?;
                return self.nested(body, scope, out);
            }
            Statement::For(node) => return self.for_loop(node, scope, out),
            Statement::Set(target, value) => {
                let value = self.evaluate(value, scope)?;
                return self.assign(target, value, scope);
            }
            Statement::SetBlock(target, calls, body) => {
                let value = self.captured(body, calls, scope)?;
                return self.assign(target, value, scope);
            }
            Statement::With(values, body) => return self.with(values, body, scope, out),
            Statement::Filter(calls, body) => {
                let value = self.captured(body, calls, scope)?;
                return python::write_text(out, &value);
            }
            Statement::Macro(name, made) => {
                let value = self.make_macro(made, scope)?;
                self.set(scope, *name, value);
            }
            Statement::Call(called, caller) => return self.call_block(called, caller, scope, out),
            Statement::Break => return Err(Stop::Break),
            Statement::Continue => return Err(Stop::Continue),
        }
        Ok(())
    }

    fn print(
        &mut self,
        printed: &'t Expression,
        scope: usize,
        out: &mut String,
    ) -> Result<(), Stop> {
        let value = self.evaluate(printed, scope)?;
        self.spend(value.weight())?;
        python::write_text(out, &value)
    }

    /// The body of the branch whose condition holds.
    fn branch(
        &mut self,
        branches: &'t [(Expression, Vec<Statement>)],
        otherwise: &'t [Statement],
        scope: usize,
    ) -> Result<&'t [Statement], Stop> {
        for (condition, body) in branches {
            if self.evaluate(condition, scope)?.is_true() {
                return Ok(body);
            }
        }
        Ok(otherwise)
    }

    fn nested(
        &mut self,
        body: &'t [Statement],
        scope: usize,
        out: &mut String,
    ) -> Result<(), Stop> {
        self.deeper(|machine| machine.run(body, scope, out))
    }

    fn for_loop(&mut self, node: &'t For, scope: usize, out: &mut String) -> Result<(), Stop> {
        let over = self.evaluate(&node.over, scope)?;
        if let (Some(reads), Some(_)) = (&node.reads, &self.memory) {
            return self.deeper(|machine| machine.walk_remembered(node, reads, &over, scope, out));
        }
        self.deeper(|machine| machine.walk(node, &over, 0, scope, out))
    }

    fn with(
        &mut self,
        values: &'t [(Target, Expression)],
        body: &'t [Statement],
        scope: usize,
        out: &mut String,
    ) -> Result<(), Stop> {
        let inner = self.open(scope);
        for (target, value) in values {
            let value = self.evaluate(value, scope)?;
            self.assign(target, value, inner)?;
        }
        self.nested(body, inner, out)?;
        self.close(inner);
        Ok(())
    }

    fn call_block(
        &mut self,
        called: &'t Expression,
        caller: &'t Macro,
        scope: usize,
        out: &mut String,
    ) -> Result<(), Stop> {
        let caller = self.make_macro(caller, scope)?;
        let value = self.call_with(called, Some(caller), scope)?;
        python::write_text(out, &value)
    }

    fn make_macro(&mut self, made: &'t Macro, scope: usize) -> Result<Value, Stop> {
        self.spend(8)?;
        self.keep(scope);
        self.macros.push((made, scope));
        Ok(Value::Macro(self.macros.len() - 1))
    }

    /// The text of statements, in a scope of their own, through filters.
    fn captured(
        &mut self,
        body: &'t [Statement],
        calls: &'t [Call],
        scope: usize,
    ) -> Result<Value, Stop> {
        let inner = self.open(scope);
        let mut text = String::new();
        self.nested(body, inner, &mut text)?;
        self.close(inner);
        calls.iter().try_fold(text.into(), |value, call| self.filter(call, value, scope))
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

    /// Sets an attribute of a namespace.
    pub(super) fn set_attribute(&mut self, at: usize, attribute: &Arc<str>, value: Value) {
        let Some(attributes) = self.namespaces.get_mut(at) else { return };
        match attributes.iter_mut().find(|(known, _)| known == attribute) {
            Some((_, old)) => *old = value,
            None => attributes.push((attribute.clone(), value)),
        }
    }

    pub(super) fn assign(
        &mut self,
        target: &'t Target,
        value: Value,
        scope: usize,
    ) -> Result<(), Stop> {
        match target {
            Target::Name(name) => self.set(scope, *name, value),
            Target::Attribute(name, attribute) => {
                let Value::Namespace(at) = self.look_up(scope, *name) else {
                    return Err(Stop::failed("cannot assign attribute on non-namespace object"));
                };
                if attribute.starts_with('_') {
                    return Err(Stop::failed("namespaces have no underscored attributes"));
                }
                self.set_attribute(at, attribute, value);
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
}
