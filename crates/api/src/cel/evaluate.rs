//! The walk that computes a value: operators, macros, variables. Functions are in `library.rs`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kube_cel::cel::Value;
use kube_cel::cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, ListExpr, LiteralValue, MapExpr, SelectExpr,
    operators,
};
use kube_cel::cel::objects::{Key, KeyRef, Map};
use regex::Regex;

use super::authorizer::{self, Authorizer};
use super::library::{self, Call, explain, no_overload};
use super::lists::{Comparison, Lists, TooMany};
use super::values::{TypeValue, as_optional, deep_size, optional, text};
use super::{Budget, CelValue, EvalError};

/// Cost of making a list and a map, as in `cel-go`.
const LIST_COST: u64 = 10;
const MAP_COST: u64 = 30;

/// Counts the cost of one evaluation.
pub(super) struct Meter {
    limit: u64,
    left: u64,
    /// Whether the limit is the request's rather than the expression's.
    is_last: bool,
}

impl Meter {
    pub(super) fn new(budget: &Budget) -> Self {
        let limit = budget.per_expression.min(budget.left);
        Self { limit, left: limit, is_last: budget.left < budget.per_expression }
    }

    /// Takes units, or cancels.
    pub(super) fn pay(&mut self, units: u64) -> Result<(), EvalError> {
        match self.left.checked_sub(units) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(EvalError::Cost)
            }
        }
    }

    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Writes what was spent into the budget; says so when it was the budget that ended.
    pub(super) fn settle(self, budget: &mut Budget, result: Answer) -> Answer {
        budget.left = budget.left.saturating_sub(self.limit - self.left);
        match result {
            Err(EvalError::Cost) if self.is_last => {
                budget.left = 0;
                Err(EvalError::Budget)
            }
            other => other,
        }
    }
}

type Answer = Result<Value, EvalError>;

fn fail(message: impl Into<String>) -> EvalError {
    EvalError::Value(message.into())
}

/// Computes the value of a tree.
pub(super) fn evaluate(
    tree: &IdedExpr,
    patterns: &BTreeMap<String, Regex>,
    variables: &[(&str, &CelValue)],
    surroundings: Surroundings<'_>,
    meter: &mut Meter,
) -> Answer {
    let Surroundings { lists, authorizer } = surroundings;
    let made = Lists::default();
    Walk { patterns, variables, scope: Vec::new(), lists, made, authorizer, meter }.value(tree)
}

struct Walk<'a> {
    patterns: &'a BTreeMap<String, Regex>,
    variables: &'a [(&'a str, &'a CelValue)],
    /// Variables of macros, the innermost last.
    scope: Vec<(&'a str, Value)>,
    /// Lists of the variables that are sets or maps.
    lists: &'a Lists,
    /// Those that additions have made.
    made: Lists,
    authorizer: Option<&'a dyn Authorizer>,
    meter: &'a mut Meter,
}

/// What an expression sees beside its variables.
#[derive(Clone, Copy)]
pub(super) struct Surroundings<'a> {
    /// Lists of the variables that are sets or maps.
    pub(super) lists: &'a Lists,
    /// Who answers `authorizer`.
    pub(super) authorizer: Option<&'a dyn Authorizer>,
}

impl<'a> Walk<'a> {
    fn value(&mut self, tree: &'a IdedExpr) -> Answer {
        match &tree.expr {
            Expr::Literal(literal) => Ok(self::literal(literal)),
            Expr::Ident(name) => self.ident(name),
            Expr::Select(select) => self.select(select),
            Expr::Call(call) => self.call(call),
            Expr::List(list) => self.list(list),
            Expr::Map(map) => self.map(map),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Struct(_) | Expr::Unspecified => Err(no_overload()),
        }
    }

