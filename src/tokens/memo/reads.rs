//! What the body of a template's loop reads and writes, found in its syntax tree.
//!
//! The body's output is a function of these reads. So when all of them have the values of an earlier turn,
//! the output is that turn's, and need not be rendered again. Whatever is not understood here makes the
//! whole loop unfit, which costs time and nothing else.

use minijinja::machinery::ast::{BinOpKind, CallArg, CompareOpKind, Expr, Stmt, UnaryOpKind};
use std::collections::{BTreeMap, BTreeSet};

/// A template does something that cannot be followed.
#[derive(Debug)]
pub(super) struct Unfit;

/// How one variable of the template around the loop is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Use {
    /// All of it.
    pub(super) whole: bool,
    /// These attributes.
    pub(super) attributes: BTreeSet<String>,
    /// Items of a list at these places.
    pub(super) items: BTreeSet<Place>,
}

/// A place in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// Counted from the beginning, or below zero from the end.
    At(i64),
    /// So far from the turn's own `loop.index0`.
    Beside(i64),
}

/// A term of a comparison that the loop itself can work out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Term {
    Number(i64),
    /// `loop.index0` and its kin, as attribute names.
    Loop(LoopNumber),
    /// A variable around the loop.
    Variable(String),
    /// An attribute of one.
    Attribute(String, String),
    /// The length of one.
    Length(String),
    Sum(Box<Term>, Box<Term>),
    Difference(Box<Term>, Box<Term>),
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

/// A comparison of numbers: only its outcome matters to the turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Comparison {
    pub(super) left: Term,
    pub(super) how: Order,
    pub(super) right: Term,
}

/// How two numbers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
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
pub(in crate::tokens) struct Reads {
    pub(super) variables: BTreeMap<String, Use>,
    pub(super) of_loop: BTreeSet<LoopRead>,
    pub(super) comparisons: Vec<Comparison>,
    /// Attributes of namespaces that it sets.
    pub(in crate::tokens) writes: BTreeSet<(String, String)>,
    /// Macros that it calls.
    pub(super) macros: BTreeSet<String>,
}

/// Functions that give the same for the same arguments.
const PURE: [&str; 6] = ["raise_exception", "range", "dict", "namespace", "debug", "fromjson"];

/// Walks a body.
pub(super) struct Walker<'w> {
    /// The message's name; `None` in a macro.
    pub(super) target: Option<&'w str>,
    /// Names of the template's macros.
    pub(super) macros: &'w BTreeSet<String>,
    /// Names that the body gives values of its own.
    local: BTreeSet<String>,
    /// Names that cannot mean a variable around the loop: a macro's parameters.
    pub(super) hidden: BTreeSet<String>,
    /// Loops inside the body that have been entered.
    depth: usize,
    pub(super) reads: Reads,
}

impl<'w> Walker<'w> {
    pub(super) fn new(target: Option<&'w str>, macros: &'w BTreeSet<String>) -> Self {
        Self {
            target,
            macros,
            local: BTreeSet::new(),
            hidden: BTreeSet::new(),
            depth: 0,
            reads: Reads::default(),
        }
    }

