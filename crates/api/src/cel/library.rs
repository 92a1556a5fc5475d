//! The functions of CEL and of Kubernetes' libraries: which exist, what they give, what they cost.
//!
//! [`FUNCTIONS`] is the table that the checker and the evaluator read. Functions whose meaning in the crate is wrong or
//! whose cost cannot be bounded from outside are ours ([`native`]); the others are called through `kube-cel`.
//!
//! Sources: `cel-go/common/stdlib`, `cel-go/ext`, `k8s.io/apiserver/pkg/cel/library` and its `cost.go`.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use kube_cel::KubeCelExt as _;
use kube_cel::cel::common::ast::{CallExpr, Expr};
use kube_cel::cel::{Context, ExecutionError, IdedExpr, Value};
use regex::Regex;

use super::authorizer::{self, Authorizer};
use super::evaluate::Meter;
use super::url::{self, Url};
use super::values::{self, TypeValue, as_optional, as_text, deep_size, optional, text, type_name};
use super::{EvalError, Type};
use crate::pattern;
use crate::quantity::Quantity;

/// How a function is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// `size(x)`.
    Global,
    /// `x.size()`.
    Method,
    /// `math.abs(x)`: the name holds the prefix.
    Qualified,
}

/// What a function gives.
#[derive(Clone, Copy, Debug)]
pub(super) enum Returns {
    Dyn,
    Bool,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    Time,
    Span,
    Texts,
    /// A value that has methods and nothing else, by the name of its type.
    Opaque(&'static str),
    /// The type of the target or first argument.
    Same,
}

/// What a call costs beside one unit.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cost {
    None,
    /// A walk over target and arguments.
    Walk,
    /// A unit for every character or element: each becomes a value of its own.
    Each,
    /// A search of the last argument in the target: lengths multiply.
    Search,
    /// A regular expression over the target.
    Pattern,
    /// So many units.
    Fixed(u64),
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function {
    pub(super) name: &'static str,
    pub(super) style: Style,
    /// Arguments without the target, at least and at most.
    pub(super) arguments: (usize, usize),
    pub(super) returns: Returns,
    pub(super) cost: Cost,
}

const fn global(name: &'static str, returns: Returns, cost: Cost) -> Function {
    Function { name, style: Style::Global, arguments: (1, 1), returns, cost }
}
const fn method(name: &'static str, low: usize, high: usize, returns: Returns, cost: Cost) -> Function {
    Function { name, style: Style::Method, arguments: (low, high), returns, cost }
}
const fn qualified(name: &'static str, low: usize, high: usize, returns: Returns, cost: Cost) -> Function {
    Function { name, style: Style::Qualified, arguments: (low, high), returns, cost }
}

/// Every function an expression may call. Macros and special forms are not functions.
#[rustfmt::skip]
pub(super) static FUNCTIONS: &[Function] = &[
    global("size", Returns::Int, Cost::None),
    global("int", Returns::Int, Cost::None),
    global("uint", Returns::Uint, Cost::None),
    global("double", Returns::Double, Cost::None),
    global("string", Returns::Text, Cost::Walk),
    global("bytes", Returns::Bytes, Cost::Walk),
    global("bool", Returns::Bool, Cost::None),
    global("dyn", Returns::Dyn, Cost::None),
    global("type", Returns::Dyn, Cost::None),
    global("timestamp", Returns::Time, Cost::None),
    global("duration", Returns::Span, Cost::None),
    global("quantity", Returns::Dyn, Cost::Walk),
    global("isQuantity", Returns::Bool, Cost::Walk),
    global("url", Returns::Dyn, Cost::Walk),
    global("isURL", Returns::Bool, Cost::Walk),
    global("ip", Returns::Dyn, Cost::Walk),
    global("isIP", Returns::Bool, Cost::Walk),
    global("cidr", Returns::Dyn, Cost::Walk),
    global("isCIDR", Returns::Bool, Cost::Walk),
    Function { arguments: (1, 2), ..global("semver", Returns::Dyn, Cost::Walk) },
    Function { arguments: (1, 2), ..global("isSemver", Returns::Bool, Cost::Walk) },

    method("size", 0, 0, Returns::Int, Cost::None),
    method("contains", 1, 1, Returns::Bool, Cost::Search),
    method("startsWith", 1, 1, Returns::Bool, Cost::Walk),
    method("endsWith", 1, 1, Returns::Bool, Cost::Walk),
    method("matches", 1, 1, Returns::Bool, Cost::Pattern),
    Function { arguments: (2, 2), ..global("matches", Returns::Bool, Cost::Pattern) },
    method("find", 1, 1, Returns::Text, Cost::Pattern),
    method("findAll", 1, 2, Returns::Texts, Cost::Pattern),
    method("charAt", 1, 1, Returns::Text, Cost::Walk),
    method("indexOf", 1, 2, Returns::Int, Cost::Search),
    method("lastIndexOf", 1, 2, Returns::Int, Cost::Search),
    method("lowerAscii", 0, 0, Returns::Text, Cost::Walk),
    method("upperAscii", 0, 0, Returns::Text, Cost::Walk),
    method("replace", 2, 3, Returns::Text, Cost::Walk),
    method("split", 1, 2, Returns::Texts, Cost::Each),
    method("substring", 1, 2, Returns::Text, Cost::Walk),
    method("trim", 0, 0, Returns::Text, Cost::Walk),
    method("join", 0, 1, Returns::Text, Cost::Walk),
    method("reverse", 0, 0, Returns::Same, Cost::Walk),
    method("format", 1, 1, Returns::Text, Cost::Walk),
    qualified("strings.quote", 1, 1, Returns::Text, Cost::Walk),

    method("isSorted", 0, 0, Returns::Bool, Cost::Each),
    method("sum", 0, 0, Returns::Dyn, Cost::Each),
    method("min", 0, 0, Returns::Dyn, Cost::Each),
    method("max", 0, 0, Returns::Dyn, Cost::Each),
    method("slice", 2, 2, Returns::Same, Cost::Each),
    method("sort", 0, 0, Returns::Same, Cost::Each),
    method("flatten", 0, 1, Returns::Dyn, Cost::Each),
    method("distinct", 0, 0, Returns::Same, Cost::Each),
    method("first", 0, 0, Returns::Dyn, Cost::Walk),
    method("last", 0, 0, Returns::Dyn, Cost::Walk),
    qualified("lists.range", 1, 1, Returns::Dyn, Cost::None),
    qualified("sets.contains", 2, 2, Returns::Bool, Cost::Search),
    qualified("sets.equivalent", 2, 2, Returns::Bool, Cost::Search),
    qualified("sets.intersects", 2, 2, Returns::Bool, Cost::Search),

    method("getScheme", 0, 0, Returns::Text, Cost::Walk),
    method("getHost", 0, 0, Returns::Text, Cost::Walk),
    method("getHostname", 0, 0, Returns::Text, Cost::Walk),
    method("getPort", 0, 0, Returns::Text, Cost::Walk),
    method("getEscapedPath", 0, 0, Returns::Text, Cost::Walk),
    method("getQuery", 0, 0, Returns::Dyn, Cost::Walk),

    qualified("ip.isCanonical", 1, 1, Returns::Bool, Cost::Walk),
    method("family", 0, 0, Returns::Int, Cost::None),
    method("isUnspecified", 0, 0, Returns::Bool, Cost::None),
    method("isLoopback", 0, 0, Returns::Bool, Cost::None),
    method("isLinkLocalMulticast", 0, 0, Returns::Bool, Cost::None),
    method("isLinkLocalUnicast", 0, 0, Returns::Bool, Cost::None),
    method("isGlobalUnicast", 0, 0, Returns::Bool, Cost::None),
    method("containsIP", 1, 1, Returns::Bool, Cost::Walk),
    method("containsCIDR", 1, 1, Returns::Bool, Cost::Walk),
    method("prefixLength", 0, 0, Returns::Int, Cost::None),
    method("masked", 0, 0, Returns::Dyn, Cost::None),
    method("ip", 0, 0, Returns::Dyn, Cost::None),
    method("string", 0, 0, Returns::Text, Cost::None),

    method("major", 0, 0, Returns::Int, Cost::None),
    method("minor", 0, 0, Returns::Int, Cost::None),
    method("patch", 0, 0, Returns::Int, Cost::None),
    method("isGreaterThan", 1, 1, Returns::Bool, Cost::None),
    method("isLessThan", 1, 1, Returns::Bool, Cost::None),
    method("compareTo", 1, 1, Returns::Int, Cost::None),
    method("isInteger", 0, 0, Returns::Bool, Cost::None),
    method("asInteger", 0, 0, Returns::Int, Cost::None),
    method("asApproximateFloat", 0, 0, Returns::Double, Cost::None),
    method("sign", 0, 0, Returns::Int, Cost::None),
    method("add", 1, 1, Returns::Dyn, Cost::None),
    method("sub", 1, 1, Returns::Dyn, Cost::None),

    qualified("format.named", 1, 1, Returns::Dyn, Cost::None),
    qualified("format.dns1123Label", 0, 0, Returns::Dyn, Cost::None),
    qualified("format.dns1123Subdomain", 0, 0, Returns::Dyn, Cost::None),
    qualified("format.dns1035Label", 0, 0, Returns::Dyn, Cost::None),
    qualified("format.dns1123LabelPrefix", 0, 0, Returns::Dyn, Cost::None),
    qualified("format.dns1123SubdomainPrefix", 0, 0, Returns::Dyn, Cost::None),
    qualified("format.dns1035LabelPrefix", 0, 0, Returns::Dyn, Cost::None),
    qualified("format.qualifiedName", 0, 0, Returns::Dyn, Cost::None),
    qualified("format.labelValue", 0, 0, Returns::Dyn, Cost::None),
    qualified("format.uri", 0, 0, Returns::Dyn, Cost::None),
    qualified("format.uuid", 0, 0, Returns::Dyn, Cost::None),
    qualified("format.byte", 0, 0, Returns::Dyn, Cost::None),
    qualified("format.date", 0, 0, Returns::Dyn, Cost::None),
    qualified("format.datetime", 0, 0, Returns::Dyn, Cost::None),
    method("validate", 1, 1, Returns::Dyn, Cost::Walk),

    qualified("math.greatest", 1, 32, Returns::Dyn, Cost::Walk),
    qualified("math.least", 1, 32, Returns::Dyn, Cost::Walk),
    qualified("math.ceil", 1, 1, Returns::Double, Cost::None),
    qualified("math.floor", 1, 1, Returns::Double, Cost::None),
    qualified("math.round", 1, 1, Returns::Double, Cost::None),
    qualified("math.trunc", 1, 1, Returns::Double, Cost::None),
    qualified("math.sqrt", 1, 1, Returns::Double, Cost::None),
    qualified("math.abs", 1, 1, Returns::Same, Cost::None),
    qualified("math.sign", 1, 1, Returns::Same, Cost::None),
    qualified("math.isInf", 1, 1, Returns::Bool, Cost::None),
    qualified("math.isNaN", 1, 1, Returns::Bool, Cost::None),
    qualified("math.isFinite", 1, 1, Returns::Bool, Cost::None),
    qualified("math.bitAnd", 2, 2, Returns::Same, Cost::None),
    qualified("math.bitOr", 2, 2, Returns::Same, Cost::None),
    qualified("math.bitXor", 2, 2, Returns::Same, Cost::None),
    qualified("math.bitNot", 1, 1, Returns::Same, Cost::None),
    qualified("math.bitShiftLeft", 2, 2, Returns::Same, Cost::None),
    qualified("math.bitShiftRight", 2, 2, Returns::Same, Cost::None),
    qualified("base64.encode", 1, 1, Returns::Text, Cost::Walk),
    qualified("base64.decode", 1, 1, Returns::Bytes, Cost::Walk),

    qualified("optional.none", 0, 0, Returns::Dyn, Cost::None),
    qualified("optional.of", 1, 1, Returns::Dyn, Cost::None),
    qualified("optional.ofNonZeroValue", 1, 1, Returns::Dyn, Cost::None),
    method("value", 0, 0, Returns::Dyn, Cost::None),
    method("hasValue", 0, 0, Returns::Bool, Cost::None),
    method("or", 1, 1, Returns::Dyn, Cost::None),
    method("orValue", 1, 1, Returns::Dyn, Cost::None),

    // Upstream counts a unit for each, because its questions share their texts; ours are copied.
    method("path", 1, 1, Returns::Opaque(authorizer::PATH), Cost::Walk),
    method("group", 1, 1, Returns::Opaque(authorizer::GROUP), Cost::Walk),
    method("serviceAccount", 2, 2, Returns::Opaque(authorizer::AUTHORIZER), Cost::Walk),
    method("resource", 1, 1, Returns::Opaque(authorizer::RESOURCE), Cost::Walk),
    method("subresource", 1, 1, Returns::Opaque(authorizer::RESOURCE), Cost::Walk),
    method("namespace", 1, 1, Returns::Opaque(authorizer::RESOURCE), Cost::Walk),
    method("name", 1, 1, Returns::Opaque(authorizer::RESOURCE), Cost::Walk),
    method("fieldSelector", 1, 1, Returns::Opaque(authorizer::RESOURCE), Cost::Walk),
    method("labelSelector", 1, 1, Returns::Opaque(authorizer::RESOURCE), Cost::Walk),
    method("check", 1, 1, Returns::Opaque(authorizer::DECISION), Cost::Fixed(authorizer::CHECK_COST)),
    method("allowed", 0, 0, Returns::Bool, Cost::None),
    method("reason", 0, 0, Returns::Text, Cost::Walk),
    method("errored", 0, 0, Returns::Bool, Cost::None),
    method("error", 0, 0, Returns::Text, Cost::Walk),

    method("getFullYear", 0, 1, Returns::Int, Cost::None),
    method("getMonth", 0, 1, Returns::Int, Cost::None),
    method("getDate", 0, 1, Returns::Int, Cost::None),
    method("getDayOfMonth", 0, 1, Returns::Int, Cost::None),
    method("getDayOfWeek", 0, 1, Returns::Int, Cost::None),
    method("getDayOfYear", 0, 1, Returns::Int, Cost::None),
    method("getHours", 0, 1, Returns::Int, Cost::None),
    method("getMinutes", 0, 1, Returns::Int, Cost::None),
    method("getSeconds", 0, 1, Returns::Int, Cost::None),
    method("getMilliseconds", 0, 1, Returns::Int, Cost::None),
];

/// Finds a function; `None` when there is none of that name and style.
pub(super) fn find(name: &str, style: Style) -> Option<&'static Function> {
    static INDEX: LazyLock<HashMap<&'static str, Vec<&'static Function>>> = LazyLock::new(|| {
        let mut index: HashMap<_, Vec<_>> = HashMap::new();
        FUNCTIONS.iter().for_each(|function| index.entry(function.name).or_default().push(function));
        index
    });
    INDEX.get(name)?.iter().find(|function| function.style == style).copied()
}

