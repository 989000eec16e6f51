//! What the body of a template's loop reads and writes.
//!
//! The body's output is a function of these reads. So when all of them have the values of an earlier turn,
//! the output is that turn's, and need not be rendered again. Whatever is not understood here makes the
//! whole loop unfit, which costs time and nothing else.

use super::{
    ast::{Arguments, Call, Expression, For, NameId, Program, Statement, Target},
    ops::{Comparison, Operator},
    value::{Global, Value},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A template does something that cannot be followed.
#[derive(Debug)]
struct Unfit;

/// How one variable around the loop is read.
#[derive(Clone, Debug, Default)]
pub(super) struct Use {
    /// All of it.
    pub(super) whole: bool,
    /// These attributes.
    pub(super) attributes: BTreeSet<Arc<str>>,
    /// Items of a list at these places.
    pub(super) items: BTreeSet<Place>,
}

/// A place in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// Counted from the beginning, or below zero from the end.
    At(i128),
    /// So far from the turn's own `loop.index0`.
    Beside(i128),
}

/// A term of a comparison that the loop itself can work out.
#[derive(Clone, Debug)]
pub(super) enum Term {
    Number(i128),
    /// `loop.index0` and its kin.
    Loop(LoopNumber),
    /// A variable around the loop.
    Variable(NameId),
    /// An attribute of one.
    Attribute(NameId, Arc<str>),
    /// The length of one.
    Length(NameId),
    Sum(Box<Self>, Box<Self>),
    Difference(Box<Self>, Box<Self>),
}

/// A number that a loop knows of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LoopNumber {
    Index0,
    Index,
    RevIndex0,
    RevIndex,
    Length,
}

/// What a turn reads of `loop`, other than in comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LoopRead {
    First,
    Last,
    Number(LoopNumber),
    Previous,
    Next,
}

/// Everything that a body reads and writes beyond its own message.
#[derive(Clone, Debug, Default)]
pub(super) struct Reads {
    pub(super) variables: BTreeMap<NameId, Use>,
    pub(super) of_loop: BTreeSet<LoopRead>,
    /// Comparisons of numbers: only their outcome matters to the turn.
    pub(super) comparisons: Vec<(Term, Comparison, Term)>,
    /// Attributes of namespaces that it sets.
    pub(super) writes: BTreeSet<(NameId, Arc<str>)>,
    macros: BTreeSet<NameId>,
}

/// Finds the loops of a template whose turns can be remembered: those at the top, or under conditions
/// there, that print.
pub(super) fn plan(program: &mut Program) {
    let mut macros = BTreeMap::new();
    let mut unsure = BTreeSet::new();
    for statement in &program.body {
        if let Statement::Macro(name, made) = statement
            && macros.insert(*name, made).is_some()
        {
            // One name for two macros could mean either.
            unsure.insert(*name);
        }
    }
    program.body.iter().for_each(|statement| assigned_names(statement, &mut unsure));
    let names: BTreeSet<NameId> = macros.keys().copied().collect();
    let globals = program.names.globals.clone();
    let world = World { macros: &names, globals: &globals };
    let of_macros: BTreeMap<NameId, Option<Reads>> = macros
        .iter()
        .map(|(name, made)| {
            let mut walker = Walker::new(&world, None, None);
            walker.hidden = made.parameters.iter().map(|(name, _)| *name).collect();
            walker.hidden.extend([made.caller, made.kwargs, made.varargs].into_iter().flatten());
            let defaults = made.parameters.iter().filter_map(|(_, default)| default.as_ref());
            let read = defaults.into_iter().try_for_each(|default| walker.expr(default));
            let read = read.and_then(|()| walker.body(&made.body)).is_ok();
            (*name, (read && !unsure.contains(name)).then_some(walker.reads))
        })
        .collect();
    // A macro further down is not there yet.
    let mut above: BTreeMap<NameId, Option<Reads>> =
        names.iter().map(|name| (*name, None)).collect();
    for statement in &mut program.body {
        if let Statement::Macro(name, _) = statement {
            above.insert(*name, of_macros.get(name).cloned().flatten());
        }
        plan_body(std::slice::from_mut(statement), &world, &above);
    }
}

