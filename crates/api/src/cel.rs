//! Our door to CEL, the expression language of custom resource rules, admission policies and match conditions.
//!
//! The crate `kube-cel` brings the parser (its re-exported `cel`) and the libraries of Kubernetes (quantities,
//! addresses, URLs, versions, sets, formats). The walk over the syntax tree is ours, because the crate's own has no
//! limit of cost, copies every value it touches, answers `false` for a field of a text, counts bytes where CEL counts
//! characters, and lacks `cel.bind`, comprehensions of two variables and `optMap`. Library functions are called through
//! the crate, one call at a time, after their cost was paid.
//!
//! ```text
//!  text ── guard.rs ──> parser ──> check.rs ──> Expression ── evaluate.rs ──> CelValue
//!       (size, depth)          (names, types,             (operators, macros)   │
//!                               estimated cost)            library.rs, values.rs │ to_json
//! ```
//!
//! **Cost** is counted as upstream counts it: about one unit for a step, a tenth of a unit for each character or byte
//! that is walked. [`Budget`] holds the units that are left; an expression may take [`Budget::PER_EXPRESSION`] of them.
//! Because everything that allocates is paid for by size before it is made, the budget bounds memory as well as time.

mod authorizer;
mod check;
mod evaluate;
mod guard;
mod library;
mod lists;
#[cfg(test)]
mod tests;
mod url;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use kube_cel::cel;
use regex::Regex;

use evaluate::Surroundings;

pub use authorizer::{Authorizer, Decision, Question};
pub(crate) use check::{Fields, Shape, Type};
pub(crate) use lists::{ListKind, Lists};
pub use values::CelValue;
pub(crate) use values::{duration, from_json, map, text, timestamp};

/// Words of the language, which nothing else can be called. As names of fields they are set in underscores (KEP-2876).
pub const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// A compiled expression. Compiled once, shared, evaluated as often as needed.
pub struct Expression {
    text: String,
    tree: cel::IdedExpr,
    /// Patterns that stand in the text itself, compiled once.
    patterns: BTreeMap<String, Regex>,
    variables: Vec<String>,
    result: Type,
    estimated_cost: u64,
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expression").field(&self.text).finish()
    }
}

/// Why a text is no expression, in the words of `cel-go`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CompileError(pub String);

/// Why an evaluation gave no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// The expression took more than [`Budget::PER_EXPRESSION`].
    #[error("operation cancelled: actual cost limit exceeded")]
    Cost,
    /// The request has no units left.
    #[error("validation failed due to running out of cost budget, no further validation rules will be run")]
    Budget,
    /// Something the expression did has no answer: a missing key, a division by zero, an unfit type.
    #[error("{0}")]
    Value(String),
}

/// Units of cost that are left.
#[derive(Clone, Debug)]
pub struct Budget {
    left: u64,
    per_expression: u64,
}

impl Budget {
    /// What one evaluation may take, as upstream (`celconfig.PerCallLimit`): about a tenth of a second.
    pub const PER_EXPRESSION: u64 = 1_000_000;
    /// What all evaluations of one request may take together (`celconfig.RuntimeCELCostBudget`).
    pub const PER_REQUEST: u64 = 10_000_000;
    /// What all match conditions of one webhook or policy may take (`celconfig.RuntimeCELCostBudgetMatchConditions`).
    pub const MATCH_CONDITIONS: u64 = 2_500_000;

    /// A budget of `units`.
    pub fn new(units: u64) -> Self {
        Self { left: units, per_expression: Self::PER_EXPRESSION }
    }
    /// Units left.
    pub fn left(&self) -> u64 {
        self.left
    }
}

/// Bytes of stack for the parser, which takes some hundred thousand for each bracket when it is not optimised. Only
/// what is touched becomes memory.
const PARSER_STACK: usize = 32 * 1024 * 1024;

/// Parses a text whose size and depth were checked, on a thread of its own: the parser is generated code that is deeply
/// recursive, and has unwraps inside (no input is known to reach one). Compiling is rare, a thread costs microseconds.
fn parse(text: &str) -> Result<cel::IdedExpr, CompileError> {
    let source = guard::fold_signs(text).into_owned();
    let parser = move || {
        let parser = cel::parser::Parser::new().enable_optional_syntax(true);
        parser.parse(&source).map_err(|errors| CompileError(errors.to_string()))
    };
    let thread =
        std::thread::Builder::new().name("cel-parser".to_owned()).stack_size(PARSER_STACK).spawn(parser);
    let failed = |what: &str| CompileError(format!("ERROR: <input>:1:1: {what}"));
    let thread = thread.map_err(|_| failed("out of resources"))?;
    thread.join().unwrap_or_else(|_| Err(failed("Syntax error")))
}

/// An optional of CEL that holds a value or not.
pub(crate) fn optional_value(value: Option<CelValue>) -> CelValue {
    CelValue(values::optional(value.map(|value| value.0)))
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(Self::PER_REQUEST)
    }
}

impl Expression {
    /// Compiles a text that may name these variables, of any type.
    pub fn compile(text: &str, variables: &[&str]) -> Result<Self, CompileError> {
        let shapes: Vec<(&str, Shape)> = variables.iter().map(|name| (*name, Shape::DYNAMIC)).collect();
        Self::compile_typed(text, &shapes)
    }

    /// The same, with `authorizer` beside the variables.
    pub fn compile_asking(text: &str, variables: &[&str]) -> Result<Self, CompileError> {
        let mut shapes: Vec<(&str, Shape)> = variables.iter().map(|name| (*name, Shape::DYNAMIC)).collect();
        shapes.push(("authorizer", Shape::of(Type::Opaque(authorizer::AUTHORIZER))));
        Self::compile_typed(text, &shapes)
    }