impl Returns {
    pub(super) fn type_(self, target: Option<&Type>) -> Type {
        match self {
            Self::Dyn => Type::Dyn,
            Self::Bool => Type::Bool,
            Self::Int => Type::Int,
            Self::Uint => Type::Uint,
            Self::Double => Type::Double,
            Self::Text => Type::Text,
            Self::Bytes => Type::Bytes,
            Self::Time => Type::Time,
            Self::Span => Type::Span,
            Self::Texts => Type::List(Arc::new(super::Shape::of(Type::Text))),
            Self::Opaque(name) => Type::Opaque(name),
            Self::Same => target.cloned().unwrap_or(Type::Dyn),
        }
    }
}

/// A call whose arguments are computed.
pub(super) struct Call<'a> {
    pub(super) function: &'static Function,
    pub(super) target: Option<Value>,
    pub(super) args: Vec<Value>,
    pub(super) patterns: &'a BTreeMap<String, Regex>,
    pub(super) authorizer: Option<&'a dyn Authorizer>,
}

type Answer = Result<Value, EvalError>;

fn fail(message: impl Into<String>) -> EvalError {
    EvalError::Value(message.into())
}

pub(super) fn no_overload() -> EvalError {
    fail("no such overload")
}

/// A unit is about a tenth of a microsecond.
const CHARACTERS_COUNTED_FOR_A_UNIT: u64 = 1000;