/// What a template's names are.
struct World<'w> {
    macros: &'w BTreeSet<NameId>,
    globals: &'w [Option<Global>],
}

/// Names that a statement of a template gives a value in some way other than as a macro at its top: a
/// macro of such a name may be something else by the time it is called.
fn assigned_names(statement: &Statement, names: &mut BTreeSet<NameId>) {
    fn target_names(target: &Target, names: &mut BTreeSet<NameId>) {
        match target {
            Target::Name(name) | Target::Attribute(name, _) => drop(names.insert(*name)),
            Target::Tuple(targets) => targets.iter().for_each(|one| target_names(one, names)),
        }
    }
    let mut inside = |body: &[Statement]| {
        for statement in body {
            if let Statement::Macro(name, _) = statement {
                names.insert(*name);
            }
            assigned_names(statement, names);
        }
    };
    match statement {
        Statement::Set(target, _) => target_names(target, names),
        Statement::SetBlock(target, _, body) => {
            inside(body);
            target_names(target, names);
        }
        Statement::For(node) => {
            inside(&node.body);
            inside(&node.otherwise);
            target_names(&node.target, names);
        }
        Statement::If(branches, otherwise) => {
            branches.iter().for_each(|(_, body)| inside(body));
            inside(otherwise);
        }
        Statement::With(values, body) => {
            inside(body);
            values.iter().for_each(|(target, _)| target_names(target, names));
        }
        Statement::Filter(_, body) => inside(body),
        Statement::Macro(_, made) | Statement::Call(_, made) => {
            inside(&made.body);
            names.extend(made.parameters.iter().map(|(name, _)| *name));
        }
        Statement::Text(_) | Statement::Print(_) | Statement::Break | Statement::Continue => {}
    }
}

fn plan_body(
    body: &mut [Statement],
    world: &World<'_>,
    of_macros: &BTreeMap<NameId, Option<Reads>>,
) {
    for statement in body {
        match statement {
            Statement::For(node) => {
                node.reads = plan_loop(node, world, of_macros).ok().map(Box::new);
            }
            Statement::If(branches, otherwise) => {
                branches.iter_mut().for_each(|(_, body)| plan_body(body, world, of_macros));
                plan_body(otherwise, world, of_macros);
            }
            _ => {}
        }
    }
}

fn plan_loop(
    node: &For,
    world: &World<'_>,
    of_macros: &BTreeMap<NameId, Option<Reads>>,
) -> Result<Reads, Unfit> {
    // A loop that only looks for something is cheaper run than remembered.
    let plain = node.test.is_none() && !node.recursive && node.otherwise.is_empty();
    let Target::Name(target) = node.target else { return Err(Unfit) };
    if !plain || !prints(&node.body) {
        return Err(Unfit);
    }
    let mut walker = Walker::new(world, Some(target), node.loop_name);
    walker.body(&node.body)?;
    // What is set here under the name of a namespace around would be taken for that one.
    if walker.reads.writes.iter().any(|(name, _)| walker.local.contains(name)) {
        return Err(Unfit);
    }
    let mut reads = walker.reads;
    add_macros(&mut reads, of_macros)?;
    // A macro sees the message only as an argument; under the loop's name it would be another variable.
    if reads.variables.contains_key(&target) {
        return Err(Unfit);
    }
    Ok(reads)
}

/// Whether anything in a body writes text.
fn prints(body: &[Statement]) -> bool {
    body.iter().any(|statement| match statement {
        Statement::Text(text) => !text.is_empty(),
        Statement::For(inner) => prints(&inner.body) || prints(&inner.otherwise),
        Statement::If(branches, otherwise) => {
            branches.iter().any(|(_, body)| prints(body)) || prints(otherwise)
        }
        Statement::With(_, body) => prints(body),
        Statement::Set(..) | Statement::SetBlock(..) => false,
        _ => true,
    })
}