    fn lookup(&self, name: &str) -> Option<Value> {
        let inner = self.scope.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| value);
        let outer = || self.variables.iter().find(|(known, _)| *known == name).map(|(_, value)| &value.0);
        inner.or_else(outer).cloned()
    }

    fn ident(&mut self, name: &str) -> Answer {
        self.meter.pay(1)?;
        match self.lookup(name) {
            Some(value) => Ok(value),
            None if super::check::TYPES.contains(&name) => {
                Ok(Value::Opaque(Arc::new(TypeValue(name.to_owned()))))
            }
            None => Err(fail(format!("no such attribute(s): {name}"))),
        }
    }

    fn select(&mut self, select: &'a SelectExpr) -> Answer {
        self.meter.pay(1)?;
        if let Some(name) = super::check::qualified_type(select)
            && self.lookup(name.split('.').next().unwrap_or_default()).is_none()
        {
            return Ok(Value::Opaque(Arc::new(TypeValue(name))));
        }
        let operand = self.value(&select.operand)?;
        if select.test {
            return match field(&operand, &select.field) {
                Ok(found) => Ok(Value::Bool(found.is_some())),
                Err(error) => Err(error),
            };
        }
        if let Some(inner) = as_optional(&operand) {
            let found = inner.value().map(|inner| field(inner, &select.field)).transpose()?;
            return Ok(optional(found.flatten()));
        }
        field(&operand, &select.field)?.ok_or_else(|| fail(format!("no such key: {}", select.field)))
    }

    fn list(&mut self, list: &'a ListExpr) -> Answer {
        self.meter.pay(LIST_COST)?;
        let mut items = Vec::with_capacity(list.elements.len());
        for (index, element) in list.elements.iter().enumerate() {
            let value = self.value(element)?;
            match list.optional_indices.contains(&index).then(|| as_optional(&value)).flatten() {
                Some(inner) => items.extend(inner.value().cloned()),
                None => items.push(value),
            }
        }
        Ok(Value::List(Arc::new(items)))
    }

    fn map(&mut self, map: &'a MapExpr) -> Answer {
        self.meter.pay(MAP_COST)?;
        let mut entries = HashMap::with_capacity(map.entries.len());
        for entry in &map.entries {
            let EntryExpr::MapEntry(entry) = &entry.expr else { return Err(no_overload()) };
            let key: Key = self.value(&entry.key)?.try_into().map_err(|_| fail("unsupported key type"))?;
            let value = self.value(&entry.value)?;
            match entry.optional.then(|| as_optional(&value)).flatten() {
                Some(inner) => {
                    if let Some(inner) = inner.value() {
                        entries.insert(key, inner.clone());
                    }
                }
                None => {
                    entries.insert(key, value);
                }
            }
        }
        Ok(Value::Map(Map { map: Arc::new(entries) }))
    }

    fn call(&mut self, call: &'a CallExpr) -> Answer {
        match (call.func_name.as_str(), call.args.as_slice()) {
            (operators::CONDITIONAL, [condition, yes, no]) => {
                if self.boolean(condition)? {
                    self.value(yes)
                } else {
                    self.value(no)
                }
            }
            (operators::LOGICAL_AND, [left, right]) => self.logical(left, right, false),
            (operators::LOGICAL_OR, [left, right]) => self.logical(left, right, true),
            (operators::NOT_STRICTLY_FALSE, [arg]) => Ok(Value::Bool(match self.boolean(arg) {
                Err(error @ (EvalError::Cost | EvalError::Budget)) => return Err(error),
                Err(EvalError::Value(_)) => true,
                Ok(value) => value,
            })),
            (operators::LOGICAL_NOT, [arg]) => {
                self.meter.pay(1)?;
                Ok(Value::Bool(!self.boolean(arg)?))
            }
            (operators::NEGATE, [arg]) => {
                self.meter.pay(1)?;
                match self.value(arg)? {
                    Value::Int(n) => n.checked_neg().map(Value::Int).ok_or_else(|| fail("integer overflow")),
                    Value::Float(n) => Ok(Value::Float(-n)),
                    _ => Err(no_overload()),
                }
            }
            (operators::OPT_SELECT, [operand, name]) => {
                let operand = self.value(operand)?;
                let name = self.value(name)?;
                self.meter.pay(1)?;
                optional_index(&operand, &name)
            }
            (operators::OPT_INDEX, [operand, index]) => {
                let operand = self.value(operand)?;
                let index = self.value(index)?;
                self.meter.pay(1)?;
                optional_index(&operand, &index)
            }
            (name, [left, right]) if call.target.is_none() && super::check::is_operator(name) => {
                let (left, right) = (self.value(left)?, self.value(right)?);
                self.binary(name, left, right)
            }
            _ => match super::check::form(call) {
                Some(form) => self.form(form),
                None => self.function(call),
            },
        }
    }

    fn boolean(&mut self, tree: &'a IdedExpr) -> Result<bool, EvalError> {
        match self.value(tree)? {
            Value::Bool(value) => Ok(value),
            other => Err(postponed(&other).unwrap_or_else(no_overload)),
        }
    }

    /// `&&` and `||`: one side that decides outweighs an error of the other.
    fn logical(&mut self, left: &'a IdedExpr, right: &'a IdedExpr, decisive: bool) -> Answer {
        self.meter.pay(1)?;
        let first = match self.boolean(left) {
            Err(EvalError::Value(message)) => Err(message),
            Err(error) => return Err(error),
            Ok(value) if value == decisive => return Ok(Value::Bool(decisive)),
            Ok(value) => Ok(value),
        };
        let second = self.boolean(right);
        match (first, second) {
            (_, Ok(value)) if value == decisive => Ok(Value::Bool(decisive)),
            (Err(message), Ok(_) | Err(EvalError::Value(_))) => Err(EvalError::Value(message)),
            (_, second) => second.map(Value::Bool),
        }
    }

    fn binary(&mut self, operator: &str, left: Value, right: Value) -> Answer {
        let cost = cost_of(operator, &left, &right, self.meter.left().saturating_mul(10));
        self.meter.pay(cost.max(1))?;
        if !self.lists.is_empty()
            && let Some(value) = self.unordered(operator, &left, &right)?
        {
            return Ok(value);
        }
        let ordered = |wanted: fn(std::cmp::Ordering) -> bool| {
            // `null` and texts of different kinds have no order; numbers of all kinds have one.
            left.partial_cmp(&right).map(|order| Value::Bool(wanted(order))).ok_or_else(no_overload)
        };
        match operator {
            operators::EQUALS => Ok(Value::Bool(left == right)),
            operators::NOT_EQUALS => Ok(Value::Bool(left != right)),
            operators::LESS => ordered(std::cmp::Ordering::is_lt),
            operators::LESS_EQUALS => ordered(std::cmp::Ordering::is_le),
            operators::GREATER => ordered(std::cmp::Ordering::is_gt),
            operators::GREATER_EQUALS => ordered(std::cmp::Ordering::is_ge),
            operators::IN => contains(&left, &right),
            operators::INDEX => index(&left, &right)?.ok_or_else(|| missing(&left, &right)),
            operators::ADD => match (&left, &right) {
                (Value::Bytes(a), Value::Bytes(b)) => Ok(Value::Bytes(Arc::new([a.as_slice(), b].concat()))),
                _ => (left + right).map_err(explain),
            },
            operators::SUBSTRACT => (left - right).map_err(explain),
            operators::MULTIPLY => (left * right).map_err(explain),
            operators::DIVIDE => (left / right).map_err(explain),
            operators::MODULO => (left % right).map_err(explain),
            _ => Err(no_overload()),
        }
    }

    /// Operators that see sets and maps in lists; nothing where they mean what they mean elsewhere.
    fn unordered(&mut self, operator: &str, left: &Value, right: &Value) -> Result<Option<Value>, EvalError> {
        if !matches!(operator, operators::EQUALS | operators::NOT_EQUALS | operators::ADD) {
            return Ok(None);
        }
        let (lists, made) = (self.lists, &self.made);
        let kind_of = |list: &Arc<Vec<Value>>| lists.kind(list).or_else(|| made.kind(list)).cloned();
        // Ten steps are a unit, as ten bytes are.
        let mut comparison = Comparison::new(&kind_of, self.meter.left().saturating_mul(10));
        if operator == operators::ADD {
            let (Value::List(a), Value::List(b)) = (left, right) else { return Ok(None) };
            let Some(kind) = kind_of(a) else { return Ok(None) };
            let sum = comparison.union(a, b, &kind);
            self.meter.pay(comparison.taken().div_ceil(10))?;
            let sum = sum.map_err(|TooMany| EvalError::Cost)?;
            return Ok(Some(self.made.make(sum, kind)));
        }
        let equal = comparison.equal(left, right);
        self.meter.pay(comparison.taken().div_ceil(10))?;
        let equal = equal.map_err(|TooMany| EvalError::Cost)?;
        Ok(Some(Value::Bool(equal == (operator == operators::EQUALS))))
    }

    fn function(&mut self, call: &'a CallExpr) -> Answer {
        let (function, target) = super::check::resolve(call, |name| self.lookup(name).is_some())
            .ok_or_else(|| fail(format!("no such function: {}", call.func_name)))?;
        let target = target.map(|target| self.value(target)).transpose()?;
        let mut args = Vec::with_capacity(call.args.len());
        for arg in &call.args {
            args.push(self.value(arg)?);
        }
        let call = Call { function, target, args, patterns: self.patterns, authorizer: self.authorizer };
        library::call(call, self.meter)
    }

    fn comprehension(&mut self, comprehension: &'a ComprehensionExpr) -> Answer {
        let range = self.value(&comprehension.iter_range)?;
        let mut accumulated = self.value(&comprehension.accu_init)?;
        let items = elements(&range)?;
        let (item_name, accumulator) = (comprehension.iter_var.as_str(), comprehension.accu_var.as_str());
        let growing = growth(&comprehension.loop_step, accumulator);
        for item in items {
            self.meter.pay(1)?;
            self.scope.push((item_name, item));
            if let Some(growth) = &growing {
                // `map` and `filter` append in place; as an addition each step would copy what is there.
                let step = self.grow(growth, &mut accumulated);
                self.scope.pop();
                step?;
                continue;
            }
            self.scope.push((accumulator, accumulated));
            let step = self.step(comprehension);
            self.scope.truncate(self.scope.len() - 2);
            match step? {
                (true, value) => accumulated = value,
                (false, value) => {
                    accumulated = value;
                    break;
                }
            }
        }
        self.scope.push((accumulator, accumulated));
        let result = self.value(&comprehension.result);
        self.scope.pop();
        match result {
            Ok(value) => postponed(&value).map_or(Ok(value), Err),
            error => error,
        }
    }

    /// One step: whether to go on, and the new value.
    fn step(&mut self, comprehension: &'a ComprehensionExpr) -> Result<(bool, Value), EvalError> {
        // The value before is what remains when the loop ends here.
        if !self.boolean(&comprehension.loop_cond)? {
            let value = self.scope.last().map(|(_, value)| value.clone());
            return Ok((false, value.unwrap_or(Value::Null)));
        }
        let next = self.value(&comprehension.loop_step);
        match next {
            // An error in one element is outweighed by another element that decides (`all`, `exists`); the value stays
            // an error otherwise, which is found again when the last element was looked at.
            Err(EvalError::Value(message)) => self.postpone(comprehension, message),
            other => Ok((true, other?)),
        }
    }

    fn postpone(
        &mut self,
        comprehension: &ComprehensionExpr,
        message: String,
    ) -> Result<(bool, Value), EvalError> {
        let is_logical = matches!(&comprehension.loop_step.expr, Expr::Call(call)
            if matches!(call.func_name.as_str(), operators::LOGICAL_AND | operators::LOGICAL_OR));
        if !is_logical {
            return Err(EvalError::Value(message));
        }
        Ok((true, Value::Opaque(Arc::new(Postponed(message)))))
    }

    fn grow(&mut self, growth: &Growth<'a>, accumulated: &mut Value) -> Result<(), EvalError> {
        if let Some(condition) = growth.condition
            && !self.boolean(condition)?
        {
            return Ok(());
        }
        self.meter.pay(LIST_COST + 1)?;
        let value = self.value(growth.element)?;
        if let Value::List(items) = accumulated {
            Arc::make_mut(items).push(value);
        }
        Ok(())
    }

    fn form(&mut self, form: super::check::Form<'a>) -> Answer {
        use super::check::Form;
        match form {
            Form::Bind { name, value, body } => {
                let value = self.value(value)?;
                self.scoped([(name, value)], body)
            }
            Form::OptionalMap { operand, name, body, is_flat } => {
                let operand = self.value(operand)?;
                let Some(inner) = as_optional(&operand).ok_or_else(no_overload)?.value().cloned() else {
                    return Ok(optional(None));
                };
                let value = self.scoped([(name, inner)], body)?;
                Ok(if is_flat { value } else { optional(Some(value)) })
            }
            Form::SortBy { operand, name, key } => {
                let operand = self.value(operand)?;
                let mut keyed = Vec::new();
                for item in elements(&operand)? {
                    self.meter.pay(LIST_COST)?;
                    keyed.push((self.scoped([(name, item.clone())], key)?, item));
                }
                if keyed.windows(2).any(|pair| pair[0].0.partial_cmp(&pair[1].0).is_none()) {
                    return Err(no_overload());
                }
                keyed.sort_by(|a, b| a.0.partial_cmp(&b.0).unwrap_or(std::cmp::Ordering::Equal));
                Ok(Value::List(Arc::new(keyed.into_iter().map(|(_, item)| item).collect())))
            }
            Form::Pairs { kind, operand, names, condition, body } => {
                let operand = self.value(operand)?;
                self.pairs(kind, &operand, names, condition, body)
            }
        }
    }

    fn scoped<const N: usize>(&mut self, names: [(&'a str, Value); N], body: &'a IdedExpr) -> Answer {
        self.meter.pay(1)?;
        let depth = self.scope.len();
        self.scope.extend(names);
        let result = self.value(body);
        self.scope.truncate(depth);
        result
    }

    /// Comprehensions of two variables: index and element, or key and value.
    fn pairs(
        &mut self,
        kind: super::check::Pairs,
        operand: &Value,
        names: (&'a str, &'a str),
        condition: Option<&'a IdedExpr>,
        body: &'a IdedExpr,
    ) -> Answer {
        use super::check::Pairs;
        let (mut items, mut entries) = (Vec::new(), HashMap::new());
        let (mut matches, mut error) = (0, None);
        for (key, value) in self::pairs(operand)? {
            let scope = || [(names.0, key.clone()), (names.1, value.clone())];
            if let Some(condition) = condition
                && self.scoped(scope(), condition)? != Value::Bool(true)
            {
                continue;
            }
            let result = self.scoped(scope(), body);
            match (kind, result) {
                (Pairs::All, Ok(Value::Bool(false))) => return Ok(Value::Bool(false)),
                (Pairs::Exists, Ok(Value::Bool(true))) => return Ok(Value::Bool(true)),
                (Pairs::All | Pairs::Exists, Err(EvalError::Value(message))) => error = Some(message),
                (Pairs::ExistsOne, Ok(Value::Bool(true))) => matches += 1,
                (Pairs::All | Pairs::Exists | Pairs::ExistsOne, Ok(Value::Bool(_))) => {}
                (Pairs::TransformList, Ok(value)) => {
                    self.meter.pay(LIST_COST)?;
                    items.push(value);
                }
                (Pairs::TransformMap, Ok(value)) => {
                    self.meter.pay(MAP_COST)?;
                    let key: Key = key.try_into().map_err(|_| no_overload())?;
                    entries.insert(key, value);
                }
                (Pairs::TransformMapEntry, Ok(Value::Map(made))) => {
                    self.meter.pay(MAP_COST + made.map.len() as u64)?;
                    for (key, value) in made.map.iter() {
                        if entries.insert(key.clone(), value.clone()).is_some() {
                            return Err(fail(format!("insert failed: key {key} already exists")));
                        }
                    }
                }
                (_, Err(error)) => return Err(error),
                (_, Ok(_)) => return Err(no_overload()),
            }
        }
        if let Some(message) = error {
            return Err(EvalError::Value(message));
        }
        Ok(match kind {
            Pairs::All => Value::Bool(true),
            Pairs::Exists => Value::Bool(false),
            Pairs::ExistsOne => Value::Bool(matches == 1),
            Pairs::TransformList => Value::List(Arc::new(items)),
            Pairs::TransformMap | Pairs::TransformMapEntry => Value::Map(Map { map: Arc::new(entries) }),
        })
    }
}

/// An error in the accumulator of `all` or `exists`: no boolean, so that it is an error wherever it is used.
#[derive(Debug, PartialEq, Eq)]
struct Postponed(String);

impl kube_cel::cel::objects::Opaque for Postponed {
    fn runtime_type_name(&self) -> &str {
        "error"
    }
}

/// The error a value stands for.
fn postponed(value: &Value) -> Option<EvalError> {
    let Value::Opaque(opaque) = value else { return None };
    opaque.downcast_ref::<Postponed>().map(|error| EvalError::Value(error.0.clone()))
}

/// `@result + [element]`, perhaps under a condition: the steps of `map` and `filter`.
struct Growth<'a> {
    condition: Option<&'a IdedExpr>,
    element: &'a IdedExpr,
}