/// Pays for a call and makes it.
pub(super) fn call(call: Call<'_>, meter: &mut Meter) -> Answer {
    pay(&call, meter)?;
    match native(&call, meter)? {
        Some(value) => Ok(value),
        None => foreign(call, meter),
    }
}

/// Sizes multiply by a tenth each, as a search does.
fn tenth(size: u64) -> u64 {
    size.div_ceil(10)
}

fn pay(call: &Call<'_>, meter: &mut Meter) -> Result<(), EvalError> {
    meter.pay(1)?;
    // Asking for a size walks over the value, so that it is only asked for where it is paid for.
    match call.function.cost {
        Cost::None => return Ok(()),
        Cost::Fixed(units) => return meter.pay(units),
        _ => {}
    }
    let limit = meter.left().saturating_mul(10);
    let sizes: Vec<u64> = call.target.iter().chain(&call.args).map(|value| deep_size(value, limit)).collect();
    let all: u64 = sizes.iter().sum();
    let first = sizes.first().copied().unwrap_or(0);
    let second = sizes.get(1).copied().unwrap_or(0);
    let cost = match call.function.cost {
        Cost::None | Cost::Fixed(_) => 0,
        Cost::Walk => tenth(all),
        Cost::Each => all,
        Cost::Search => tenth(first).saturating_mul(tenth(second)).saturating_add(tenth(all)),
        // The pattern's length stands for the size of its program, as upstream (`regexStringLengthCostFactor`).
        Cost::Pattern => tenth(first + 1).saturating_mul(second.div_ceil(4)),
    };
    meter.pay(cost)
}