/// Adds what the called macros read.
fn add_macros(reads: &mut Reads, of_macros: &BTreeMap<NameId, Option<Reads>>) -> Result<(), Unfit> {
    let mut done = BTreeSet::new();
    while let Some(name) = reads.macros.iter().find(|name| !done.contains(*name)).copied() {
        let of_macro = of_macros.get(&name).and_then(Option::as_ref).ok_or(Unfit)?;
        done.insert(name);
        // There, `loop` is not this loop's, and what it compares or sets is not known here.
        let more = !of_macro.of_loop.is_empty()
            || !of_macro.writes.is_empty()
            || !of_macro.comparisons.is_empty();
        if more {
            return Err(Unfit);
        }
        for (variable, one) in &of_macro.variables {
            let all = reads.variables.entry(*variable).or_default();
            all.whole |= one.whole;
            all.attributes.extend(one.attributes.iter().cloned());
            all.items.extend(one.items.iter().copied());
        }
        reads.macros.extend(of_macro.macros.iter().copied());
    }
    Ok(())
}

/// Walks a body.
struct Walker<'w> {
    world: &'w World<'w>,
    /// The message's name; `None` in a macro.
    target: Option<NameId>,
    /// The name `loop`, where the body speaks of it.
    loop_name: Option<NameId>,
    /// Names that the body gives values of its own.
    local: BTreeSet<NameId>,
    /// Names that cannot mean a variable around the loop: a macro's parameters.
    hidden: BTreeSet<NameId>,
    /// Loops inside the body that have been entered.
    depth: usize,
    reads: Reads,
}

impl<'w> Walker<'w> {
    fn new(world: &'w World<'w>, target: Option<NameId>, loop_name: Option<NameId>) -> Self {
        Self {
            world,
            target,
            loop_name,
            local: BTreeSet::new(),
            hidden: BTreeSet::new(),
            depth: 0,
            reads: Reads::default(),
        }
    }

    fn body(&mut self, body: &[Statement]) -> Result<(), Unfit> {
        self.names(body);
        self.statements(body)
    }

    /// Collects, ahead of the walk, what the body sets: comparisons must not rest on that.
    fn names(&mut self, body: &[Statement]) {
        for statement in body {
            match statement {
                Statement::Set(target, _) => self.target_names(target),
                Statement::SetBlock(target, _, body) => {
                    self.target_names(target);
                    self.names(body);
                }
                Statement::For(inner) => {
                    self.target_names(&inner.target);
                    self.names(&inner.body);
                    self.names(&inner.otherwise);
                }
                Statement::If(branches, otherwise) => {
                    branches.iter().for_each(|(_, body)| self.names(body));
                    self.names(otherwise);
                }
                Statement::With(values, body) => {
                    values.iter().for_each(|(target, _)| self.target_names(target));
                    self.names(body);
                }
                Statement::Filter(_, body) => self.names(body),
                _ => {}
            }
        }
    }

    fn target_names(&mut self, target: &Target) {
        match target {
            Target::Name(name) => drop(self.local.insert(*name)),
            Target::Attribute(name, attribute) => {
                self.reads.writes.insert((*name, attribute.clone()));
            }
            Target::Tuple(targets) => targets.iter().for_each(|target| self.target_names(target)),
        }
    }

    fn statements(&mut self, body: &[Statement]) -> Result<(), Unfit> {
        body.iter().try_for_each(|statement| self.statement(statement))
    }

