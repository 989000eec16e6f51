//! What operators stand between: names, literals, and what follows them: `.`, `[]` and `()`.

use super::{
    ast::{Arguments, Expression},
    lexer::Token,
    parser::{Parsed, Parser},
    value::Value,
};

impl Parser {
    pub(super) fn primary(&mut self) -> Parsed<Expression> {
        match self.next() {
            Some(Token::Name(name)) => Ok(match name.as_str() {
                "true" | "True" => Expression::Const(Value::Bool(true)),
                "false" | "False" => Expression::Const(Value::Bool(false)),
                "none" | "None" => Expression::Const(Value::None),
                _ => {
                    let number = self.number_of(&name);
                    self.loads.push(number);
                    Expression::Name(number)
                }
            }),
            Some(Token::Text(mut text)) => {
                while let Some(Token::Text(more)) = self.peek() {
                    text.push_str(more);
                    self.at += 1;
                }
                Ok(Expression::Const(text.into()))
            }
            Some(Token::Int(number)) => Ok(Expression::Const(Value::Int(number))),
            Some(Token::Float(number)) => Ok(Expression::Const(Value::Float(number))),
            Some(Token::Sign("(")) => {
                if self.takes(")") {
                    return Ok(Expression::Tuple(Vec::new()));
                }
                let inner = self.deeper(|parser| parser.tuple(true, &[]))?;
                self.expect(&Token::Sign(")"))?;
                Ok(inner)
            }
            Some(Token::Sign("[")) => self.list("]").map(Expression::List),
            Some(Token::Sign("{")) => self.dict(),
            _ => {
                self.at -= 1;
                Err(self.unexpected("an expression"))
            }
        }
    }

    fn list(&mut self, end: &'static str) -> Parsed<Vec<Expression>> {
        let mut items = Vec::new();
        while !self.takes(end) {
            if !items.is_empty() {
                self.expect(&Token::Sign(","))?;
                if self.takes(end) {
                    break;
                }
            }
            items.push(self.expression()?);
        }
        Ok(items)
    }

    fn dict(&mut self) -> Parsed<Expression> {
        let mut pairs = Vec::new();
        while !self.takes("}") {
            if !pairs.is_empty() {
                self.expect(&Token::Sign(","))?;
                if self.takes("}") {
                    break;
                }
            }
            let key = self.expression()?;
            self.expect(&Token::Sign(":"))?;
            pairs.push((key, self.expression()?));
        }
        Ok(Expression::Dict(pairs))
    }

    pub(super) fn postfix(&mut self, mut node: Expression) -> Parsed<Expression> {
        let mut links = 0;
        loop {
            self.link(&mut links)?;
            if self.takes(".") {
                node = match self.next() {
                    Some(Token::Name(name)) => Expression::Attribute(Box::new(node), name.into()),
                    Some(Token::Int(at)) => Expression::Item(
                        Box::new(node),
                        Box::new(Expression::Const(Value::Int(at))),
                    ),
                    _ => return Err("expected name or number behind a dot".into()),
                };
            } else if self.takes("[") {
                node = self.subscript(node)?;
            } else if self.sees("(") {
                let arguments = self.arguments()?;
                node = Expression::Call(Box::new(node), Box::new(arguments));
            } else {
                return Ok(node);
            }
        }
    }

    fn subscript(&mut self, node: Expression) -> Parsed<Expression> {
        let mut parts: [Option<Expression>; 3] = [None, None, None];
        let mut is_slice = false;
        for (at, part) in parts.iter_mut().enumerate() {
            if at > 0 {
                if !self.takes(":") {
                    break;
                }
                is_slice = true;
            }
            if !self.sees(":") && !self.sees("]") {
                *part = Some(self.expression()?);
            }
        }
        if self.sees(",") {
            return Err("indexing with several indices is not known".into());
        }
        self.expect(&Token::Sign("]"))?;
        match parts {
            parts if is_slice => Ok(Expression::Slice(Box::new(node), Box::new(parts))),
            [Some(key), ..] => Ok(Expression::Item(Box::new(node), Box::new(key))),
            _ => Err("an index is missing".into()),
        }
    }

    pub(super) fn arguments(&mut self) -> Parsed<Arguments> {
        self.expect(&Token::Sign("("))?;
        let mut found = Arguments::default();
        let mut first = true;
        let wrong = || "invalid syntax for function call expression".to_owned();
        while !self.takes(")") {
            if !first {
                self.expect(&Token::Sign(","))?;
                if self.takes(")") {
                    break;
                }
            }
            first = false;
            if self.takes("*") {
                if found.more.is_some() || found.more_named.is_some() {
                    return Err(wrong());
                }
                found.more = Some(self.expression()?);
            } else if self.takes("**") {
                if found.more_named.is_some() {
                    return Err(wrong());
                }
                found.more_named = Some(self.expression()?);
            } else if matches!(self.peek(), Some(Token::Name(_))) && self.followed_by("=") {
                let name = self.word()?;
                self.at += 1;
                if found.more_named.is_some()
                    || found.named.iter().any(|(known, _)| **known == name)
                {
                    return Err(wrong());
                }
                found.named.push((name.into(), self.expression()?));
            } else {
                if found.more.is_some() || found.more_named.is_some() || !found.named.is_empty() {
                    return Err(wrong());
                }
                found.list.push(self.expression()?);
            }
        }
        Ok(found)
    }
}
