//! What expressions are worth.

use super::{
    Stop, access,
    args::Args,
    ast::{Arguments, Call, Expression},
    checks,
    machine::Machine,
    ops::{self, Comparison, Operator},
    value::{Dict, Value},
};
use std::sync::Arc;

impl<'t> Machine<'t> {
    /// The value of an expression, as seen from a scope.
    pub(super) fn evaluate(&mut self, node: &'t Expression, scope: usize) -> Result<Value, Stop> {
        self.spend(1)?;
        match node {
            Expression::Const(value) => Ok(value.clone()),
            Expression::Name(name) => Ok(self.look_up(scope, *name)),
            _ => self.deeper(|machine| machine.compound(node, scope)),
        }
    }

    /// Each kind has a function of its own, so that nesting takes little stack.
    fn compound(&mut self, node: &'t Expression, scope: usize) -> Result<Value, Stop> {
        match node {
            Expression::Const(value) => Ok(value.clone()),
            Expression::Name(name) => Ok(self.look_up(scope, *name)),
            Expression::Attribute(of, name) => self.attribute_of(of, name, scope),
            Expression::Item(of, key) => self.item(of, key, scope),
            Expression::Call(..) => self.call_with(node, None, scope),
            Expression::Filter(of, call) => {
                let value = self.evaluate(of, scope)?;
                self.filter(call, value, scope)
            }
            Expression::Test(of, call) => self.test(of, call, scope),
            Expression::Not(of) => Ok(Value::Bool(!self.evaluate(of, scope)?.is_true())),
            Expression::And(sides) => self.either(sides, false, scope),
            Expression::Or(sides) => self.either(sides, true, scope),
            Expression::Choice(parts) => self.choice(parts, scope),
            Expression::List(items) => Value::list(self.all(items, scope)?),
            Expression::Tuple(items) => Value::tuple(self.all(items, scope)?),
            Expression::Dict(pairs) => self.dict(pairs, scope),
            Expression::Slice(of, parts) => self.slice(of, parts, scope),
            Expression::Sign(negative, of) => {
                let value = self.evaluate(of, scope)?;
                ops::signed(*negative, &value)
            }
            Expression::Binary(op, sides) => self.binary(*op, sides, scope),
            Expression::Concat(parts) => self.concat(parts, scope),
            Expression::Compare(first, rest) => self.compare(first, rest, scope),
        }
    }

    fn attribute_of(
        &mut self,
        of: &'t Expression,
        name: &Arc<str>,
        scope: usize,
    ) -> Result<Value, Stop> {
        let of = self.evaluate(of, scope)?;
        self.attribute(&of, name)
    }

    fn test(&mut self, of: &'t Expression, call: &'t Call, scope: usize) -> Result<Value, Stop> {
        let value = self.evaluate(of, scope)?;
        let args = self.arguments(&call.arguments, scope)?;
        self.weigh(&value, &args)?;
        checks::check(&call.name, &value, args).map(Value::Bool)
    }

    /// `or` if the left side's truth ends it, else `and`.
    fn either(
        &mut self,
        sides: &'t (Expression, Expression),
        ends: bool,
        scope: usize,
    ) -> Result<Value, Stop> {
        let left = self.evaluate(&sides.0, scope)?;
        if left.is_true() == ends { Ok(left) } else { self.evaluate(&sides.1, scope) }
    }

    fn choice(
        &mut self,
        parts: &'t (Expression, Expression, Option<Expression>),
        scope: usize,
    ) -> Result<Value, Stop> {
        let (condition, then, otherwise) = parts;
        match (self.evaluate(condition, scope)?.is_true(), otherwise) {
            (true, _) => self.evaluate(then, scope),
            (false, Some(otherwise)) => self.evaluate(otherwise, scope),
            (false, None) => Ok(Value::Undefined),
        }
    }

