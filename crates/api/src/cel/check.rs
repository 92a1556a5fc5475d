//! What can be told of an expression before it runs: unknown names, operators on the wrong types, and its cost.
//!
//! Types are known where a schema gave them and [`Type::Dyn`] elsewhere; a check only refuses what certainly fails.
//! The estimate follows `cel-go/checker/cost.go`: sizes come from the schema, a comprehension multiplies.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube_cel::cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr, operators,
};
use regex::Regex;

use super::CompileError;
use super::authorizer;
use super::library::{self, Cost, Function, Style};
use crate::pattern;

/// The type of a value, as far as it is known.
#[derive(Clone, Debug)]
pub(crate) enum Type {
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    Time,
    Span,
    List(Arc<Shape>),
    Map(Arc<Shape>),
    Object(Arc<Fields>),
    /// Has methods and nothing else.
    Opaque(&'static str),
}

/// The fields of an object.
pub(crate) type Fields = BTreeMap<String, Shape>;

/// A type, and how large its values may become: characters, bytes, elements or keys.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) type_: Type,
    pub(crate) size: u64,
}

impl Shape {
    /// Anything. Its size is a guess: cost of untyped values is bounded when they are there.
    pub(crate) const DYNAMIC: Self = Self { type_: Type::Dyn, size: 100 };

    pub(crate) fn of(type_: Type) -> Self {
        Self { type_, size: 1 }
    }
}

impl Type {
    fn name(&self) -> String {
        match self {
            Self::Dyn => "dyn".to_owned(),
            Self::Null => "null".to_owned(),
            Self::Bool => "bool".to_owned(),
            Self::Int => "int".to_owned(),
            Self::Uint => "uint".to_owned(),
            Self::Double => "double".to_owned(),
            Self::Text => "string".to_owned(),
            Self::Bytes => "bytes".to_owned(),
            Self::Time => "timestamp".to_owned(),
            Self::Span => "duration".to_owned(),
            Self::List(element) => format!("list({})", element.type_.name()),
            Self::Map(value) => format!("map(string, {})", value.type_.name()),
            Self::Object(_) => "object".to_owned(),
            Self::Opaque(name) => (*name).to_owned(),
        }
    }

    fn is_number(&self) -> bool {
        matches!(self, Self::Int | Self::Uint | Self::Double)
    }

    /// Whether values of both types can be compared; only certain misfits are `false`.
    fn compares_with(&self, other: &Self) -> bool {
        use Type::{Bool, Bytes, Dyn, List, Map, Null, Object, Span, Text, Time};
        match (self, other) {
            (Dyn | Null, _) | (_, Dyn | Null) => true,
            (Bool, Bool) | (Text, Text) | (Bytes, Bytes) | (Time, Time) | (Span, Span) => true,
            (List(_), List(_)) | (Map(_) | Object(_), Map(_) | Object(_)) => true,
            (Self::Opaque(a), Self::Opaque(b)) => a == b,
            (a, b) => a.is_number() && b.is_number(),
        }
    }
}

/// Names of types, which are values too.
pub(super) const TYPES: [&str; 10] =
    ["int", "uint", "double", "bool", "string", "bytes", "list", "map", "null_type", "type"];

/// `google.protobuf.Timestamp` and `google.protobuf.Duration`, written as selections.
pub(super) fn qualified_type(select: &SelectExpr) -> Option<String> {
    let Expr::Select(package) = &select.operand.expr else { return None };
    let is_google = matches!(&package.operand.expr, Expr::Ident(name) if name == "google");
    let is_known = matches!(select.field.as_str(), "Timestamp" | "Duration");
    (is_google && is_known && package.field == "protobuf" && !select.test)
        .then(|| format!("google.protobuf.{}", select.field))
}

/// Comprehensions of two variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pairs {
    All,
    Exists,
    ExistsOne,
    TransformList,
    TransformMap,
    TransformMapEntry,
}