    fn statement(&mut self, statement: &Statement) -> Result<(), Unfit> {
        match statement {
            Statement::Text(_) => Ok(()),
            Statement::Print(value) => self.expr(value),
            Statement::If(branches, otherwise) => {
                for (condition, body) in branches {
                    self.expr(condition)?;
                    self.statements(body)?;
                }
                self.statements(otherwise)
            }
            Statement::For(inner) => self.inner_loop(inner),
            Statement::Set(target, value) => {
                self.assigned(target)?;
                self.expr(value)
            }
            Statement::SetBlock(target, calls, body) => {
                self.assigned(target)?;
                self.calls(calls)?;
                self.statements(body)
            }
            Statement::With(values, body) => {
                values.iter().try_for_each(|(_, value)| self.expr(value))?;
                self.statements(body)
            }
            Statement::Filter(calls, body) => {
                self.calls(calls)?;
                self.statements(body)
            }
            // Both end or skip turns only of a loop inside the body; skipping the rest of a turn of this
            // one is no different from its end.
            Statement::Break if self.depth == 0 => Err(Unfit),
            Statement::Break | Statement::Continue => Ok(()),
            Statement::Macro(..) | Statement::Call(..) => Err(Unfit),
        }
    }

    fn inner_loop(&mut self, inner: &For) -> Result<(), Unfit> {
        if inner.recursive {
            return Err(Unfit);
        }
        self.expr(&inner.over)?;
        // In its condition, `loop` is still the one around it.
        if let Some(test) = &inner.test {
            self.expr(test)?;
        }
        self.depth += 1;
        self.statements(&inner.body)?;
        self.depth -= 1;
        self.statements(&inner.otherwise)
    }

    fn assigned(&self, target: &Target) -> Result<(), Unfit> {
        match target {
            Target::Name(name) if Some(*name) == self.loop_name => Err(Unfit),
            Target::Attribute(name, _) if Some(*name) == self.target => Err(Unfit),
            Target::Name(_) | Target::Attribute(..) => Ok(()),
            Target::Tuple(targets) => targets.iter().try_for_each(|target| self.assigned(target)),
        }
    }

    fn calls(&mut self, calls: &[Call]) -> Result<(), Unfit> {
        calls.iter().try_for_each(|call| self.arguments(&call.arguments))
    }

    fn arguments(&mut self, arguments: &Arguments) -> Result<(), Unfit> {
        self.exprs(&arguments.list)?;
        arguments.named.iter().try_for_each(|(_, value)| self.expr(value))?;
        let more = [&arguments.more, &arguments.more_named];
        more.into_iter().flatten().try_for_each(|value| self.expr(value))
    }

    fn exprs(&mut self, all: &[Expression]) -> Result<(), Unfit> {
        all.iter().try_for_each(|one| self.expr(one))
    }

    fn expr(&mut self, expr: &Expression) -> Result<(), Unfit> {
        match expr {
            Expression::Const(_) => Ok(()),
            Expression::Name(name) => self.variable(*name),
            Expression::List(items) | Expression::Tuple(items) | Expression::Concat(items) => {
                self.exprs(items)
            }
            Expression::Dict(pairs) => pairs.iter().try_for_each(|(key, value)| {
                self.expr(key)?;
                self.expr(value)
            }),
            Expression::Attribute(of, name) => self.attribute(of, name),
            Expression::Item(of, at) => self.item(of, at),
            Expression::Slice(of, parts) => {
                self.expr(of)?;
                parts.iter().flatten().try_for_each(|part| self.expr(part))
            }
            Expression::Call(called, arguments) => {
                self.called(called)?;
                self.arguments(arguments)
            }
            Expression::Filter(of, call) | Expression::Test(of, call) => {
                self.expr(of)?;
                self.arguments(&call.arguments)
            }
            Expression::Not(of) | Expression::Sign(_, of) => self.expr(of),
            Expression::Binary(_, sides) | Expression::And(sides) | Expression::Or(sides) => {
                self.expr(&sides.0)?;
                self.expr(&sides.1)
            }
            Expression::Compare(first, rest) => {
                if let [(how, second)] = rest.as_slice()
                    && let Some(comparison) = self.comparison(first, *how, second)
                {
                    for name in comparison.0.variables().chain(comparison.2.variables()) {
                        self.reads.variables.entry(name).or_default();
                    }
                    self.reads.comparisons.push(comparison);
                    return Ok(());
                }
                self.expr(first)?;
                rest.iter().try_for_each(|(_, other)| self.expr(other))
            }
            Expression::Choice(parts) => {
                self.expr(&parts.0)?;
                self.expr(&parts.1)?;
                parts.2.as_ref().map_or(Ok(()), |otherwise| self.expr(otherwise))
            }
        }
    }