/// The functions that are ours; nothing when the crate's serves.
fn native(call: &Call<'_>, meter: &mut Meter) -> Result<Option<Value>, EvalError> {
    let subject = call.target.as_ref().or(call.args.first()).unwrap_or(&Value::Null);
    let argument = |index: usize| call.args.get(index);
    let style = call.function.style;
    Ok(Some(match (call.function.name, subject) {
        ("size", value) => {
            // Upstream counts a unit however long the text is.
            if let Value::String(text) = value {
                meter.pay(text.len() as u64 / CHARACTERS_COUNTED_FOR_A_UNIT)?;
            }
            size(value)?
        }
        ("dyn", value) => value.clone(),
        ("type", value) => Value::Opaque(Arc::new(TypeValue(type_name(value)))),
        ("bool", Value::Bool(value)) => Value::Bool(*value),
        ("bool", Value::String(value)) => match value.as_str() {
            "true" | "True" | "TRUE" | "t" | "1" => Value::Bool(true),
            "false" | "False" | "FALSE" | "f" | "0" => Value::Bool(false),
            other => return Err(fail(format!("type conversion error from '{other}' to 'bool'"))),
        },
        ("bool", _) => return Err(no_overload()),
        ("int", Value::Timestamp(time)) => Value::Int(time.timestamp()),
        ("int", Value::Duration(span)) => Value::Int(span.num_seconds()),
        ("string", value) if style == Style::Global && !matches!(value, Value::Opaque(_)) => {
            text(as_text(value).ok_or_else(no_overload)?)
        }
        ("bytes", Value::Bytes(bytes)) => Value::Bytes(Arc::clone(bytes)),
        ("timestamp", Value::Timestamp(time)) => Value::Timestamp(*time),
        ("timestamp", Value::Int(seconds)) => {
            let time = jiff::Timestamp::from_second(*seconds).map_err(|_| fail("timestamp overflow"))?;
            values::timestamp(&time.to_string()).ok_or_else(|| fail("timestamp overflow"))?
        }
        ("timestamp", Value::String(value)) => {
            values::timestamp(value).ok_or_else(|| fail(format!("parsing time \"{value}\"")))?
        }
        ("duration", Value::Duration(span)) => Value::Duration(*span),
        ("contains", Value::String(whole)) => Value::Bool(whole.contains(string(argument(0))?.as_str())),
        (
            "contains" | "startsWith" | "endsWith" | "matches" | "find" | "findAll",
            Value::List(_) | Value::Map(_),
        ) => {
            return Err(no_overload());
        }
        ("matches", Value::String(whole)) => {
            let pattern = call.args.last();
            Value::Bool(with_pattern(call, string(pattern)?, meter, |regex| regex.is_match(whole))?)
        }
        ("find", Value::String(whole)) => {
            let found = with_pattern(call, string(argument(0))?, meter, |regex| {
                regex.find(whole).map_or("", |found| found.as_str()).to_owned()
            })?;
            text(found)
        }
        ("findAll", Value::String(whole)) => {
            let limit = match argument(1) {
                Some(Value::Int(limit)) if *limit >= 0 => usize::try_from(*limit).unwrap_or(usize::MAX),
                _ => usize::MAX,
            };
            meter.pay(whole.len() as u64)?;
            let found = with_pattern(call, string(argument(0))?, meter, |regex| {
                regex.find_iter(whole).take(limit).map(|found| text(found.as_str())).collect()
            })?;
            Value::List(Arc::new(found))
        }
        // Written between all characters, a text multiplies.
        ("replace", Value::String(whole)) => {
            let new = string(argument(1))?.len() as u64;
            let old = string(argument(0))?.len().max(1) as u64;
            meter.pay(tenth((whole.len() as u64 / old + 1).saturating_mul(new)))?;
            return Ok(None);
        }
        ("join", Value::List(items)) => {
            if let Some(separator) = argument(0) {
                meter
                    .pay(tenth((items.len() as u64).saturating_mul(string(Some(separator))?.len() as u64)))?;
            }
            if items.iter().any(|item| !matches!(item, Value::String(_))) {
                return Err(no_overload());
            }
            return Ok(None);
        }
        ("format", Value::String(pattern)) => {
            // `%.65535f` writes as many digits as it says.
            let digits = |part: &str| part.bytes().take_while(u8::is_ascii_digit).count();
            if pattern.split("%.").skip(1).any(|part| digits(part) > 2) {
                return Err(fail("precision out of range in format string"));
            }
            return Ok(None);
        }
        ("lists.range", Value::Int(count)) => {
            meter.pay(u64::try_from(*count).unwrap_or(0))?;
            return Ok(None);
        }
        ("sort" | "distinct", Value::List(items)) => {
            // The crate compares each with each.
            let count = items.len() as u64;
            meter.pay(count.saturating_mul(count) / 10)?;
            return Ok(None);
        }
        // The crate multiplies without looking, so it only sees what the API itself takes for a quantity.
        ("quantity", Value::String(value)) => match value.parse::<Quantity>() {
            Ok(quantity) => {
                return library("quantity", Style::Global, None, vec![text(quantity.to_string())]).map(Some);
            }
            Err(_) => {
                return Err(fail(
                    "quantities must match the regular expression \
                '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
                ));
            }
        },
        ("isQuantity", Value::String(value)) => Value::Bool(value.parse::<Quantity>().is_ok()),
        ("url", Value::String(value)) => {
            let failed = |why| fail(format!("URL parse error during conversion from string: {why}"));
            Value::Opaque(Arc::new(Url::read(value).map_err(failed)?))
        }
        ("isURL", Value::String(value)) => Value::Bool(url::is_url(value)),
        ("url" | "isURL", _) => return Err(no_overload()),
        ("getScheme" | "getHost" | "getHostname" | "getPort" | "getEscapedPath" | "getQuery", value) => {
            of_url(call.function.name, as_url(value).ok_or_else(no_overload)?)
        }
        // An optional, because a name may be unknown.
        ("format.named", Value::String(_)) => {
            let format = library("format.named", Style::Qualified, None, call.args.clone())?;
            optional((format != Value::Null).then_some(format))
        }
        (method, target) if authorizer::METHODS.iter().any(|(name, _)| *name == method) => {
            return authorizer::call(method, target, &call.args, call.authorizer)?
                .ok_or_else(no_overload)
                .map(Some);
        }
        ("optional.none", _) => optional(None),
        ("optional.of", value) => optional(Some(value.clone())),
        ("optional.ofNonZeroValue", value) => optional((!value.is_zero()).then(|| value.clone())),
        ("hasValue", value) => Value::Bool(as_optional(value).ok_or_else(no_overload)?.value().is_some()),
        ("value", value) => {
            let inner = as_optional(value).ok_or_else(no_overload)?.value();
            inner.cloned().ok_or_else(|| fail("optional.none() dereference"))?
        }
        ("or", value) => match as_optional(value).ok_or_else(no_overload)?.value() {
            Some(_) => value.clone(),
            None => argument(0).cloned().unwrap_or(Value::Null),
        },
        ("orValue", value) => match as_optional(value).ok_or_else(no_overload)?.value() {
            Some(inner) => inner.clone(),
            None => argument(0).cloned().unwrap_or(Value::Null),
        },
        (name, Value::Timestamp(time)) if name.starts_with("get") && argument(0).is_some() => {
            let zone = string(argument(0))?;
            let offset = zone_offset(zone, time.timestamp())
                .ok_or_else(|| fail(format!("unknown time zone {zone}")))?;
            let span = values::duration(&offset).ok_or_else(|| fail("unknown time zone"))?;
            let local = (Value::Timestamp(*time) + span).map_err(explain)?;
            return library(name, Style::Method, Some(local), Vec::new()).map(Some);
        }
        _ => return Ok(None),
    }))
}