/// Macros of `cel-go` that the parser leaves as calls.
pub(super) enum Form<'a> {
    Bind {
        name: &'a str,
        value: &'a IdedExpr,
        body: &'a IdedExpr,
    },
    OptionalMap {
        operand: &'a IdedExpr,
        name: &'a str,
        body: &'a IdedExpr,
        is_flat: bool,
    },
    SortBy {
        operand: &'a IdedExpr,
        name: &'a str,
        key: &'a IdedExpr,
    },
    Pairs {
        kind: Pairs,
        operand: &'a IdedExpr,
        names: (&'a str, &'a str),
        condition: Option<&'a IdedExpr>,
        body: &'a IdedExpr,
    },
}

/// Recognises such a macro.
pub(super) fn form(call: &CallExpr) -> Option<Form<'_>> {
    let operand = call.target.as_deref()?;
    let ident = |tree: &'_ IdedExpr| matches!(tree.expr, Expr::Ident(_));
    fn name(tree: &IdedExpr) -> &str {
        if let Expr::Ident(name) = &tree.expr { name } else { "" }
    }
    match (call.func_name.as_str(), call.args.as_slice()) {
        ("bind", [variable, value, body]) if name(operand) == "cel" && ident(variable) => {
            Some(Form::Bind { name: name(variable), value, body })
        }
        (function @ ("optMap" | "optFlatMap"), [variable, body]) if ident(variable) => {
            Some(Form::OptionalMap { operand, name: name(variable), body, is_flat: function == "optFlatMap" })
        }
        ("sortBy", [variable, key]) if ident(variable) => {
            Some(Form::SortBy { operand, name: name(variable), key })
        }
        (function, [first, second, rest @ .., body]) if ident(first) && ident(second) && rest.len() <= 1 => {
            let kind = match (function, rest.is_empty()) {
                ("all", true) => Pairs::All,
                ("exists", true) => Pairs::Exists,
                ("existsOne" | "exists_one", true) => Pairs::ExistsOne,
                ("transformList", _) => Pairs::TransformList,
                ("transformMap", _) => Pairs::TransformMap,
                ("transformMapEntry", _) => Pairs::TransformMapEntry,
                _ => return None,
            };
            let names = (name(first), name(second));
            Some(Form::Pairs { kind, operand, names, condition: rest.first(), body })
        }
        _ => None,
    }
}

/// The function a call means, and its target. A name before the dot is a prefix unless it is a variable.
pub(super) fn resolve(
    call: &CallExpr,
    is_variable: impl Fn(&str) -> bool,
) -> Option<(&'static Function, Option<&IdedExpr>)> {
    let Some(target) = call.target.as_deref() else {
        return library::find(&call.func_name, Style::Global).map(|function| (function, None));
    };
    if let Expr::Ident(prefix) = &target.expr
        && let Some(function) = library::find(&format!("{prefix}.{}", call.func_name), Style::Qualified)
        && !is_variable(prefix)
    {
        return Some((function, None));
    }
    library::find(&call.func_name, Style::Method).map(|function| (function, Some(target)))
}

/// Whether a name stands anywhere in a tree.
pub(super) fn uses(tree: &IdedExpr, variable: &str) -> bool {
    any(tree, &|tree| is_name(tree, variable))
}

/// Whether `variable.field` or `variable.?field` stands anywhere in a tree.
pub(super) fn selects(tree: &IdedExpr, variable: &str, field: &str) -> bool {
    any(tree, &|tree| match &tree.expr {
        Expr::Select(select) => select.field == field && is_name(&select.operand, variable),
        Expr::Call(call) => match (call.func_name.as_str(), call.args.as_slice()) {
            (operators::OPT_SELECT, [operand, name]) => {
                let is_field =
                    matches!(&name.expr, Expr::Literal(LiteralValue::String(name)) if name.inner() == field);
                is_field && is_name(operand, variable)
            }
            _ => false,
        },
        _ => false,
    })
}

/// Whether a tree is one of the variables, or a field or element somewhere in it.
pub(super) fn is_part_of(tree: &IdedExpr, variables: &[&str]) -> bool {
    match &tree.expr {
        Expr::Ident(name) => variables.contains(&name.as_str()),
        Expr::Select(select) => !select.test && is_part_of(&select.operand, variables),
        Expr::Call(call) => match (call.func_name.as_str(), call.args.as_slice()) {
            (operators::INDEX, [operand, _]) => is_part_of(operand, variables),
            _ => false,
        },
        _ => false,
    }
}