fn growth<'a>(step: &'a IdedExpr, accumulator: &str) -> Option<Growth<'a>> {
    let is_accumulator = |tree: &IdedExpr| matches!(&tree.expr, Expr::Ident(name) if name == accumulator);
    let Expr::Call(call) = &step.expr else { return None };
    match (call.func_name.as_str(), call.args.as_slice()) {
        (operators::ADD, [left, right]) if is_accumulator(left) => match &right.expr {
            Expr::List(list) if list.elements.len() == 1 && list.optional_indices.is_empty() => {
                Some(Growth { condition: None, element: list.elements.first()? })
            }
            _ => None,
        },
        (operators::CONDITIONAL, [condition, yes, no]) if is_accumulator(no) => {
            growth(yes, accumulator).map(|growth| Growth { condition: Some(condition), ..growth })
        }
        _ => None,
    }
}

fn literal(literal: &LiteralValue) -> Value {
    match literal {
        LiteralValue::Boolean(value) => Value::Bool(*value.inner()),
        LiteralValue::Bytes(value) => Value::Bytes(Arc::new(value.inner().to_vec())),
        LiteralValue::Double(value) => Value::Float(*value.inner()),
        LiteralValue::Int(value) => Value::Int(*value.inner()),
        LiteralValue::Null => Value::Null,
        LiteralValue::String(value) => text(value.inner()),
        LiteralValue::UInt(value) => Value::UInt(*value.inner()),
    }
}