    /// Compiles a text about the variable `user`: a `kubernetes.UserInfo` with `username`, `uid`, `groups` and `extra`.
    pub fn compile_on_user(text: &str) -> Result<Self, CompileError> {
        let word = || Shape { type_: Type::Text, size: 253 };
        let words = || Shape { type_: Type::List(word().into()), size: 100 };
        let fields = [
            ("username", word()),
            ("uid", word()),
            ("groups", words()),
            ("extra", Shape { type_: Type::Map(words().into()), size: 100 }),
        ];
        let fields: Fields = fields.into_iter().map(|(name, shape)| (name.to_owned(), shape)).collect();
        Self::compile_typed(text, &[("user", Shape::of(Type::Object(fields.into())))])
    }

    /// Whether the result may be true or false, as far as it is known.
    pub fn may_be_bool(&self) -> bool {
        matches!(self.result, Type::Bool | Type::Dyn)
    }

    /// Whether the result is nothing but a part of one of these variables, whose types nobody knows: upstream takes no such
    /// part for a bool.
    pub fn is_part_of(&self, variables: &[&str]) -> bool {
        check::is_part_of(&self.tree, variables)
    }

    /// Whether the result may be a text, as far as it is known.
    pub fn may_be_text(&self) -> bool {
        matches!(self.result, Type::Text | Type::Dyn)
    }

    /// Whether `variable.field` stands anywhere in the expression, be it as `variable.?field`.
    pub fn selects(&self, variable: &str, field: &str) -> bool {
        check::selects(&self.tree, variable, field)
    }

    /// The same with types, which finds wrong fields and operators early and tells the cost.
    pub(crate) fn compile_typed(text: &str, variables: &[(&str, Shape)]) -> Result<Self, CompileError> {
        guard::check(text)?;
        let tree = parse(text)?;
        let mut checked = check::check(text, &tree, variables)?;
        Ok(Self {
            text: text.to_owned(),
            patterns: std::mem::take(&mut checked.patterns),
            variables: variables.iter().map(|(name, _)| (*name).to_owned()).collect(),
            result: checked.shape.type_,
            estimated_cost: checked.cost,
            tree,
        })
    }

    /// The text it was compiled from.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the expression names a variable.
    pub fn uses(&self, variable: &str) -> bool {
        check::uses(&self.tree, variable)
    }

    /// What the types say about the result.
    pub(crate) fn result(&self) -> &Type {
        &self.result
    }

    /// The most one evaluation may cost, told from the sizes in the types.
    pub(crate) fn estimated_cost(&self) -> u64 {
        self.estimated_cost
    }

    /// Computes the value. A variable that was declared and is not given is an error where it is used.
    pub fn evaluate(
        &self,
        variables: &[(&str, &CelValue)],
        budget: &mut Budget,
    ) -> Result<CelValue, EvalError> {
        self.evaluate_with(variables, &Lists::default(), budget)
    }

    /// The same, with the variable `authorizer` and somebody who answers it.
    pub fn evaluate_asking(
        &self,
        variables: &[(&str, &CelValue)],
        authorizer: &dyn Authorizer,
        budget: &mut Budget,
    ) -> Result<CelValue, EvalError> {
        let surroundings = Surroundings { lists: &Lists::default(), authorizer: Some(authorizer) };
        self.evaluate_in(variables, surroundings, budget)
    }

    /// The same; some lists of the variables are sets or maps.
    pub(crate) fn evaluate_with(
        &self,
        variables: &[(&str, &CelValue)],
        lists: &Lists,
        budget: &mut Budget,
    ) -> Result<CelValue, EvalError> {
        self.evaluate_in(variables, Surroundings { lists, authorizer: None }, budget)
    }

    fn evaluate_in(
        &self,
        variables: &[(&str, &CelValue)],
        surroundings: Surroundings<'_>,
        budget: &mut Budget,
    ) -> Result<CelValue, EvalError> {
        let mut meter = evaluate::Meter::new(budget);
        // The libraries of `kube-cel` and `chrono`'s arithmetic are code of others with reachable panics (a division
        // of the smallest number by -1 was one); a rule that meets one fails as a rule, not as a server. Nothing shared
        // is changed in there, so nothing can be left half done.
        let result = catch_unwind(AssertUnwindSafe(|| {
            evaluate::evaluate(&self.tree, &self.patterns, variables, surroundings, &mut meter)
        }));
        let result = result.unwrap_or_else(|_| Err(EvalError::Value("internal error".to_owned())));
        meter.settle(budget, result).map(CelValue)
    }

    /// Computes a value that must be true or false.
    pub fn evaluate_bool(
        &self,
        variables: &[(&str, &CelValue)],
        budget: &mut Budget,
    ) -> Result<bool, EvalError> {
        self.evaluate_bool_with(variables, &Lists::default(), budget)
    }

    /// The same; some lists of the variables are sets or maps.
    pub(crate) fn evaluate_bool_with(
        &self,
        variables: &[(&str, &CelValue)],
        lists: &Lists,
        budget: &mut Budget,
    ) -> Result<bool, EvalError> {
        match self.evaluate_with(variables, lists, budget)?.0 {
            cel::Value::Bool(value) => Ok(value),
            other => {
                let found = values::type_name(&other);
                Err(EvalError::Value(format!("expected a result of type bool, got {found}")))
            }
        }
    }

    /// Names of the variables it was compiled for.
    pub fn variables(&self) -> &[String] {
        &self.variables
    }
}