fn is_name(tree: &IdedExpr, variable: &str) -> bool {
    matches!(&tree.expr, Expr::Ident(name) if name == variable)
}

/// Whether something holds anywhere in a tree.
fn any(tree: &IdedExpr, holds: &dyn Fn(&IdedExpr) -> bool) -> bool {
    let below = |tree: &IdedExpr| any(tree, holds);
    holds(tree)
        || match &tree.expr {
            Expr::Select(select) => below(&select.operand),
            Expr::Call(call) => call.target.iter().any(|target| below(target)) || call.args.iter().any(below),
            Expr::List(list) => list.elements.iter().any(below),
            Expr::Map(map) => map.entries.iter().any(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => below(&entry.key) || below(&entry.value),
                EntryExpr::StructField(field) => below(&field.value),
            }),
            Expr::Comprehension(c) => {
                [&c.iter_range, &c.accu_init, &c.loop_cond, &c.loop_step, &c.result].into_iter().any(below)
            }
            Expr::Ident(_) | Expr::Struct(_) | Expr::Literal(_) | Expr::Unspecified => false,
        }
}

/// What was found.
pub(super) struct Checked {
    pub(super) shape: Shape,
    pub(super) cost: u64,
    pub(super) patterns: BTreeMap<String, Regex>,
}

/// Checks a tree.
pub(super) fn check(
    text: &str,
    tree: &IdedExpr,
    variables: &[(&str, Shape)],
) -> Result<Checked, CompileError> {
    let scope = variables.iter().map(|(name, shape)| ((*name).to_owned(), shape.clone())).collect();
    let mut checker = Checker { text, scope, patterns: BTreeMap::new() };
    let found = checker.tree(tree)?;
    Ok(Checked { shape: found.shape, cost: found.cost, patterns: checker.patterns })
}

struct Checker<'a> {
    text: &'a str,
    scope: Vec<(String, Shape)>,
    patterns: BTreeMap<String, Regex>,
}

struct Found {
    shape: Shape,
    cost: u64,
}

impl Found {
    fn new(type_: Type, cost: u64) -> Self {
        Self { shape: Shape::of(type_), cost }
    }
}

type Answer = Result<Found, CompileError>;