/// What an operator costs. A size is only asked for where it is paid for: asking walks over the value.
fn cost_of(operator: &str, left: &Value, right: &Value, limit: u64) -> u64 {
    match operator {
        operators::ADD => match left {
            // Elements of a list are shared, not copied.
            Value::List(_) => count(left) + count(right),
            _ => (deep_size(left, limit) + deep_size(right, limit)).div_ceil(10),
        },
        operators::IN => match right {
            Value::Map(_) => 1,
            _ => smaller_size(left, count(right), right, limit).div_ceil(10).max(count(right)),
        },
        operators::INDEX => deep_size(right, limit).div_ceil(10),
        _ => smaller_size(left, 1, right, limit).div_ceil(10),
    }
}

/// The smaller of two sizes, the left one taken several times: what a comparison walks over. It is found without walking
/// far into the larger one.
fn smaller_size(left: &Value, times: u64, right: &Value, limit: u64) -> u64 {
    let mut bound = 64.min(limit);
    loop {
        let size = deep_size(left, bound).saturating_mul(times).min(deep_size(right, bound));
        if size <= bound || bound == limit {
            return size;
        }
        bound = bound.saturating_mul(8).min(limit);
    }
}

fn count(value: &Value) -> u64 {
    match value {
        Value::List(items) => items.len() as u64,
        Value::Map(map) => map.map.len() as u64,
        _ => 1,
    }
}

