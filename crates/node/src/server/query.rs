//! Query parameters, as `application/x-www-form-urlencoded` writes them.

/// Names and values in order; names may repeat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(k, v)| (decode(k), decode(v)))
                .collect(),
        )
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(known, _)| known == name).map(|(_, value)| value.clone()).collect()
    }

    /// Whether any of these names is true. The kubelet's own names (`input`) and the API's (`stdin`) mean the same.
    pub(crate) fn is_set(&self, names: &[&str]) -> bool {
        names.iter().any(|name| matches!(self.get(name), Some("true" | "1" | "True" | "TRUE" | "t" | "T")))
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => match after.get(..2).and_then(hex) {
                Some(byte) => {
                    bytes.push(byte);
                    rest = &after[2..];
                }
                None => bytes.push(b'%'),
            },
            other => bytes.push(*other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digits: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(digits).ok()?;
    u8::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters() {
        let query = Query::parse(Some("command=sh&command=-c&command=echo+a%26b%2&stdin=true&tty=false&x"));
        assert_eq!(query.all("command"), ["sh", "-c", "echo a&b%2"]);
        assert!(query.is_set(&["input", "stdin"]) && !query.is_set(&["tty"]) && !query.is_set(&["x"]));
        assert_eq!(Query::parse(None), Query::default());
    }
}
