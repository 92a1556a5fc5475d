//! Decisions from bytes.

use std::sync::OnceLock;

use sampan_api::schema::{FieldType, Types};
use serde_json::{Map, Number, Value};

/// Literals of the API crate, see `build.rs`.
const LITERALS: &str = include_str!(concat!(env!("OUT_DIR"), "/words.txt"));

/// What values of objects look like; more likely than [`LITERALS`].
const WORDS: [&str; 48] = [
    "",
    "a",
    "b",
    "web",
    "x-y",
    "default",
    "nginx",
    "nginx:1.27",
    "0",
    "1",
    "-1",
    "80",
    "8080",
    "65536",
    "50%",
    "101%",
    "100m",
    "1Gi",
    "1.5",
    "-3",
    "1e3",
    "1E",
    "TCP",
    "UDP",
    "SCTP",
    "None",
    "Always",
    "Never",
    "10.0.0.1",
    "10.96.0.1",
    "::1",
    "fd00::/64",
    "10.0.0.0/8",
    "0.0.0.0",
    "2024-01-01T00:00:00Z",
    "2024-01-01T00:00:00.000001Z",
    "aGk=",
    "http",
    "example.com",
    "example.com/name",
    "kubernetes.io/os",
    "app",
    "true",
    "/",
    "/var/run",
    "../x",
    "$(A)",
    "é\u{0}",
];

/// Interesting whole numbers.
const NUMBERS: [i64; 20] = [
    0,
    1,
    -1,
    2,
    3,
    5,
    10,
    30,
    80,
    100,
    443,
    600,
    8080,
    30_000,
    65_535,
    65_536,
    i32::MAX as i64,
    i32::MIN as i64,
    i64::MAX,
    i64::MIN,
];

/// Deepest generated document.
const MAX_DEPTH: usize = 14;

/// Bytes that are read from the front; after the end every decision is 0, which is always the smallest thing.
pub struct Source<'a> {
    bytes: &'a [u8],
}