    /// Walks all statements of a body.
    pub(super) fn body(&mut self, body: &[Stmt<'_>]) -> Result<(), Unfit> {
        self.names(body);
        self.statements(body)
    }

    /// Collects, ahead of the walk, what the body sets: comparisons must not rest on that.
    fn names(&mut self, body: &[Stmt<'_>]) {
        for statement in body {
            match statement {
                Stmt::Set(set) => self.target_names(&set.target),
                Stmt::SetBlock(set) => {
                    self.target_names(&set.target);
                    self.names(&set.body);
                }
                Stmt::ForLoop(inner) => {
                    self.target_names(&inner.target);
                    self.names(&inner.body);
                    self.names(&inner.else_body);
                }
                Stmt::IfCond(choice) => {
                    self.names(&choice.true_body);
                    self.names(&choice.false_body);
                }
                Stmt::WithBlock(block) => {
                    for (target, _) in &block.assignments {
                        self.target_names(target);
                    }
                    self.names(&block.body);
                }
                Stmt::FilterBlock(block) => self.names(&block.body),
                Stmt::Macro(inner) => {
                    self.local.insert(inner.name.to_owned());
                    inner.args.iter().for_each(|arg| self.target_names(arg));
                    self.names(&inner.body);
                }
                Stmt::CallBlock(block) => {
                    block.macro_decl.args.iter().for_each(|arg| self.target_names(arg));
                    self.names(&block.macro_decl.body);
                }
                _ => {}
            }
        }
    }

    fn target_names(&mut self, target: &Expr<'_>) {
        match target {
            Expr::Var(var) => drop(self.local.insert(var.id.to_owned())),
            Expr::Tuple(list) => list.items.iter().for_each(|item| self.target_names(item)),
            Expr::List(list) => list.items.iter().for_each(|item| self.target_names(item)),
            Expr::GetAttr(attribute) => {
                if let Expr::Var(var) = &attribute.expr {
                    self.reads.writes.insert((var.id.to_owned(), attribute.name.to_owned()));
                }
            }
            _ => {}
        }
    }

    fn statements(&mut self, body: &[Stmt<'_>]) -> Result<(), Unfit> {
        body.iter().try_for_each(|statement| self.statement(statement))
    }

    fn statement(&mut self, statement: &Stmt<'_>) -> Result<(), Unfit> {
        match statement {
            Stmt::EmitRaw(_) => Ok(()),
            Stmt::EmitExpr(emit) => self.expr(&emit.expr),
            Stmt::ForLoop(inner) => {
                if inner.recursive {
                    return Err(Unfit);
                }
                self.expr(&inner.iter)?;
                self.depth += 1;
                if let Some(filter) = &inner.filter_expr {
                    self.expr(filter)?;
                }
                self.statements(&inner.body)?;
                self.depth -= 1;
                self.statements(&inner.else_body)
            }
            Stmt::IfCond(choice) => {
                self.expr(&choice.expr)?;
                self.statements(&choice.true_body)?;
                self.statements(&choice.false_body)
            }
            Stmt::WithBlock(block) => {
                for (_, value) in &block.assignments {
                    self.expr(value)?;
                }
                self.statements(&block.body)
            }
            Stmt::Set(set) => {
                self.assigned(&set.target)?;
                self.expr(&set.expr)
            }
            Stmt::SetBlock(set) => {
                self.assigned(&set.target)?;
                if let Some(filter) = &set.filter {
                    self.expr(filter)?;
                }
                self.statements(&set.body)
            }
            Stmt::FilterBlock(block) => {
                self.expr(&block.filter)?;
                self.statements(&block.body)
            }
            // Both end or skip turns only of a loop inside the body.
            Stmt::Continue(_) | Stmt::Break(_) if self.depth > 0 => Ok(()),
            _ => Err(Unfit),
        }
    }

    fn assigned(&mut self, target: &Expr<'_>) -> Result<(), Unfit> {
        match target {
            Expr::Var(var) if var.id != "loop" => Ok(()),
            Expr::Tuple(list) => list.items.iter().try_for_each(|item| self.assigned(item)),
            Expr::GetAttr(attribute) => match &attribute.expr {
                // A namespace of the body's own is no business of ours, and one around it is noted already.
                Expr::Var(var) if Some(var.id) != self.target && var.id != "loop" => Ok(()),
                _ => Err(Unfit),
            },
            _ => Err(Unfit),
        }
    }

    fn args(&mut self, args: &[CallArg<'_>]) -> Result<(), Unfit> {
        args.iter().try_for_each(|arg| match arg {
            CallArg::Pos(value)
            | CallArg::Kwarg(_, value)
            | CallArg::PosSplat(value)
            | CallArg::KwargSplat(value) => self.expr(value),
        })
    }

    fn exprs(&mut self, all: &[Expr<'_>]) -> Result<(), Unfit> {
        all.iter().try_for_each(|one| self.expr(one))
    }

    fn maybe(&mut self, one: Option<&Expr<'_>>) -> Result<(), Unfit> {
        one.map_or(Ok(()), |one| self.expr(one))
    }

    fn expr(&mut self, expr: &Expr<'_>) -> Result<(), Unfit> {
        match expr {
            Expr::Const(_) => Ok(()),
            Expr::Var(var) => self.variable(var.id),
            Expr::UnaryOp(op) => self.expr(&op.expr),
            Expr::BinOp(op) => {
                if let Some(comparison) = self.comparison(&op.op, &op.left, &op.right) {
                    self.compared(comparison);
                    return Ok(());
                }
                self.expr(&op.left)?;
                self.expr(&op.right)
            }
            Expr::Compare(chain) => {
                // `a < b < c` is rare; its parts are simply read.
                self.expr(&chain.expr)?;
                chain.ops.iter().try_for_each(|op| match op.op {
                    CompareOpKind::In | CompareOpKind::NotIn => self.expr(&op.expr),
                    _ => self.expr(&op.expr),
                })
            }
            Expr::IfExpr(choice) => {
                self.expr(&choice.test_expr)?;
                self.expr(&choice.true_expr)?;
                self.maybe(choice.false_expr.as_ref())
            }
            Expr::Filter(filter) => {
                self.maybe(filter.expr.as_ref())?;
                self.args(&filter.args)
            }
            Expr::Test(test) => {
                self.expr(&test.expr)?;
                self.args(&test.args)
            }
            Expr::Slice(slice) => {
                self.expr(&slice.expr)?;
                [&slice.start, &slice.stop, &slice.step]
                    .into_iter()
                    .try_for_each(|edge| self.maybe(edge.as_ref()))
            }
            Expr::GetAttr(get) => self.attribute(&get.expr, get.name),
            Expr::GetItem(get) => self.item(&get.expr, &get.subscript_expr),
            Expr::Call(call) => {
                match &call.expr {
                    Expr::Var(var) => self.function(var.id)?,
                    // A method sees all of its object.
                    Expr::GetAttr(get) => match &get.expr {
                        Expr::Var(var) if var.id == "loop" && self.depth == 0 => return Err(Unfit),
                        inner => self.expr(inner)?,
                    },
                    other => self.expr(other)?,
                }
                self.args(&call.args)
            }
            Expr::List(list) => self.exprs(&list.items),
            Expr::Tuple(list) => self.exprs(&list.items),
            Expr::Map(map) => {
                self.exprs(&map.keys)?;
                self.exprs(&map.values)
            }
        }
    }

    fn function(&mut self, name: &str) -> Result<(), Unfit> {
        if self.macros.contains(name) {
            self.reads.macros.insert(name.to_owned());
            return Ok(());
        }
        if self.hidden.contains(name) || PURE.contains(&name) {
            return Ok(());
        }
        // The clock, counters with a memory, and what we do not know.
        Err(Unfit)
    }

    fn is_outer(&self, name: &str) -> bool {
        Some(name) != self.target && !self.hidden.contains(name)
    }

    fn used(&mut self, name: &str) -> &mut Use {
        self.reads.variables.entry(name.to_owned()).or_default()
    }

    fn variable(&mut self, name: &str) -> Result<(), Unfit> {
        if name == "loop" {
            // Inside a loop of the body it is that loop's own.
            return if self.depth > 0 { Ok(()) } else { Err(Unfit) };
        }
        if self.macros.contains(name) {
            self.reads.macros.insert(name.to_owned());
            return Ok(());
        }
        if self.is_outer(name) {
            self.used(name).whole = true;
        }
        Ok(())
    }

    fn attribute(&mut self, of: &Expr<'_>, name: &str) -> Result<(), Unfit> {
        let Expr::Var(var) = of else { return self.expr(of) };
        if var.id == "loop" && self.depth == 0 {
            let read = match name {
                "first" => LoopRead::First,
                "last" => LoopRead::Last,
                "previtem" => LoopRead::Previous,
                "nextitem" => LoopRead::Next,
                name => LoopRead::Number(LoopNumber::of(name).ok_or(Unfit)?),
            };
            self.reads.of_loop.insert(read);
            return Ok(());
        }
        if var.id != "loop" && self.is_outer(var.id) && !self.macros.contains(var.id) {
            self.used(var.id).attributes.insert(name.to_owned());
        }
        Ok(())
    }

    fn item(&mut self, of: &Expr<'_>, at: &Expr<'_>) -> Result<(), Unfit> {
        if let Expr::Var(var) = of
            && var.id != "loop"
        {
            if let Expr::Const(constant) = at
                && let Some(name) = constant.value.as_str()
            {
                return self.attribute(of, name);
            }
            if let Some(place) = self.place(at) {
                if self.is_outer(var.id) {
                    self.used(var.id).items.insert(place);
                }
                return Ok(());
            }
        }
        self.expr(of)?;
        self.expr(at)
    }

    /// `3`, `-1`, `loop.index0`, `loop.index0 - 1`, `loop.index + 1`.
    fn place(&self, at: &Expr<'_>) -> Option<Place> {
        match self.term(at)? {
            Term::Number(number) => Some(Place::At(number)),
            Term::Loop(LoopNumber::Index0) => Some(Place::Beside(0)),
            Term::Loop(LoopNumber::Index) => Some(Place::Beside(1)),
            Term::Sum(left, right) => match (*left, *right) {
                (Term::Loop(LoopNumber::Index0), Term::Number(by))
                | (Term::Number(by), Term::Loop(LoopNumber::Index0)) => Some(Place::Beside(by)),
                (Term::Loop(LoopNumber::Index), Term::Number(by))
                | (Term::Number(by), Term::Loop(LoopNumber::Index)) => {
                    Some(Place::Beside(by.checked_add(1)?))
                }
                _ => None,
            },
            Term::Difference(left, right) => match (*left, *right) {
                (Term::Loop(LoopNumber::Index0), Term::Number(by)) => {
                    Some(Place::Beside(by.checked_neg()?))
                }
                (Term::Loop(LoopNumber::Index), Term::Number(by)) => {
                    Some(Place::Beside(1i64.checked_sub(by)?))
                }
                _ => None,
            },
            _ => None,
        }
    }

    fn comparison(&self, op: &BinOpKind, left: &Expr<'_>, right: &Expr<'_>) -> Option<Comparison> {
        let how = match op {
            BinOpKind::Eq => Order::Eq,
            BinOpKind::Ne => Order::Ne,
            BinOpKind::Lt => Order::Lt,
            BinOpKind::Lte => Order::Le,
            BinOpKind::Gt => Order::Gt,
            BinOpKind::Gte => Order::Ge,
            _ => return None,
        };
        let (left, right) = (self.term(left)?, self.term(right)?);
        // Without the loop's own numbers a comparison says nothing that the plain values do not.
        (left.has_loop() || right.has_loop() || left.has_length() || right.has_length())
            .then_some(Comparison { left, how, right })
    }

    /// Notes a comparison; its variables must be at hand, though not as part of the key.
    fn compared(&mut self, comparison: Comparison) {
        for name in comparison.left.variables().into_iter().chain(comparison.right.variables()) {
            self.used(&name);
        }
        self.reads.comparisons.push(comparison);
    }

    fn term(&self, expr: &Expr<'_>) -> Option<Term> {
        let steady =
            |name: &str| name != "loop" && self.is_outer(name) && !self.local.contains(name);
        match expr {
            Expr::Const(constant) => i64::try_from(constant.value.clone()).ok().map(Term::Number),
            Expr::UnaryOp(op) if matches!(op.op, UnaryOpKind::Neg) => match self.term(&op.expr)? {
                Term::Number(number) => number.checked_neg().map(Term::Number),
                _ => None,
            },
            Expr::Var(var) => steady(var.id).then(|| Term::Variable(var.id.to_owned())),
            Expr::GetAttr(get) => {
                let Expr::Var(var) = &get.expr else { return None };
                if var.id == "loop" && self.depth == 0 {
                    return LoopNumber::of(get.name).map(Term::Loop);
                }
                let written = self.reads.writes.contains(&(var.id.to_owned(), get.name.to_owned()));
                (steady(var.id) && !written)
                    .then(|| Term::Attribute(var.id.to_owned(), get.name.to_owned()))
            }
            Expr::Filter(filter) if matches!(filter.name, "length" | "count") => {
                match filter.expr.as_ref()? {
                    Expr::Var(var) if steady(var.id) => Some(Term::Length(var.id.to_owned())),
                    _ => None,
                }
            }
            Expr::BinOp(op) => {
                let both =
                    || Some((Box::new(self.term(&op.left)?), Box::new(self.term(&op.right)?)));
                match op.op {
                    BinOpKind::Add => both().map(|(left, right)| Term::Sum(left, right)),
                    BinOpKind::Sub => both().map(|(left, right)| Term::Difference(left, right)),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

// === impl Term ===

impl Term {
    fn any(&self, is: &impl Fn(&Self) -> bool) -> bool {
        match self {
            Self::Sum(left, right) | Self::Difference(left, right) => left.any(is) || right.any(is),
            one => is(one),
        }
    }

    fn has_loop(&self) -> bool {
        self.any(&|term| matches!(term, Self::Loop(_)))
    }

    fn has_length(&self) -> bool {
        self.any(&|term| matches!(term, Self::Length(_)))
    }

    /// Names of the variables in it.
    pub(super) fn variables(&self) -> Vec<String> {
        match self {
            Self::Variable(name) | Self::Attribute(name, _) | Self::Length(name) => {
                vec![name.clone()]
            }
            Self::Sum(left, right) | Self::Difference(left, right) => {
                let mut all = left.variables();
                all.extend(right.variables());
                all
            }
            Self::Number(_) | Self::Loop(_) => Vec::new(),
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
}