/// A field of a map; an error for values that have none.
fn field(value: &Value, name: &str) -> Result<Option<Value>, EvalError> {
    match value {
        Value::Map(map) => Ok(map.get(&KeyRef::String(name)).cloned()),
        _ if authorizer::field(value, name).is_some() => Ok(authorizer::field(value, name)),
        _ => match as_optional(value) {
            Some(inner) => inner.value().map_or(Ok(None), |inner| field(inner, name)),
            None => Err(no_overload()),
        },
    }
}

fn index(value: &Value, at: &Value) -> Result<Option<Value>, EvalError> {
    match value {
        Value::Map(map) => {
            let key = key(at).ok_or_else(no_overload)?;
            Ok(map.get(&key).cloned())
        }
        Value::List(items) => {
            let at = match at {
                Value::Int(at) => usize::try_from(*at).ok(),
                Value::UInt(at) => usize::try_from(*at).ok(),
                Value::Float(at) if at.fract() == 0.0 && *at >= 0.0 => Some(*at as usize),
                Value::Float(_) => None,
                _ => return Err(no_overload()),
            };
            Ok(at.and_then(|at| items.get(at)).cloned())
        }
        _ => match as_optional(value) {
            Some(inner) => {
                let found = inner.value().map(|inner| index(inner, at)).transpose()?;
                Ok(Some(optional(found.flatten())))
            }
            None => Err(no_overload()),
        },
    }
}