    fn dict(&mut self, pairs: &'t [(Expression, Expression)], scope: usize) -> Result<Value, Stop> {
        let mut entries = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            entries.push((self.evaluate(key, scope)?, self.evaluate(value, scope)?));
        }
        Dict::collect(entries).map(Value::Dict)
    }

    fn slice(
        &mut self,
        of: &'t Expression,
        parts: &'t [Option<Expression>; 3],
        scope: usize,
    ) -> Result<Value, Stop> {
        let of = self.evaluate(of, scope)?;
        let mut bounds = [None; 3];
        for (bound, part) in bounds.iter_mut().zip(parts.iter()) {
            let value = part.as_ref().map(|part| self.evaluate(part, scope)).transpose()?;
            *bound = super::args::whole(value.as_ref())?;
        }
        self.spend(of.weight())?;
        access::slice(&of, bounds)
    }

    fn binary(
        &mut self,
        op: Operator,
        sides: &'t (Expression, Expression),
        scope: usize,
    ) -> Result<Value, Stop> {
        let left = self.evaluate(&sides.0, scope)?;
        let right = self.evaluate(&sides.1, scope)?;
        let made = ops::calculate(op, &left, &right)?;
        self.spend(made.weight())?;
        Ok(made)
    }

    fn concat(&mut self, parts: &'t [Expression], scope: usize) -> Result<Value, Stop> {
        let parts = self.all(parts, scope)?;
        let made = ops::concatenated(&parts)?;
        self.spend(made.weight())?;
        Ok(made)
    }

    fn compare(
        &mut self,
        first: &'t Expression,
        rest: &'t [(Comparison, Expression)],
        scope: usize,
    ) -> Result<Value, Stop> {
        let mut left = self.evaluate(first, scope)?;
        for (op, right) in rest {
            let right = self.evaluate(right, scope)?;
            self.spend(left.weight() + right.weight())?;
            if !ops::compare(*op, &left, &right)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    fn all(&mut self, items: &'t [Expression], scope: usize) -> Result<Vec<Value>, Stop> {
        items.iter().map(|item| self.evaluate(item, scope)).collect()
    }

    /// `of[key]`
    fn item(
        &mut self,
        of: &'t Expression,
        key: &'t Expression,
        scope: usize,
    ) -> Result<Value, Stop> {
        let of = self.evaluate(of, scope)?;
        let key = self.evaluate(key, scope)?;
        match (&of, key.as_str()) {
            (Value::Namespace(_) | Value::Loop(_), Some(name)) => {
                let name: Arc<str> = name.into();
                self.attribute(&of, &name)
            }
            (Value::Namespace(_), None) => Ok(Value::Undefined),
            _ => access::get_item(&of, &key),
        }
    }

    /// `of.name`
    pub(super) fn attribute(&mut self, of: &Value, name: &Arc<str>) -> Result<Value, Stop> {
        match of {
            Value::Namespace(at) => {
                let attributes = self.namespaces.get(*at).into_iter().flatten();
                let found = attributes.clone().find(|(known, _)| known == name);
                Ok(found.map_or(Value::Undefined, |(_, value)| value.clone()))
            }
            Value::Loop(at) => self.loop_attribute(*at, name),
            other => access::get_attribute(other, name),
        }
    }

    /// The arguments of a call.
    pub(super) fn arguments(&mut self, written: &'t Arguments, scope: usize) -> Result<Args, Stop> {
        let mut list = self.all(&written.list, scope)?;
        let mut named = Vec::with_capacity(written.named.len());
        for (name, value) in &written.named {
            named.push((name.clone(), self.evaluate(value, scope)?));
        }
        if let Some(more) = &written.more {
            let more = self.evaluate(more, scope)?;
            self.spend(more.weight())?;
            list.extend(access::items(&more)?.items.iter().cloned());
        }
        if let Some(more) = &written.more_named {
            let Value::Dict(dict) = self.evaluate(more, scope)? else {
                return Err(Stop::failed("argument after ** must be a mapping"));
            };
            self.spend(dict.entries.len() as u64)?;
            for (key, value) in &dict.entries {
                let name: Arc<str> = super::args::text(Some(key))?.into();
                if named.iter().any(|(known, _)| *known == name) {
                    return Err(Stop::failed(format!("several values for {name}")));
                }
                named.push((name, value.clone()));
            }
        }
        Ok(Args { list, named })
    }
}
