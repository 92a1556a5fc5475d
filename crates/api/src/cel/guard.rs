//! Bounds on the text of an expression, before it reaches the parser.
//!
//! The parser and every walk after it are recursive. How deep the tree becomes can be told from the text: a bracket
//! opens a level, and operators chain within one (`1+1+1` leans to the left, `a?b:c?d:e` to the right). `&&` and `||`
//! are balanced by the parser.

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