impl Checker<'_> {
    fn tree(&mut self, tree: &IdedExpr) -> Answer {
        match &tree.expr {
            Expr::Literal(literal) => Ok(Found { shape: literal_shape(literal), cost: 0 }),
            Expr::Ident(name) => self.ident(name),
            Expr::Select(select) => self.select(select),
            Expr::Call(call) => self.call(call),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::List(list) => {
                let (mut cost, mut element) = (10_u64, None);
                for item in &list.elements {
                    let found = self.tree(item)?;
                    cost = cost.saturating_add(found.cost);
                    element = merge(element, found.shape);
                }
                let element = Arc::new(element.unwrap_or(Shape::DYNAMIC));
                let size = list.elements.len() as u64;
                Ok(Found { shape: Shape { type_: Type::List(element), size }, cost })
            }
            Expr::Map(map) => {
                let (mut cost, mut value) = (30_u64, None);
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else { continue };
                    cost = cost.saturating_add(self.tree(&entry.key)?.cost);
                    let found = self.tree(&entry.value)?;
                    cost = cost.saturating_add(found.cost);
                    value = merge(value, found.shape);
                }
                let value = Arc::new(value.unwrap_or(Shape::DYNAMIC));
                let size = map.entries.len() as u64;
                Ok(Found { shape: Shape { type_: Type::Map(value), size }, cost })
            }
            Expr::Struct(structure) => Err(self.undeclared(&structure.type_name)),
            Expr::Unspecified => Err(self.error(None, "Syntax error: mismatched input '<EOF>'")),
        }
    }

    fn lookup(&self, name: &str) -> Option<&Shape> {
        self.scope.iter().rev().find(|(known, _)| known == name).map(|(_, shape)| shape)
    }

    fn ident(&self, name: &str) -> Answer {
        match self.lookup(name) {
            Some(shape) => Ok(Found { shape: shape.clone(), cost: 1 }),
            None if TYPES.contains(&name) => Ok(Found::new(Type::Dyn, 1)),
            None => Err(self.undeclared(name)),
        }
    }

    fn select(&mut self, select: &SelectExpr) -> Answer {
        if qualified_type(select).is_some() && self.lookup("google").is_none() {
            return Ok(Found::new(Type::Dyn, 1));
        }
        let operand = self.tree(&select.operand)?;
        let cost = operand.cost.saturating_add(1);
        let shape = match &operand.shape.type_ {
            Type::Object(fields) => match fields.get(&select.field) {
                Some(shape) => shape.clone(),
                None => {
                    let message = format!("undefined field '{}'", select.field);
                    return Err(self.error(Some(&select.field), &message));
                }
            },
            Type::Map(value) => Shape::clone(value),
            Type::Dyn => Shape::DYNAMIC,
            Type::Opaque(authorizer::AUTHORIZER) if select.field == "requestResource" => {
                Shape::of(Type::Opaque(authorizer::RESOURCE))
            }
            other => {
                let message = format!("type '{}' does not support field selection", other.name());
                return Err(self.error(Some(&select.field), &message));
            }
        };
        Ok(if select.test { Found::new(Type::Bool, cost) } else { Found { shape, cost } })
    }

    fn call(&mut self, call: &CallExpr) -> Answer {
        match (call.func_name.as_str(), call.args.as_slice()) {
            (operators::CONDITIONAL, [condition, yes, no]) => {
                let condition = self.tree(condition)?;
                self.expect_bool(&condition.shape, operators::CONDITIONAL)?;
                let (yes, no) = (self.tree(yes)?, self.tree(no)?);
                let cost = condition.cost.saturating_add(yes.cost.max(no.cost));
                let shape = merge(Some(yes.shape), no.shape).unwrap_or(Shape::DYNAMIC);
                Ok(Found { shape, cost })
            }
            (operator @ (operators::LOGICAL_AND | operators::LOGICAL_OR), [left, right]) => {
                let (left, right) = (self.tree(left)?, self.tree(right)?);
                self.expect_bool(&left.shape, operator)?;
                self.expect_bool(&right.shape, operator)?;
                Ok(Found::new(Type::Bool, 1_u64.saturating_add(left.cost).saturating_add(right.cost)))
            }
            (operators::NOT_STRICTLY_FALSE, [arg]) => {
                let arg = self.tree(arg)?;
                Ok(Found::new(Type::Bool, arg.cost.saturating_add(1)))
            }
            (operators::LOGICAL_NOT, [arg]) => {
                let arg = self.tree(arg)?;
                self.expect_bool(&arg.shape, operators::LOGICAL_NOT)?;
                Ok(Found::new(Type::Bool, arg.cost.saturating_add(1)))
            }
            (operators::NEGATE, [arg]) => {
                let arg = self.tree(arg)?;
                let fits = matches!(arg.shape.type_, Type::Dyn | Type::Int | Type::Double);
                if !fits {
                    return Err(self.no_overload(operators::NEGATE, &[&arg.shape]));
                }
                Ok(Found { cost: arg.cost.saturating_add(1), ..arg })
            }
            (operators::OPT_SELECT | operators::OPT_INDEX, [operand, name]) => {
                let (operand, name) = (self.tree(operand)?, self.tree(name)?);
                Ok(Found {
                    shape: Shape::DYNAMIC,
                    cost: operand.cost.saturating_add(name.cost).saturating_add(1),
                })
            }
            (operator, [left, right]) if call.target.is_none() && is_operator(operator) => {
                let (left, right) = (self.tree(left)?, self.tree(right)?);
                self.binary(operator, left, right)
            }
            _ => match form(call) {
                Some(form) => self.form(form),
                None => self.function(call),
            },
        }
    }

    fn binary(&mut self, operator: &str, left: Found, right: Found) -> Answer {
        let (a, b) = (&left.shape, &right.shape);
        let base = left.cost.saturating_add(right.cost).saturating_add(1);
        let sized =
            |shape: &Shape| matches!(shape.type_, Type::Text | Type::Bytes | Type::List(_) | Type::Map(_));
        let least = if sized(a) && sized(b) { a.size.min(b.size).div_ceil(10) } else { 0 };
        match operator {
            operators::EQUALS | operators::NOT_EQUALS => {
                if !a.type_.compares_with(&b.type_) {
                    return Err(self.no_overload(operator, &[a, b]));
                }
                Ok(Found::new(Type::Bool, base.saturating_add(least)))
            }
            operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS => {
                let ordered =
                    |t: &Type| !matches!(t, Type::List(_) | Type::Map(_) | Type::Object(_) | Type::Null);
                if !a.type_.compares_with(&b.type_) || !ordered(&a.type_) || !ordered(&b.type_) {
                    return Err(self.no_overload(operator, &[a, b]));
                }
                Ok(Found::new(Type::Bool, base.saturating_add(least)))
            }
            operators::IN => match &b.type_ {
                Type::List(element) if !a.type_.compares_with(&element.type_) => {
                    Err(self.no_overload(operator, &[a, b]))
                }
                Type::List(_) | Type::Dyn => Ok(Found::new(Type::Bool, base.saturating_add(b.size))),
                Type::Map(_) => Ok(Found::new(Type::Bool, base)),
                _ => Err(self.no_overload(operator, &[a, b])),
            },
            operators::INDEX => {
                let shape = match (&a.type_, &b.type_) {
                    (Type::List(element), Type::Int | Type::Uint | Type::Dyn | Type::Double) => {
                        Shape::clone(element)
                    }
                    (Type::Map(value), Type::Text | Type::Dyn) => Shape::clone(value),
                    (Type::Dyn, _) => Shape::DYNAMIC,
                    _ => return Err(self.no_overload(operator, &[a, b])),
                };
                Ok(Found { shape, cost: base })
            }
            _ => self.arithmetic(operator, &left, &right, base),
        }
    }

    fn arithmetic(&self, operator: &str, left: &Found, right: &Found, base: u64) -> Answer {
        let (a, b) = (&left.shape, &right.shape);
        let sum = a.size.saturating_add(b.size);
        let (shape, extra) = match (operator, &a.type_, &b.type_) {
            (_, Type::Dyn, _) => (Shape { size: sum, ..b.clone() }, 0),
            (_, _, Type::Dyn) => (Shape { size: sum, ..a.clone() }, 0),
            (operators::ADD, Type::Text, Type::Text) | (operators::ADD, Type::Bytes, Type::Bytes) => {
                (Shape { size: sum, ..a.clone() }, sum.div_ceil(10))
            }
            (operators::ADD, Type::List(x), Type::List(y)) => {
                let element = merge(Some(Shape::clone(x)), Shape::clone(y)).unwrap_or(Shape::DYNAMIC);
                (Shape { type_: Type::List(Arc::new(element)), size: sum }, 0)
            }
            (operators::ADD | operators::SUBSTRACT, Type::Time, Type::Span)
            | (operators::ADD, Type::Span, Type::Time) => (Shape::of(Type::Time), 0),
            (operators::SUBSTRACT, Type::Time, Type::Time)
            | (operators::ADD | operators::SUBSTRACT, Type::Span, Type::Span) => (Shape::of(Type::Span), 0),
            (_, Type::Int, Type::Int) => (Shape::of(Type::Int), 0),
            (_, Type::Uint, Type::Uint) => (Shape::of(Type::Uint), 0),
            (operator, Type::Double, Type::Double) if operator != operators::MODULO => {
                (Shape::of(Type::Double), 0)
            }
            _ => return Err(self.no_overload(operator, &[a, b])),
        };
        Ok(Found { shape, cost: base.saturating_add(extra) })
    }

    fn function(&mut self, call: &CallExpr) -> Answer {
        let Some((function, target)) = resolve(call, |name| self.lookup(name).is_some()) else {
            // A prefix that is no variable is told first, as upstream does.
            if let Some(target) = call.target.as_deref() {
                self.tree(target)?;
            }
            return Err(self.undeclared(&call.func_name));
        };
        let target = target.map(|target| self.tree(target)).transpose()?;
        let mut found = Vec::with_capacity(call.args.len());
        for arg in &call.args {
            found.push(self.tree(arg)?);
        }
        let all: Vec<&Found> = target.iter().chain(&found).collect();
        let (low, high) = function.arguments;
        if !(low..=high).contains(&call.args.len()) || !self.takes(function, &all) {
            let shapes: Vec<&Shape> = all.iter().map(|found| &found.shape).collect();
            return Err(self.no_overload(function.name, &shapes));
        }
        self.pattern(function, call)?;
        let subject = all.first().map(|found| &found.shape);
        let size = subject.map_or(1, |shape| shape.size);
        let second = all.get(1).map_or(0, |found| found.shape.size);
        let walked = all.iter().fold(0_u64, |sum, found| sum.saturating_add(found.shape.size));
        let cost = match function.cost {
            Cost::None => 0,
            Cost::Fixed(units) => units,
            Cost::Walk => walked.div_ceil(10),
            Cost::Each => size,
            Cost::Search => size.div_ceil(10).saturating_mul(second.div_ceil(10)),
            Cost::Pattern => size.saturating_add(1).div_ceil(10).saturating_mul(second.div_ceil(4)),
        };
        let spent = all.iter().fold(1_u64, |sum, found| sum.saturating_add(found.cost));
        let type_ = function.returns.type_(subject.map(|shape| &shape.type_));
        Ok(Found { shape: Shape { type_, size: size.max(walked) }, cost: spent.saturating_add(cost) })
    }

    /// Whether a function has something to do with the type of its subject; only certain misfits are told.
    fn takes(&self, function: &Function, all: &[&Found]) -> bool {
        let Some(subject) = all.first().map(|found| &found.shape.type_) else { return true };
        let texts_only = [
            "contains",
            "startsWith",
            "endsWith",
            "matches",
            "find",
            "findAll",
            "charAt",
            "lowerAscii",
            "upperAscii",
            "replace",
            "split",
            "substring",
            "trim",
            "format",
        ];
        if let Some((_, types)) = authorizer::METHODS.iter().find(|(name, _)| *name == function.name) {
            let fits = match subject {
                Type::Dyn => true,
                Type::Opaque(name) => types.contains(name),
                _ => false,
            };
            let texts = |found: &&Found| matches!(found.shape.type_, Type::Text | Type::Dyn);
            return fits && all.iter().skip(1).all(texts);
        }
        match (function.name, subject) {
            (_, Type::Dyn) => true,
            (_, Type::Opaque(_)) => function.style != Style::Method,
            ("size", subject) => matches!(subject, Type::Text | Type::Bytes | Type::List(_) | Type::Map(_)),
            (
                "join" | "sum" | "min" | "max" | "isSorted" | "flatten" | "distinct" | "sort" | "slice",
                subject,
            ) => {
                matches!(subject, Type::List(_))
            }
            ("quantity" | "url" | "ip" | "cidr" | "isURL" | "isIP" | "isCIDR" | "isQuantity", subject)
                if function.style == Style::Global =>
            {
                matches!(subject, Type::Text)
            }
            (name, subject) if texts_only.contains(&name) => {
                matches!(subject, Type::Text)
                    && all.get(1).is_none_or(|found| {
                        matches!(name, "charAt" | "substring" | "format")
                            || matches!(found.shape.type_, Type::Text | Type::Dyn)
                    })
            }
            _ => true,
        }
    }

    /// Patterns in the text are compiled once, and wrong ones found here.
    fn pattern(&mut self, function: &Function, call: &CallExpr) -> Result<(), CompileError> {
        if !matches!(function.cost, Cost::Pattern) {
            return Ok(());
        }
        let at = if call.target.is_some() { 0 } else { 1 };
        let Some(Expr::Literal(LiteralValue::String(literal))) = call.args.get(at).map(|arg| &arg.expr)
        else {
            return Ok(());
        };
        let text = literal.inner();
        let regex = pattern::compile(text).map_err(|message| self.error(Some(function.name), &message))?;
        self.patterns.insert(text.to_owned(), regex);
        Ok(())
    }

    fn comprehension(&mut self, comprehension: &ComprehensionExpr) -> Answer {
        let range = self.tree(&comprehension.iter_range)?;
        let initial = self.tree(&comprehension.accu_init)?;
        let element = self.element(&range.shape)?;
        let depth = self.scope.len();
        self.scope.push((comprehension.iter_var.clone(), element));
        self.scope.push((comprehension.accu_var.clone(), initial.shape.clone()));
        let condition = self.tree(&comprehension.loop_cond)?;
        let step = self.tree(&comprehension.loop_step)?;
        self.scope.truncate(depth);
        let mut accumulated = step.shape;
        if matches!(accumulated.type_, Type::List(_)) {
            accumulated.size = range.shape.size;
        }
        self.scope.push((comprehension.accu_var.clone(), accumulated));
        let result = self.tree(&comprehension.result)?;
        self.scope.truncate(depth);
        let each = condition.cost.saturating_add(step.cost).saturating_add(1);
        let looped = range.shape.size.saturating_mul(each);
        let cost = range.cost.saturating_add(initial.cost).saturating_add(looped).saturating_add(result.cost);
        Ok(Found { shape: result.shape, cost })
    }

    /// What a comprehension of one variable walks over.
    fn element(&self, range: &Shape) -> Result<Shape, CompileError> {
        match &range.type_ {
            Type::List(element) => Ok(Shape::clone(element)),
            Type::Map(_) => Ok(Shape { type_: Type::Text, size: 256 }),
            Type::Dyn => Ok(Shape::DYNAMIC),
            other => {
                let message = format!(
                    "expression of type '{}' cannot be range of a comprehension (must be list, map, or dynamic)",
                    other.name()
                );
                Err(self.error(None, &message))
            }
        }
    }

    fn form(&mut self, form: Form<'_>) -> Answer {
        match form {
            Form::Bind { name, value, body } => {
                let value = self.tree(value)?;
                let body = self.scoped(&[(name, value.shape)], body)?;
                Ok(Found { cost: body.cost.saturating_add(value.cost).saturating_add(1), ..body })
            }
            Form::OptionalMap { operand, name, body, .. } => {
                let operand = self.tree(operand)?;
                let body = self.scoped(&[(name, Shape::DYNAMIC)], body)?;
                Ok(Found::new(Type::Dyn, operand.cost.saturating_add(body.cost)))
            }
            Form::SortBy { operand, name, key } => {
                let operand = self.tree(operand)?;
                let element = self.element(&operand.shape)?;
                let key = self.scoped(&[(name, element)], key)?;
                let looped = operand.shape.size.saturating_mul(key.cost.saturating_add(11));
                Ok(Found { cost: operand.cost.saturating_add(looped), ..operand })
            }
            Form::Pairs { kind, operand, names, condition, body } => {
                let operand = self.tree(operand)?;
                let (key, value) = match &operand.shape.type_ {
                    Type::List(element) => (Shape::of(Type::Int), Shape::clone(element)),
                    Type::Map(value) => (Shape { type_: Type::Text, size: 256 }, Shape::clone(value)),
                    _ => (Shape::DYNAMIC, self.element(&operand.shape)?),
                };
                let scope = [(names.0, key), (names.1, value)];
                let condition = condition.map(|tree| self.scoped(&scope, tree)).transpose()?;
                let body = self.scoped(&scope, body)?;
                let each = body.cost.saturating_add(condition.map_or(0, |c| c.cost)).saturating_add(12);
                let looped = operand.shape.size.saturating_mul(each);
                let type_ = match kind {
                    Pairs::All | Pairs::Exists | Pairs::ExistsOne => Type::Bool,
                    Pairs::TransformList => Type::List(Arc::new(body.shape)),
                    Pairs::TransformMap | Pairs::TransformMapEntry => Type::Dyn,
                };
                let shape = Shape { type_, size: operand.shape.size };
                Ok(Found { shape, cost: operand.cost.saturating_add(looped) })
            }
        }
    }

    fn scoped(&mut self, names: &[(&str, Shape)], body: &IdedExpr) -> Answer {
        let depth = self.scope.len();
        self.scope.extend(names.iter().map(|(name, shape)| ((*name).to_owned(), shape.clone())));
        let found = self.tree(body);
        self.scope.truncate(depth);
        found
    }

    fn expect_bool(&self, shape: &Shape, operator: &str) -> Result<(), CompileError> {
        match shape.type_ {
            Type::Bool | Type::Dyn => Ok(()),
            _ => Err(self.no_overload(operator, &[shape])),
        }
    }

    fn no_overload(&self, operator: &str, shapes: &[&Shape]) -> CompileError {
        let types: Vec<String> = shapes.iter().map(|shape| shape.type_.name()).collect();
        let word = operator.trim_matches(|c| matches!(c, '_' | '@'));
        let message =
            format!("found no matching overload for '{operator}' applied to '({})'", types.join(", "));
        self.error(Some(word), &message)
    }

    fn undeclared(&self, name: &str) -> CompileError {
        self.error(Some(name), &format!("undeclared reference to '{name}' (in container '')"))
    }

    /// An error as `cel-go` shows it. The parser keeps no positions, so the word is looked for in the text.
    fn error(&self, word: Option<&str>, message: &str) -> CompileError {
        let at = word.and_then(|word| position(self.text, word)).unwrap_or(0);
        let before = &self.text[..at];
        let line = before.matches('\n').count();
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count();
        let shown = self.text.lines().nth(line).unwrap_or_default();
        CompileError(format!(
            "ERROR: <input>:{}:{}: {message}\n | {shown}\n | {}^",
            line + 1,
            column + 1,
            ".".repeat(column)
        ))
    }
}