fn as_url(value: &Value) -> Option<&Url> {
    match value {
        Value::Opaque(opaque) => opaque.downcast_ref::<Url>(),
        _ => None,
    }
}

/// A part of a URL.
fn of_url(part: &str, url: &Url) -> Value {
    match part {
        "getScheme" => text(url.scheme.as_str()),
        "getHost" => text(url.host.as_str()),
        "getHostname" => text(url.hostname()),
        "getPort" => text(url.port()),
        "getEscapedPath" => text(url.escaped_path()),
        _ => values::map(
            url.query()
                .into_iter()
                .map(|(key, found)| (key, Value::List(Arc::new(found.into_iter().map(text).collect())))),
        ),
    }
}

fn string(value: Option<&Value>) -> Result<&Arc<String>, EvalError> {
    match value {
        Some(Value::String(text)) => Ok(text),
        _ => Err(no_overload()),
    }
}

/// Characters of a text, bytes, elements, or keys.
fn size(value: &Value) -> Answer {
    let size = match value {
        Value::String(text) => text.chars().count(),
        Value::Bytes(bytes) => bytes.len(),
        Value::List(items) => items.len(),
        Value::Map(map) => map.map.len(),
        _ => return Err(no_overload()),
    };
    Ok(Value::Int(i64::try_from(size).unwrap_or(i64::MAX)))
}

