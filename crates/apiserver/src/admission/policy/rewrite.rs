//! What policies may write and our CEL does not know, in terms of what it knows.
//!
//! - `variables.NAME` becomes a variable of its own, so that only those are computed that an expression names.
//! - `Object.spec{replicas: 1}` and `JSONPatch{op: "add"}` become maps: the types they name are checked when the result
//!   is merged into the object and conformed to its schema.
//! - `jsonpatch.escapeKey(x)` becomes two replacements.
//!
//! This is a walk over tokens, not over text: strings and comments stay as they are.

/// Identifiers of variables begin with this.
const VARIABLE: &str = "__variables__";

/// The identifier that stands for `variables.NAME`.
pub(super) fn identifier(name: &str) -> String {
    format!("{VARIABLE}{name}")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Identifier(&'a str),
    Sign(char),
    /// Strings, numbers, white space and comments.
    Other(&'a str),
    /// White space and comments.
    Space(&'a str),
}

/// The expression in terms of our CEL.
pub(super) fn rewrite(text: &str) -> String {
    rewrite_tokens(&tokens(text))
}

fn rewrite_tokens(tokens: &[Token<'_>]) -> String {
    let mut out = Output::default();
    out.walk(tokens);
    out.text
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    /// A struct whose next token is the name of a field.
    Name,
    /// A struct after the name of a field.
    Value,
    /// Any other bracket.
    Other,
}

#[derive(Default)]
struct Output {
    text: String,
    open: Vec<Open>,
}

impl Output {
    fn walk(&mut self, tokens: &[Token<'_>]) {
        let (mut at, mut after_dot) = (0, false);
        while let Some(token) = tokens.get(at) {
            at += 1;
            match token {
                Token::Space(text) | Token::Other(text) => self.text.push_str(text),
                Token::Sign(sign) => self.sign(*sign),
                Token::Identifier(name) if self.open.last() == Some(&Open::Name) => {
                    self.text.push_str(&format!("\"{}\"", unescape(name)));
                    if let Some(open) = self.open.last_mut() {
                        *open = Open::Value;
                    }
                }
                Token::Identifier(name) => {
                    let rest = &tokens[at..];
                    at += if after_dot { self.plain(name) } else { self.identifier(name, rest) };
                }
            }
            if !matches!(token, Token::Space(_)) {
                after_dot = *token == Token::Sign('.');
            }
        }
    }

    fn sign(&mut self, sign: char) {
        match sign {
            '(' | '[' | '{' => self.open.push(Open::Other),
            ')' | ']' | '}' => {
                self.open.pop();
            }
            ',' => {
                if let Some(open) = self.open.last_mut().filter(|open| **open == Open::Value) {
                    *open = Open::Name;
                }
            }
            _ => {}
        }
        self.text.push(sign);
    }

    fn plain(&mut self, name: &str) -> usize {
        self.text.push_str(name);
        0
    }

    /// Writes an identifier; how many of the following tokens it took with it.
    fn identifier(&mut self, name: &str, rest: &[Token<'_>]) -> usize {
        match name {
            "variables" => match field(rest) {
                Some((variable, taken)) => {
                    self.text.push_str(&identifier(variable));
                    taken
                }
                None => self.plain(name),
            },
            "Object" | "JSONPatch" => match struct_start(rest) {
                Some(taken) => {
                    self.text.push('{');
                    self.open.push(Open::Name);
                    taken
                }
                None => self.plain(name),
            },
            "jsonpatch" => match escape_key(rest) {
                Some((argument, taken)) => {
                    let argument = rewrite_tokens(argument);
                    let call = format!("({argument}).replace(\"~\", \"~0\").replace(\"/\", \"~1\")");
                    self.text.push_str(&call);
                    taken
                }
                None => self.plain(name),
            },
            _ => self.plain(name),
        }
    }
}

/// `.NAME` at the beginning of the tokens, and how many they are.
fn field<'a>(tokens: &[Token<'a>]) -> Option<(&'a str, usize)> {
    let mut dot = false;
    for (i, token) in tokens.iter().enumerate() {
        match token {
            Token::Space(_) => {}
            Token::Sign('.') if !dot => dot = true,
            Token::Identifier(name) if dot => return Some((name, i + 1)),
            _ => return None,
        }
    }
    None
}

/// `.a.b{` at the beginning of the tokens: how many they are.
fn struct_start(tokens: &[Token<'_>]) -> Option<usize> {
    let mut taken = 0;
    while let Some((_, more)) = tokens.get(taken..).and_then(field) {
        taken += more;
    }
    let brace = tokens.get(taken..)?.iter().position(|token| !matches!(token, Token::Space(_)))?;
    (tokens.get(taken + brace) == Some(&Token::Sign('{'))).then_some(taken + brace + 1)
}

/// `.escapeKey(ARGUMENT)` at the beginning of the tokens: the argument, and how many they are.
fn escape_key<'a, 'b>(tokens: &'b [Token<'a>]) -> Option<(&'b [Token<'a>], usize)> {
    let (name, taken) = field(tokens)?;
    let (argument, more) = parenthesised(tokens.get(taken..)?)?;
    (name == "escapeKey").then_some((argument, taken + more))
}

/// `(…)` at the beginning of the tokens: what is inside, and how many tokens there are with the brackets.
fn parenthesised<'a, 'b>(tokens: &'b [Token<'a>]) -> Option<(&'b [Token<'a>], usize)> {
    if tokens.first() != Some(&Token::Sign('(')) {
        return None;
    }
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate() {
        depth += step(token);
        if depth == 0 {
            return Some((tokens.get(1..i)?, i + 1));
        }
    }
    None
}

/// How much deeper a token leads into brackets.
fn step(token: &Token<'_>) -> i32 {
    match token {
        Token::Sign('(' | '[' | '{') => 1,
        Token::Sign(')' | ']' | '}') => -1,
        _ => 0,
    }
}

/// Names of fields that are no identifiers are written with escapes (KEP-2876).
fn unescape(name: &str) -> String {
    let inner = name.strip_prefix("__").and_then(|name| name.strip_suffix("__"));
    if let Some(inner) = inner.filter(|inner| sampan_api::cel::RESERVED.contains(inner)) {
        return inner.to_owned();
    }
    name.replace("__dot__", ".")
        .replace("__dash__", "-")
        .replace("__slash__", "/")
        .replace("__underscores__", "__")
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = length_of(rest, first).clamp(first.len_utf8(), rest.len());
        let (token, after) = rest.split_at(length);
        tokens.push(match first {
            c if c.is_whitespace() || token.starts_with("//") => Token::Space(token),
            c if token.ends_with(['"', '\'']) || c.is_ascii_digit() => Token::Other(token),
            c if is_name(c) => Token::Identifier(token),
            c if token.len() == c.len_utf8() => Token::Sign(c),
            _ => Token::Other(token),
        });
        rest = after;
    }
    tokens
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Bytes of the token at the beginning of a text.
fn length_of(text: &str, first: char) -> usize {
    let until = |end: &dyn Fn(char) -> bool| text.find(|c: char| end(c)).unwrap_or(text.len());
    if first.is_whitespace() {
        return until(&|c| !c.is_whitespace());
    }
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    let prefix = text.find(|c: char| !matches!(c, 'r' | 'R' | 'b' | 'B')).unwrap_or(text.len()).min(2);
    if let Some(body) = text.get(prefix..).filter(|body| body.starts_with(['"', '\''])) {
        let raw = text[..prefix].contains(['r', 'R']);
        return prefix + string_length(body, raw);
    }
    if is_name(first) { until(&|c| !is_name(c)) } else { first.len_utf8() }
}

/// Bytes of a string with its quotes.
fn string_length(text: &str, raw: bool) -> usize {
    let quote = &text[..1];
    let triple = quote.repeat(3);
    let end = if text.starts_with(&triple) { triple.as_str() } else { quote };
    let mut at = end.len();
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with(end) {
            return at + end.len();
        }
        let skip = if rest.starts_with('\\') && !raw { 2 } else { 1 };
        at += rest.chars().take(skip).map(char::len_utf8).sum::<usize>();
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_rewritten() {
        let rows = [
            ("object.spec.replicas <= 5", "object.spec.replicas <= 5"),
            ("variables.a + variables . b", "__variables__a + __variables__b"),
            ("object.variables.a", "object.variables.a"),
            ("'variables.a' + \"it's variables.a\"", "'variables.a' + \"it's variables.a\""),
            ("r'\\' + variables.a", "r'\\' + __variables__a"),
            ("'\\'variables.a'", "'\\'variables.a'"),
            ("'''a'b variables.x''' + variables.y", "'''a'b variables.x''' + __variables__y"),
            ("true // variables.a\n&& variables.a", "true // variables.a\n&& __variables__a"),
            ("Object{spec: Object.spec{replicas: 1}}", "{\"spec\": {\"replicas\": 1}}"),
            (
                "[JSONPatch{op: \"add\", path: \"/x\", value: {\"a\": 1, 'b': [1, 2]}}]",
                "[{\"op\": \"add\", \"path\": \"/x\", \"value\": {\"a\": 1, 'b': [1, 2]}}]",
            ),
            ("Object{?spec: optional.none()}", "{?\"spec\": optional.none()}"),
            ("Object{__namespace__: a ? b : c, x__dash__y: 1}", "{\"namespace\": a ? b : c, \"x-y\": 1}"),
            ("Object{}", "{}"),
            ("Object.spec", "Object.spec"),
            (
                "'/labels/' + jsonpatch.escapeKey(variables.k(1))",
                "'/labels/' + (__variables__k(1)).replace(\"~\", \"~0\").replace(\"/\", \"~1\")",
            ),
            ("authorizer.group(variables.g)", "authorizer.group(__variables__g)"),
            ("\"unfinished", "\"unfinished"),
            ("variables.", "variables."),
            ("ä + 'ö\\", "ä + 'ö\\"),
        ];
        for (text, expected) in rows {
            assert_eq!(rewrite(text), expected);
        }
    }
}