    fn called(&mut self, called: &Expression) -> Result<(), Unfit> {
        match called {
            Expression::Name(name) if self.world.macros.contains(name) => {
                self.reads.macros.insert(*name);
                Ok(())
            }
            // Whatever a macro was given.
            Expression::Name(name) if self.hidden.contains(name) => Err(Unfit),
            Expression::Name(name) => {
                // Those give the same for the same arguments. The clock does not, and joiners remember.
                let global = self.world.globals.get(*name as usize).copied().flatten();
                let pure = [Global::Range, Global::Dict, Global::Namespace, Global::RaiseException];
                match global {
                    Some(global) if pure.contains(&global) => self.variable(*name),
                    _ => Err(Unfit),
                }
            }
            // A method sees all of its object.
            Expression::Attribute(of, _) => match &**of {
                Expression::Name(name) if self.is_own_loop(*name) => Err(Unfit),
                of => self.expr(of),
            },
            // A function that an expression gives could be any.
            _ => Err(Unfit),
        }
    }

    fn is_own_loop(&self, name: NameId) -> bool {
        Some(name) == self.loop_name && self.depth == 0
    }

    fn is_outer(&self, name: NameId) -> bool {
        Some(name) != self.target && !self.hidden.contains(&name) && Some(name) != self.loop_name
    }

    fn variable(&mut self, name: NameId) -> Result<(), Unfit> {
        if self.is_own_loop(name) {
            return Err(Unfit);
        }
        if self.world.macros.contains(&name) {
            // Called is one thing; handed on, it could be called anywhere.
            return Err(Unfit);
        }
        if self.is_outer(name) {
            self.reads.variables.entry(name).or_default().whole = true;
        }
        Ok(())
    }

    fn attribute(&mut self, of: &Expression, name: &Arc<str>) -> Result<(), Unfit> {
        let Expression::Name(of) = of else { return self.expr(of) };
        if self.is_own_loop(*of) {
            let read = match &**name {
                "first" => LoopRead::First,
                "last" => LoopRead::Last,
                "previtem" => LoopRead::Previous,
                "nextitem" => LoopRead::Next,
                name => LoopRead::Number(LoopNumber::of(name).ok_or(Unfit)?),
            };
            self.reads.of_loop.insert(read);
        } else if self.world.macros.contains(of) {
            return Err(Unfit);
        } else if self.is_outer(*of) {
            let used = self.reads.variables.entry(*of).or_default();
            used.attributes.insert(name.clone());
        }
        Ok(())
    }

    fn item(&mut self, of: &Expression, at: &Expression) -> Result<(), Unfit> {
        if let Expression::Name(name) = of
            && !self.is_own_loop(*name)
        {
            if let Expression::Const(Value::Str(key)) = at {
                return self.attribute(of, key);
            }
            // Of the body's own values the place in the loop picks one, so it is read like any number.
            if self.is_outer(*name)
                && !self.local.contains(name)
                && let Some(place) = self.place(at)
            {
                self.reads.variables.entry(*name).or_default().items.insert(place);
                return Ok(());
            }
        }
        self.expr(of)?;
        self.expr(at)
    }