impl<'a> Source<'a> {
    /// All of an input.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What is left.
    pub fn rest(self) -> &'a [u8] {
        self.bytes
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.bytes.split_first() else { return 0 };
        self.bytes = rest;
        *first
    }

    /// A number below `limit`, which is more than 0.
    pub fn below(&mut self, limit: usize) -> usize {
        let mut number = usize::from(self.byte());
        if limit > 256 {
            number = number << 8 | usize::from(self.byte());
        }
        number % limit
    }

    /// True in one of `n` cases, never at the end of the input.
    pub fn one_in(&mut self, n: u8) -> bool {
        self.byte() % n == n - 1
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Some bytes as they are.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.bytes.split_at(count.min(self.bytes.len()));
        self.bytes = rest;
        taken
    }

    /// A text: mostly one that means something.
    pub fn text(&mut self) -> String {
        static ALL: OnceLock<Vec<&str>> = OnceLock::new();
        match self.byte() {
            choice @ 0..=159 => WORDS[usize::from(choice) % WORDS.len()].to_owned(),
            160..=239 => {
                let literals = ALL.get_or_init(|| LITERALS.lines().collect());
                self.pick(literals).to_owned()
            }
            240..=251 => {
                let count = usize::from(self.byte() % 24);
                String::from_utf8_lossy(self.take(count)).into_owned()
            }
            _ => "x".repeat(usize::from(self.byte()) * 2),
        }
    }

    /// A whole number.
    pub fn integer(&mut self) -> i64 {
        match self.byte() {
            choice @ 0..=200 => NUMBERS[usize::from(choice) % NUMBERS.len()],
            _ => i64::from(self.byte()),
        }
    }

    fn number(&mut self) -> Value {
        match self.byte() % 8 {
            0 => (u64::MAX - u64::from(self.byte())).into(),
            1 => Number::from_f64(f64::from(self.byte()) / 8.0).map_or(Value::Null, Value::Number),
            2 => Number::from_f64(1e300 * f64::from(self.byte())).map_or(Value::Null, Value::Number),
            _ => self.integer().into(),
        }
    }

    /// A document of any form.
    pub fn value(&mut self, depth: usize) -> Value {
        let kinds = if depth > 6 { 5 } else { 9 };
        match self.byte() % kinds {
            0 => Value::Null,
            1 => Value::Bool(self.byte() & 1 == 1),
            2 => self.number(),
            3 | 4 => self.text().into(),
            5 | 6 => (0..self.byte() % 6).map(|_| self.value(depth + 1)).collect(),
            _ => (0..self.byte() % 6)
                .map(|_| (self.text(), self.value(depth + 1)))
                .collect::<Map<_, _>>()
                .into(),
        }
    }

    /// A document of a type of the table.
    pub fn of_type(&mut self, type_name: &'static str) -> Value {
        self.structure(type_name, 0)
    }

    fn structure(&mut self, type_name: &'static str, depth: usize) -> Value {
        let Some(type_) = Types::get().type_(type_name) else { return self.value(depth) };
        if type_.fields.is_empty() {
            return self.value(depth);
        }
        let mut object = Map::new();
        // What has to be there is there, most of the time: rules give up early without it.
        for field in type_.fields.iter().filter(|field| field.required) {
            if !self.one_in(16) {
                object.insert(field.name.to_owned(), self.of_field(&field.type_, depth + 1));
            }
        }
        if depth == 0 {
            for name in ["metadata", "spec"] {
                if let Some(field) = type_.field(name) {
                    object.insert(name.to_owned(), self.of_field(&field.type_, depth + 1));
                }
            }
        }
        let more = if depth > MAX_DEPTH { 0 } else { self.byte() % 7 };
        for _ in 0..more {
            let field = &type_.fields[self.below(type_.fields.len())];
            object.insert(field.name.to_owned(), self.of_field(&field.type_, depth + 1));
        }
        Value::Object(object)
    }

    fn of_field(&mut self, type_: &FieldType, depth: usize) -> Value {
        if self.one_in(128) {
            return self.value(depth);
        }
        match type_ {
            FieldType::Any => self.value(depth),
            FieldType::Object => match self.value(depth) {
                object @ Value::Object(_) => object,
                other => Value::Object(Map::from_iter([(self.text(), other)])),
            },
            FieldType::String => self.text().into(),
            FieldType::Bytes => self.pick(&["", "aGk=", "e30=", "eyJhdXRocyI6e319", "/w=="]).into(),
            FieldType::Boolean => Value::Bool(self.byte() & 1 == 1),
            FieldType::Int32 => (self.integer() as i32).into(),
            FieldType::Int64 => self.integer().into(),
            FieldType::Double => self.number(),
            FieldType::IntOrString if self.byte() & 1 == 0 => (self.integer() as i32).into(),
            FieldType::IntOrString => self.text().into(),
            FieldType::Time | FieldType::MicroTime => self
                .pick(&[
                    "2024-01-01T00:00:00Z",
                    "2030-12-31T23:59:59.999999Z",
                    "0001-01-01T00:00:00Z",
                    "-009999-01-01T00:00:00Z",
                ])
                .into(),
            FieldType::Quantity => self
                .pick(&[
                    "0",
                    "1",
                    "100m",
                    "1.5",
                    "1Gi",
                    "-1",
                    "2Ki",
                    "1n",
                    "3e6",
                    "9223372036854775807",
                    "99999E",
                    "1m",
                    "0.5Ei",
                ])
                .into(),
            FieldType::Struct(name) => self.structure(name, depth),
            FieldType::List(element) => {
                (0..self.byte() % 4).map(|_| self.of_field(element, depth + 1)).collect()
            }
            FieldType::Map(element) => {
                let count = self.byte() % 4;
                (0..count)
                    .map(|_| (self.text(), self.of_field(element, depth + 1)))
                    .collect::<Map<_, _>>()
                    .into()
            }
        }
    }
}
