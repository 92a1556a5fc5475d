//! CEL expressions from decisions: nested calls and comprehensions over long lists and texts, which is where the time goes.

use crate::Source;

const LEAVES: [&str; 32] = [
    "self",
    "self.a",
    "self.b",
    "self.c",
    "self.d",
    "self.l",
    "self.s",
    "self.big",
    "self.text",
    "self.n",
    "self.u",
    "self.t",
    "oldSelf",
    "x",
    "y",
    "x",
    "1",
    "0",
    "-1",
    "2u",
    "1.5",
    "9223372036854775807",
    "'a'",
    "''",
    "'(a|a)*b'",
    "'%s %d %f'",
    "true",
    "null",
    "[]",
    "{}",
    "b'a'",
    "duration('1h')",
];
const BINARY: [&str; 16] =
    ["+", "-", "*", "/", "%", "==", "!=", "<", "<=", ">", ">=", "&&", "||", " in ", "+", "+"];
const PREFIX: [&str; 2] = ["!", "-"];
const FUNCTIONS: [&str; 32] = [
    "size",
    "string",
    "int",
    "uint",
    "double",
    "bytes",
    "bool",
    "type",
    "dyn",
    "duration",
    "timestamp",
    "quantity",
    "url",
    "ip",
    "cidr",
    "semver",
    "optional.of",
    "optional.ofNonZeroValue",
    "math.greatest",
    "math.least",
    "math.abs",
    "math.ceil",
    "math.bitNot",
    "base64.encode",
    "base64.decode",
    "sets.contains",
    "sets.equivalent",
    "sets.intersects",
    "lists.range",
    "isQuantity",
    "strings.quote",
    "has",
];
const METHODS: [&str; 40] = [
    "size",
    "startsWith",
    "endsWith",
    "contains",
    "matches",
    "find",
    "findAll",
    "replace",
    "split",
    "join",
    "substring",
    "indexOf",
    "lastIndexOf",
    "charAt",
    "lowerAscii",
    "upperAscii",
    "trim",
    "format",
    "reverse",
    "sum",
    "min",
    "max",
    "isSorted",
    "slice",
    "flatten",
    "distinct",
    "sort",
    "first",
    "last",
    "value",
    "hasValue",
    "orValue",
    "or",
    "optMap",
    "getHours",
    "getFullYear",
    "add",
    "sub",
    "isGreaterThan",
    "asInteger",
];
const MACROS: [&str; 8] =
    ["all", "exists", "exists_one", "map", "filter", "existsOne", "sortBy", "transformList"];

/// An expression; most compile.
pub(crate) fn expression(source: &mut Source<'_>, depth: usize) -> String {
    if depth > 8 || source.is_empty() {
        return source.pick(&LEAVES).to_owned();
    }
    let below = |source: &mut Source<'_>| expression(source, depth + 1);
    match source.byte() % 16 {
        0..=2 => source.pick(&LEAVES).to_owned(),
        3 | 4 => format!("({}{}{})", below(source), source.pick(&BINARY), below(source)),
        5 => format!("{}({})", source.pick(&PREFIX), below(source)),
        6 => format!("({} ? {} : {})", below(source), below(source), below(source)),
        7 => format!("[{}, {}]", below(source), below(source)),
        8 => format!("{{{}: {}}}", below(source), below(source)),
        9 => format!("{}[{}]", below(source), below(source)),
        10 => format!("{}({})", source.pick(&FUNCTIONS), below(source)),
        11 => format!("{}.{}()", below(source), source.pick(&METHODS)),
        12 => format!("{}.{}({})", below(source), source.pick(&METHODS), below(source)),
        13 => format!("{}.{}({}, {})", below(source), source.pick(&METHODS), below(source), below(source)),
        _ => {
            let (variable, list) =
                (source.pick(&["x", "y"]), source.pick(&["self.big", "self.c", "self.l", ""]));
            let list = if list.is_empty() { below(source) } else { list.to_owned() };
            format!("{list}.{}({variable}, {})", source.pick(&MACROS), below(source))
        }
    }
}
