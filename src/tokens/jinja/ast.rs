//! A template as the parser leaves it.

use super::{
    ops::{Comparison, Operator},
    reads::Reads,
    value::{Global, Value},
};
use std::sync::Arc;

/// A name, by its number in the template.
pub(super) type NameId = u32;

/// A whole template.
#[derive(Debug)]
pub(in crate::tokens) struct Program {
    pub(super) body: Vec<Statement>,
    pub(super) names: Names,
}

/// The names a template uses.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) texts: Vec<Arc<str>>,
    /// The functions that some of them are unless a variable hides them.
    pub(super) globals: Vec<Option<Global>>,
}

/// A statement.
#[derive(Debug)]
pub(super) enum Statement {
    Text(String),
    Print(Expression),
    If(Vec<(Expression, Vec<Statement>)>, Vec<Statement>),
    For(Box<For>),
    Set(Target, Expression),
    SetBlock(Target, Vec<Call>, Vec<Statement>),
    With(Vec<(Target, Expression)>, Vec<Statement>),
    Filter(Vec<Call>, Vec<Statement>),
    Macro(NameId, Box<Macro>),
    /// `{% call %}`: what is called, and the body that becomes its `caller`.
    Call(Box<Expression>, Box<Macro>),
    Break,
    Continue,
}

/// A loop.
#[derive(Debug)]
pub(super) struct For {
    pub(super) target: Target,
    pub(super) over: Expression,
    pub(super) test: Option<Expression>,
    pub(super) body: Vec<Statement>,
    pub(super) otherwise: Vec<Statement>,
    pub(super) recursive: bool,
    /// What a turn depends on, if turns can be remembered.
    pub(super) reads: Option<Box<Reads>>,
    /// Its number in the template.
    pub(super) number: u32,
    /// The number of the name `loop`, if the body speaks of it.
    pub(super) loop_name: Option<NameId>,
}

/// A macro, or the body of a call block.
#[derive(Debug)]
pub(super) struct Macro {
    pub(super) name: Arc<str>,
    pub(super) parameters: Vec<(NameId, Option<Expression>)>,
    pub(super) body: Vec<Statement>,
    /// The numbers of `caller`, `kwargs` and `varargs`, where the body speaks of them.
    pub(super) caller: Option<NameId>,
    pub(super) kwargs: Option<NameId>,
    pub(super) varargs: Option<NameId>,
}

/// What is assigned to.
#[derive(Debug)]
pub(super) enum Target {
    Name(NameId),
    Attribute(NameId, Arc<str>),
    Tuple(Vec<Target>),
}

/// Arguments of a call as they are written.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) list: Vec<Expression>,
    pub(super) named: Vec<(Arc<str>, Expression)>,
    pub(super) more: Option<Expression>,
    pub(super) more_named: Option<Expression>,
}

/// A filter or test by its name.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) name: String,
    pub(super) arguments: Arguments,
}

/// An expression.
#[derive(Debug)]
pub(super) enum Expression {
    Const(Value),
    Name(NameId),
    List(Vec<Expression>),
    Tuple(Vec<Expression>),
    Dict(Vec<(Expression, Expression)>),
    Attribute(Box<Expression>, Arc<str>),
    Item(Box<Expression>, Box<Expression>),
    Slice(Box<Expression>, Box<[Option<Expression>; 3]>),
    Call(Box<Expression>, Box<Arguments>),
    Filter(Box<Expression>, Box<Call>),
    Test(Box<Expression>, Box<Call>),
    Not(Box<Expression>),
    Sign(bool, Box<Expression>),
    Binary(Operator, Box<(Expression, Expression)>),
    Concat(Vec<Expression>),
    And(Box<(Expression, Expression)>),
    Or(Box<(Expression, Expression)>),
    Compare(Box<Expression>, Vec<(Comparison, Expression)>),
    /// Condition, then, otherwise.
    Choice(Box<(Expression, Expression, Option<Expression>)>),
}
