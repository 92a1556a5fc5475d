//! Which values a text field of a built-in type may have, as the published schemas say (`enum`).
//!
//! The document that the table of types is made from is published without them, so this table is kept by hand, from the
//! types that upstream marks `+enum`. It is for whoever reads a schema (`kubectl explain`): what is accepted is the
//! business of a kind's rules, which know more, for instance of fields that are only read. The text is embedded and read
//! when somebody asks; nothing of it stays in memory.

use std::collections::HashMap;

/// A line is `VALUE,VALUE`, then each `TYPE.FIELD` that has these values, tab-separated. An empty value is a value.
const TABLE: &str = include_str!("../data/enums.tsv");

/// The table, read.
pub struct Enums {
    values: HashMap<&'static str, &'static str>,
}

impl Enums {
    /// Reads the table.
    pub fn read() -> Self {
        Self {
            values: lines().flat_map(|(values, fields)| fields.map(move |field| (field, values))).collect(),
        }
    }

    /// The values of a field, in alphabetical order; of a list or map, those of its elements.
    pub fn of(&self, type_name: &str, field: &str) -> Option<Vec<&'static str>> {
        // Most fields have none, and many fields are asked for.
        let mut key = String::with_capacity(type_name.len() + 1 + field.len());
        key.extend([type_name, ".", field]);
        self.values.get(key.as_str()).map(|values| values.split(',').collect())
    }
}

fn lines() -> impl Iterator<Item = (&'static str, std::str::Split<'static, char>)> {
    TABLE.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let mut parts = line.split('\t');
        (parts.next().unwrap_or_default(), parts)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::defaults;
    use crate::schema::{FieldType, Types};

    #[test]
    fn values_belong_to_text_fields() {
        let mut seen = BTreeSet::new();
        for (values, fields) in lines() {
            let values: Vec<&str> = values.split(',').collect();
            assert!(values.is_sorted_by(|a, b| a < b), "{values:?}");
            for name in fields {
                assert!(seen.insert(name), "{name} stands twice");
                let (type_name, field) = name.rsplit_once('.').expect("a type and a field");
                let type_ = Types::get().type_(type_name).unwrap_or_else(|| panic!("no type {type_name}"));
                let mut type_ = &type_.field(field).unwrap_or_else(|| panic!("no field {name}")).type_;
                while let FieldType::List(inner) | FieldType::Map(inner) = type_ {
                    type_ = inner;
                }
                assert_eq!(*type_, FieldType::String, "{name}");
                if let Some(default) = defaults::of(type_name, field).and_then(|value| value.as_str()) {
                    assert!(values.contains(&default), "{name} has {default:?} by default");
                }
            }
        }
        assert!(seen.len() > 90, "{} fields", seen.len());
    }

    #[test]
    fn values_of_known_fields() {
        let enums = Enums::read();
        let of = |type_name: &str, field: &str| enums.of(&format!("io.k8s.api.{type_name}"), field);
        let rows: [(&str, &str, Option<&[&str]>); 4] = [
            ("core.v1.Container", "imagePullPolicy", Some(&["Always", "IfNotPresent", "Never"])),
            ("core.v1.ServiceSpec", "ipFamilies", Some(&["", "IPv4", "IPv6"])),
            ("apps.v1.StatefulSetSpec", "podManagementPolicy", Some(&["OrderedReady", "Parallel"])),
            ("core.v1.Container", "image", None),
        ];
        for (type_name, field, expected) in rows {
            assert_eq!(of(type_name, field).as_deref(), expected, "{type_name}.{field}");
        }
    }
}