    /// `3`, `-1`, `loop.index0`, `loop.index0 - 1`, `loop.index + 1`.
    fn place(&self, at: &Expression) -> Option<Place> {
        let offset = |term: &Term| -> Option<i128> {
            match term {
                Term::Loop(LoopNumber::Index0) => Some(0),
                Term::Loop(LoopNumber::Index) => Some(1),
                _ => None,
            }
        };
        match self.term(at)? {
            Term::Number(number) => Some(Place::At(number)),
            Term::Sum(left, right) => match (&*left, &*right) {
                (of, Term::Number(by)) | (Term::Number(by), of) => {
                    offset(of)?.checked_add(*by).map(Place::Beside)
                }
                _ => None,
            },
            Term::Difference(left, right) => match &*right {
                Term::Number(by) => offset(&left)?.checked_sub(*by).map(Place::Beside),
                _ => None,
            },
            term => offset(&term).map(Place::Beside),
        }
    }

    fn comparison(
        &self,
        left: &Expression,
        how: Comparison,
        right: &Expression,
    ) -> Option<(Term, Comparison, Term)> {
        if matches!(how, Comparison::In | Comparison::NotIn) {
            return None;
        }
        let (left, right) = (self.term(left)?, self.term(right)?);
        // Without a number of the loop's or a length it says nothing that the plain values do not.
        (left.changes() || right.changes()).then_some((left, how, right))
    }

    fn term(&self, expr: &Expression) -> Option<Term> {
        let steady = |name: NameId| self.is_outer(name) && !self.local.contains(&name);
        match expr {
            Expression::Const(Value::Int(number)) => Some(Term::Number(*number)),
            Expression::Sign(true, of) => match self.term(of)? {
                Term::Number(number) => number.checked_neg().map(Term::Number),
                _ => None,
            },
            Expression::Name(name) => steady(*name).then_some(Term::Variable(*name)),
            Expression::Attribute(of, name) => {
                let Expression::Name(of) = &**of else { return None };
                if self.is_own_loop(*of) {
                    return LoopNumber::of(name).map(Term::Loop);
                }
                // A namespace may have two names.
                let written = self.reads.writes.iter().any(|(_, attribute)| attribute == name);
                (steady(*of) && !written).then(|| Term::Attribute(*of, name.clone()))
            }
            Expression::Filter(of, call) if matches!(call.name.as_str(), "length" | "count") => {
                match &**of {
                    Expression::Name(name) if steady(*name) => Some(Term::Length(*name)),
                    _ => None,
                }
            }
            Expression::Binary(op @ (Operator::Add | Operator::Sub), sides) => {
                let left = Box::new(self.term(&sides.0)?);
                let right = Box::new(self.term(&sides.1)?);
                Some(match op {
                    Operator::Add => Term::Sum(left, right),
                    _ => Term::Difference(left, right),
                })
            }
            _ => None,
        }
    }
}

// === impl Term ===

impl Term {
    /// Whether it changes from turn to turn or from request to request without any message changing.
    fn changes(&self) -> bool {
        match self {
            Self::Loop(_) | Self::Length(_) => true,
            Self::Sum(left, right) | Self::Difference(left, right) => {
                left.changes() || right.changes()
            }
            Self::Number(_) | Self::Variable(_) | Self::Attribute(..) => false,
        }
    }

    fn variables(&self) -> Box<dyn Iterator<Item = NameId> + '_> {
        match self {
            Self::Variable(name) | Self::Attribute(name, _) | Self::Length(name) => {
                Box::new(std::iter::once(*name))
            }
            Self::Sum(left, right) | Self::Difference(left, right) => {
                Box::new(left.variables().chain(right.variables()))
            }
            Self::Number(_) | Self::Loop(_) => Box::new(std::iter::empty()),
        }
    }
}

impl LoopNumber {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "index0" => Self::Index0,
            "index" => Self::Index,
            "revindex0" => Self::RevIndex0,
            "revindex" => Self::RevIndex,
            "length" => Self::Length,
            _ => return None,
        })
    }

    /// The number at one turn of so many.
    pub(super) fn at(self, at: usize, length: usize) -> Option<i128> {
        let number = match self {
            Self::Index0 => at,
            Self::Index => at + 1,
            Self::RevIndex0 => length.checked_sub(at + 1)?,
            Self::RevIndex => length.checked_sub(at)?,
            Self::Length => length,
        };
        Some(number as i128)
    }
}