fn key(value: &Value) -> Option<KeyRef<'_>> {
    match value {
        Value::Float(n) if n.fract() == 0.0 => Some(KeyRef::Int(*n as i64)),
        other => KeyRef::try_from(other).ok(),
    }
}

fn optional_index(operand: &Value, at: &Value) -> Answer {
    let inner = match as_optional(operand) {
        Some(inner) => match inner.value() {
            Some(inner) => inner,
            None => return Ok(optional(None)),
        },
        None => operand,
    };
    index(inner, at).map(optional)
}

fn missing(operand: &Value, at: &Value) -> EvalError {
    let shown = super::values::as_text(at).unwrap_or_default();
    match operand {
        Value::List(_) => fail(format!("index out of bounds: {shown}")),
        _ => fail(format!("no such key: {shown}")),
    }
}

fn contains(needle: &Value, haystack: &Value) -> Answer {
    match haystack {
        Value::List(items) => Ok(Value::Bool(items.contains(needle))),
        Value::Map(map) => Ok(Value::Bool(key(needle).is_some_and(|key| map.get(&key).is_some()))),
        _ => Err(no_overload()),
    }
}

/// What a comprehension of one variable walks over: elements, or keys in a steady order.
fn elements(value: &Value) -> Result<Vec<Value>, EvalError> {
    match value {
        Value::List(items) => Ok(items.to_vec()),
        Value::Map(_) => Ok(pairs(value)?.into_iter().map(|(key, _)| key).collect()),
        _ => Err(no_overload()),
    }
}

fn pairs(value: &Value) -> Result<Vec<(Value, Value)>, EvalError> {
    match value {
        Value::List(items) => {
            let index = |index: usize| Value::Int(i64::try_from(index).unwrap_or(i64::MAX));
            Ok(items.iter().enumerate().map(|(at, item)| (index(at), item.clone())).collect())
        }
        Value::Map(map) => {
            let mut entries: Vec<(&Key, &Value)> = map.map.iter().collect();
            entries.sort_by(|a, b| a.0.cmp(b.0));
            Ok(entries.into_iter().map(|(key, value)| (Value::from(key), value.clone())).collect())
        }
        _ => Err(no_overload()),
    }
}
