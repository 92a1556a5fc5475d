//! Regular expressions as Kubernetes' users write them: the syntax of Go's `regexp`, run by the `regex` crate.
//!
//! Both descend from RE2 and take linear time. They differ in small things that matter for the same answer: Go's `\w`,
//! `\d`, `\s` and `\b` mean ASCII, a brace that starts no repetition is a brace, a bracket in a class is a bracket, and
//! `\Q...\E` quotes. [`compile`] rewrites those. What is matched is bounded by the caller, what is compiled here.

use regex::{Regex, RegexBuilder};

/// Longer patterns are refused; the longest in use (semantic versions, IPv6 addresses) have some thousand bytes.
const MAX_LENGTH: usize = 16 * 1024;
/// Bytes of a compiled pattern: enough for any pattern of the usual operators, and a bound for `((a{99}){99}){99}`.
const MAX_PROGRAM: usize = 1024 * 1024;

/// Compiles a pattern; the error is a sentence of one line.
pub(crate) fn compile(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > MAX_LENGTH {
        return Err(format!("expression is longer than {MAX_LENGTH} bytes"));
    }
    let built = RegexBuilder::new(&translate(pattern))
        .size_limit(MAX_PROGRAM)
        .dfa_size_limit(MAX_PROGRAM)
        .nest_limit(64)
        .build();
    built.map_err(|error| {
        let text = error.to_string();
        let last = text.lines().last().unwrap_or_default();
        format!("error parsing regexp: {}", last.strip_prefix("error: ").unwrap_or(last))
    })
}

/// Go's syntax in the words of the `regex` crate.
fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern;
    let mut in_class = false;
    while let Some(c) = rest.chars().next() {
        let mut taken = c.len_utf8();
        match c {
            '\\' if rest.starts_with(r"\Q") => {
                let quoted = rest[2..].split(r"\E").next().unwrap_or_default();
                out.push_str(&regex::escape(quoted));
                taken = (2 + quoted.len() + 2).min(rest.len());
            }
            '\\' => {
                let escaped = rest[1..].chars().next();
                // `\p{Greek}` and `\x{3b1}` bring braces of their own.
                if matches!(escaped, Some('p' | 'P' | 'x'))
                    && rest[2..].starts_with('{')
                    && let Some(end) = rest.find('}')
                {
                    out.push_str(&rest[..=end]);
                    rest = &rest[end + 1..];
                    continue;
                }
                push_escape(&mut out, escaped, in_class);
                taken += escaped.map_or(0, char::len_utf8);
            }
            '[' if in_class => match rest.find(":]").filter(|_| rest.starts_with("[:")) {
                Some(end) => {
                    out.push_str(&rest[..end + 2]);
                    taken = end + 2;
                }
                None => out.push_str(r"\["),
            },
            '[' => {
                in_class = true;
                out.push('[');
                // A bracket that stands first in a class is a member of it.
                for first in ["^]", "]", "^"] {
                    if rest[1..].starts_with(first) {
                        out.push_str(&first.replace(']', r"\]"));
                        taken += first.len();
                        break;
                    }
                }
            }
            ']' => {
                in_class = false;
                out.push(']');
            }
            // `&&`, `~~` and `--` are set operations of the crate.
            '&' | '~' if in_class => {
                out.push('\\');
                out.push(c);
            }
            '{' if !in_class && !starts_repetition(rest) => out.push_str(r"\{"),
            _ => out.push(c),
        }
        rest = &rest[taken..];
    }
    out
}

fn push_escape(out: &mut String, escaped: Option<char>, in_class: bool) {
    let ascii = match (escaped, in_class) {
        (Some('d'), false) => "[0-9]",
        (Some('d'), true) => "0-9",
        (Some('D'), _) => "[^0-9]",
        (Some('w'), false) => "[0-9A-Za-z_]",
        (Some('w'), true) => "0-9A-Za-z_",
        (Some('W'), _) => "[^0-9A-Za-z_]",
        (Some('s'), false) => r"[\t\n\f\r ]",
        (Some('s'), true) => r"\t\n\f\r ",
        (Some('S'), _) => r"[^\t\n\f\r ]",
        (Some('b'), false) => r"(?-u:\b)",
        (Some('B'), false) => r"(?-u:\B)",
        _ => {
            out.push('\\');
            out.extend(escaped);
            return;
        }
    };
    out.push_str(ascii);
}

/// Whether a text starts with `{2}`, `{2,}` or `{2,3}`.
fn starts_repetition(text: &str) -> bool {
    let Some((inside, _)) = text[1..].split_once('}') else { return false };
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    match inside.split_once(',') {
        Some((low, high)) => digits(low) && (high.is_empty() || digits(high)),
        None => digits(inside),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_as_go_does() {
        let rows = [
            (r"^\d+$", "42", true),
            (r"^\d+$", "٤٢", false),
            (r"^\w+$", "é", false),
            (r"^[\w.-]+$", "a.b-c_D", true),
            (r"^[^\s]+$", "a b", false),
            (r"^[\D]$", "x", true),
            (r"^{x}$", "{x}", true),
            (r"^a{2,3}$", "aaa", true),
            (r"^a{,3}$", "a{,3}", true),
            (r"^[[]$", "[", true),
            (r"^[]a]$", "]", true),
            (r"^[^]a]$", "]", false),
            (r"^[[:alpha:]]+$", "ab", true),
            (r"^[a&&b]+$", "&", true),
            (r"^\Qa.b\E$", "a.b", true),
            (r"^\Qa.b\E$", "axb", false),
            (r"\bcat\b", "a cat", true),
            (r"^(?P<x>a|b)\/\-$", "a/-", true),
            ("^.$", "é", true),
            (r"^\p{Greek}$", "α", true),
            (r"^\x{3b1}$", "α", true),
        ];
        for (pattern, text, expected) in rows {
            let regex = compile(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
            assert_eq!(regex.is_match(text), expected, "{pattern} on {text}");
        }
    }

    #[test]
    fn wrong_and_large_patterns_are_refused() {
        for pattern in ["(", "[a", r"\", "((a{999}){999}){999}", "(?=a)", r"\1", &"a".repeat(20_000)] {
            let error = compile(pattern).expect_err(pattern);
            assert!(!error.is_empty() && !error.contains('\n'), "{error}");
        }
    }
}