/// How far the clocks of a zone are ahead of UTC at a time, as a duration: `UTC`, `+02:00`, or the name of a place in the
/// time zone database, which is part of the program.
fn zone_offset(zone: &str, seconds: i64) -> Option<String> {
    if matches!(zone, "UTC" | "Z" | "") {
        return Some("0s".to_owned());
    }
    let Some((hours, minutes)) = zone.split_once(':') else {
        let place = jiff::tz::TimeZone::get(zone).ok()?;
        // Names are found in any case; upstream has them in their own only.
        place.iana_name().filter(|name| *name == zone)?;
        let offset = place.to_offset(jiff::Timestamp::from_second(seconds).ok()?);
        return Some(format!("{}s", offset.seconds()));
    };
    let (sign, hours) = match hours.as_bytes().first()? {
        b'-' => ("-", &hours[1..]),
        b'+' => ("", &hours[1..]),
        _ => ("", hours),
    };
    let small = |text: &str, most: u8| text.parse::<u8>().ok().filter(|n| *n <= most && text.len() == 2);
    Some(format!("{sign}{}h{}m", small(hours, 23)?, small(minutes, 59)?))
}

/// Runs a pattern; one that is not written in the expression itself is compiled here and paid for.
fn with_pattern<T>(
    call: &Call<'_>,
    pattern: &str,
    meter: &mut Meter,
    run: impl FnOnce(&Regex) -> T,
) -> Result<T, EvalError> {
    if let Some(regex) = call.patterns.get(pattern) {
        return Ok(run(regex));
    }
    meter.pay(500 + 10 * pattern.len() as u64)?;
    let regex = pattern::compile(pattern).map_err(fail)?;
    Ok(run(&regex))
}

