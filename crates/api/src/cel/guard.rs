//! Bounds on the text of an expression, before it reaches the parser.
//!
//! The parser and every walk after it are recursive. How deep the tree becomes can be told from the text: a bracket
//! opens a level, and operators chain within one (`1+1+1` leans to the left, `a?b:c?d:e` to the right). `&&` and `||`
//! are balanced by the parser.
//!
//! [`fold_signs`] works around a fault of the parser (cel 0.13.0): of an even number of `!` or `-` in a row it keeps one,
//! and visits what follows twice, so that nested ones take exponential time.

use std::borrow::Cow;

use super::CompileError;

/// Longer texts are refused; the longest rules in use have some thousand bytes.
const MAX_LENGTH: usize = 16 * 1024;
/// Brackets inside of brackets: each costs the parser some eight stack frames.
const MAX_BRACKETS: usize = 24;
/// Brackets and chained operators on the way from the root to a leaf.
const MAX_DEPTH: usize = 160;

/// Refuses a text whose tree would be too large or too deep.
pub(super) fn check(text: &str) -> Result<(), CompileError> {
    if text.len() > MAX_LENGTH {
        return Err(error(&format!(
            "expression code point size exceeds limit: size: {}, limit {MAX_LENGTH}",
            text.len()
        )));
    }
    let mut levels = vec![Level::default()];
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text.as_bytes()[at..];
        let is_nested = levels.len() > 1;
        let Some(level) = levels.last_mut() else { return Ok(()) };
        let mut taken = 1;
        match rest[0] {
            b'"' | b'\'' => taken = string_length(bytes, at),
            b'/' if rest.starts_with(b"//") => {
                taken = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
            }
            b'(' | b'[' | b'{' => levels.push(Level::default()),
            b')' | b']' | b'}' if is_nested => {
                levels.pop();
                // What follows a bracket hangs on it: `a(x)(y)`, `a[0][1]`.
                if let Some(level) = levels.last_mut() {
                    level.chain += 1;
                }
            }
            b',' => *level = Level::default(),
            b'&' | b'|' => level.chain = 0,
            b'?' => {
                level.ternaries += 1;
                level.chain = 0;
            }
            b':' => level.chain = 0,
            b'+' | b'-' | b'*' | b'/' | b'%' | b'.' | b'!' | b'=' | b'<' | b'>' => {
                // Two-byte operators count once.
                if rest.len() > 1 && rest[1] == b'=' {
                    taken = 2;
                }
                level.chain += 1;
            }
            b'i' if is_in(bytes, at) => level.chain += 1,
            _ => {}
        }
        at += taken;
        if levels.len() > MAX_BRACKETS || levels.iter().map(Level::depth).sum::<usize>() > MAX_DEPTH {
            return Err(error("expression recursion limit exceeded"));
        }
    }
    Ok(())
}

/// Signs that undo each other become blanks: `!!a` is `a`, `--a` is `a`, `a---b` is `a-b`.
pub(super) fn fold_signs(text: &str) -> Cow<'_, str> {
    let mut bytes = text.as_bytes().to_vec();
    let mut at = 0;
    // Where the last token ended that can be the left side of a subtraction.
    let mut after_operand = false;
    while at < bytes.len() {
        let byte = bytes[at];
        let mut taken = 1;
        match byte {
            b'"' | b'\'' => {
                taken = string_length(&bytes, at);
                after_operand = true;
            }
            b'/' if bytes[at..].starts_with(b"//") => {
                taken = bytes[at..].iter().position(|b| *b == b'\n').unwrap_or(bytes.len() - at);
            }
            b'!' | b'-' => {
                let mut signs = run(&bytes, at, byte);
                taken = signs.last().map_or(1, |last| last + 1 - at);
                if byte == b'-' && after_operand {
                    signs.remove(0);
                }
                let undone = signs.len() - signs.len() % 2;
                signs.iter().rev().take(undone).for_each(|sign| bytes[*sign] = b' ');
                after_operand = false;
            }
            b if b.is_ascii_whitespace() => {}
            b if b.is_ascii_alphanumeric() || b == b'_' || !b.is_ascii() => {
                let is_word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_' || !b.is_ascii();
                taken = bytes[at..].iter().take_while(|b| is_word(b)).count();
                after_operand = &bytes[at..at + taken] != b"in";
            }
            b => after_operand = matches!(b, b')' | b']' | b'}'),
        }
        at += taken;
    }
    // Only ASCII became ASCII, so this is text as before.
    match String::from_utf8(bytes) {
        Ok(folded) if folded != text => Cow::Owned(folded),
        _ => Cow::Borrowed(text),
    }
}

/// Where the signs of a row stand, blanks between them or not. The `!` of `!=` is none.
fn run(bytes: &[u8], at: usize, sign: u8) -> Vec<usize> {
    let mut signs = Vec::new();
    for (index, byte) in bytes.iter().enumerate().skip(at) {
        match *byte {
            b if b == sign && !(sign == b'!' && bytes.get(index + 1) == Some(&b'=')) => signs.push(index),
            b if b.is_ascii_whitespace() => {}
            _ => break,
        }
    }
    if signs.is_empty() { vec![at] } else { signs }
}

#[derive(Default)]
struct Level {
    chain: usize,
    ternaries: usize,
}

impl Level {
    fn depth(&self) -> usize {
        1 + self.chain + self.ternaries
    }
}

fn error(message: &str) -> CompileError {
    CompileError(format!("ERROR: <input>:1:1: {message}"))
}

/// Whether the word `in` stands here.
fn is_in(bytes: &[u8], at: usize) -> bool {
    let is_word = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    bytes[at..].starts_with(b"in")
        && !is_word(bytes.get(at + 2))
        && !is_word(at.checked_sub(1).and_then(|i| bytes.get(i)))
}

/// Bytes of a string literal from its first quote on.
fn string_length(bytes: &[u8], at: usize) -> usize {
    let quote = bytes[at];
    let is_raw = at > 0 && matches!(bytes[at - 1], b'r' | b'R');
    let triple = [quote; 3];
    let end: &[u8] = if bytes[at..].starts_with(&triple) { &triple } else { &triple[..1] };
    let mut i = at + end.len();
    while i < bytes.len() {
        if bytes[i..].starts_with(end) {
            return i + end.len() - at;
        }
        i += if bytes[i] == b'\\' && !is_raw { 2 } else { 1 };
    }
    bytes.len() - at
}