/// Where a word stands, not as a part of another.
fn position(text: &str, word: &str) -> Option<usize> {
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let whole = |(at, found): &(usize, &str)| {
        !is_word(text[..*at].chars().next_back()) && !is_word(text[at + found.len()..].chars().next())
    };
    let first = text.match_indices(word).find(whole).or_else(|| text.match_indices(word).next());
    first.map(|(at, _)| at)
}

fn literal_shape(literal: &LiteralValue) -> Shape {
    match literal {
        LiteralValue::Boolean(_) => Shape::of(Type::Bool),
        LiteralValue::Bytes(bytes) => Shape { type_: Type::Bytes, size: bytes.inner().len() as u64 },
        LiteralValue::Double(_) => Shape::of(Type::Double),
        LiteralValue::Int(_) => Shape::of(Type::Int),
        LiteralValue::Null => Shape::of(Type::Null),
        LiteralValue::String(text) => Shape { type_: Type::Text, size: text.inner().chars().count() as u64 },
        LiteralValue::UInt(_) => Shape::of(Type::Uint),
    }
}

/// The shape of a value that may be one or the other.
fn merge(a: Option<Shape>, b: Shape) -> Option<Shape> {
    let Some(a) = a else { return Some(b) };
    let size = a.size.max(b.size);
    let type_ = match (a.type_, b.type_) {
        (Type::Null, type_) | (type_, Type::Null) => type_,
        (Type::List(x), Type::List(y)) => match merge(Some(Shape::clone(&x)), Shape::clone(&y)) {
            Some(element) => Type::List(Arc::new(element)),
            None => Type::Dyn,
        },
        // The element type of an empty list says nothing.
        (type_, other) if std::mem::discriminant(&type_) == std::mem::discriminant(&other) => match type_ {
            Type::Map(_) | Type::Object(_) | Type::Opaque(_) => Type::Dyn,
            type_ => type_,
        },
        _ => Type::Dyn,
    };
    Some(Shape { type_, size })
}

/// Operators of two sides that compute both.
pub(super) fn is_operator(name: &str) -> bool {
    matches!(
        name,
        operators::EQUALS
            | operators::NOT_EQUALS
            | operators::LESS
            | operators::LESS_EQUALS
            | operators::GREATER
            | operators::GREATER_EQUALS
            | operators::IN
            | operators::INDEX
            | operators::ADD
            | operators::SUBSTRACT
            | operators::MULTIPLY
            | operators::DIVIDE
            | operators::MODULO
    )
}