/// Calls a function of the crate, and pays for the copies it makes of what it is given.
fn foreign(call: Call<'_>, meter: &mut Meter) -> Answer {
    let limit = meter.left().saturating_mul(10);
    let copied: u64 = call.target.iter().chain(&call.args).map(|value| deep_size(value, limit)).sum();
    meter.pay(tenth(copied))?;
    library(call.function.name, call.function.style, call.target, call.args)
}

/// The functions of the crate, registered once.
static LIBRARY: LazyLock<Context<'static>> = LazyLock::new(|| Context::default().with_all());

fn library(name: &str, style: Style, target: Option<Value>, args: Vec<Value>) -> Answer {
    // The crate calls functions on expressions; so the values become variables of a small one.
    let mut scope = LIBRARY.new_inner_scope();
    let ident = |name: String| IdedExpr { id: 0, expr: Expr::Ident(name) };
    let (prefix, func_name) = match (style, name.split_once('.')) {
        (Style::Qualified, Some((prefix, name))) => (Some(prefix), name),
        _ => (None, name),
    };
    let mut call = CallExpr { func_name: func_name.to_owned(), target: None, args: Vec::new() };
    if let Some(target) = target {
        scope.add_variable_from_value("@target", target);
        call.target = Some(Box::new(ident("@target".to_owned())));
    } else if let Some(prefix) = prefix {
        call.target = Some(Box::new(ident(prefix.to_owned())));
    }
    for (index, value) in args.into_iter().enumerate() {
        let name = format!("@{index}");
        scope.add_variable_from_value(name.clone(), value);
        call.args.push(ident(name));
    }
    let call = IdedExpr { id: 0, expr: Expr::Call(call) };
    Value::resolve(&call, &scope).map_err(explain)
}

/// The crate's errors in the words of `cel-go`, without the values: an object may hold secrets, and be large.
pub(super) fn explain(error: ExecutionError) -> EvalError {
    fail(match error {
        ExecutionError::NoSuchKey(key) => format!("no such key: {key}"),
        ExecutionError::UndeclaredReference(name) => format!("no such attribute(s): {name}"),
        ExecutionError::DivisionByZero(_) => "division by zero".to_owned(),
        ExecutionError::RemainderByZero(_) => "modulus by zero".to_owned(),
        ExecutionError::Overflow(..) => "integer overflow".to_owned(),
        ExecutionError::IndexOutOfBounds(_) => "index out of bounds".to_owned(),
        ExecutionError::FunctionError { function, message } => {
            let short: String = message.chars().take(200).collect();
            format!("{function}: {short}")
        }
        _ => "no such overload".to_owned(),
    })
}
