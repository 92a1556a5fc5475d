//! What was measured, per target, as a table for people and as JSON for machines.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::json;

use crate::error::{Context, Result};

/// Which values are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// One measured value.
#[derive(Clone, Debug)]
pub(crate) struct Measure {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    pub(crate) value: f64,
}

impl Measure {
    pub(crate) fn lower(name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self { name: name.into(), unit, better: Better::Lower, value }
    }

    pub(crate) fn higher(name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self { name: name.into(), unit, better: Better::Higher, value }
    }
}

/// The same measurements of several targets side by side. The first target is the one the others are
/// compared with.
#[derive(Debug, Default)]
pub(crate) struct Report {
    targets: Vec<String>,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    unit: &'static str,
    better: Better,
    /// By target; targets without this measurement are missing.
    values: BTreeMap<String, f64>,
}

impl Report {
    /// Adds the measurements of one target.
    pub(crate) fn add(&mut self, target: &str, measures: Vec<Measure>) {
        if !self.targets.iter().any(|known| known == target) {
            self.targets.push(target.to_string());
        }
        for measure in measures {
            // JSON has no word for a value that is not a number: it is a missing one.
            if !measure.value.is_finite() {
                continue;
            }
            let index = self.row(&measure);
            self.rows[index].values.insert(target.to_string(), measure.value);
        }
    }

    fn row(&mut self, measure: &Measure) -> usize {
        if let Some(index) = self.rows.iter().position(|row| row.name == measure.name) {
            return index;
        }
        self.rows.push(Row {
            name: measure.name.clone(),
            unit: measure.unit,
            better: measure.better,
            values: BTreeMap::new(),
        });
        self.rows.len() - 1
    }

    /// A Markdown table. Behind the values of every further target stands how many times better the
    /// first target is: above 1 the first wins, whichever way the measurement goes.
    pub(crate) fn table(&self) -> String {
        let Some(first) = self.targets.first() else {
            return String::new();
        };
        let mut header = vec!["measurement".to_string(), "unit".to_string(), first.clone()];
        for target in &self.targets[1..] {
            header.push(target.clone());
            header.push(format!("{first} vs {target}"));
        }
        let mut lines = vec![header];
        for row in &self.rows {
            let value = |target: &String| row.values.get(target).copied();
            let mut line = vec![row.name.clone(), row.unit.to_string(), number(value(first))];
            for target in &self.targets[1..] {
                line.push(number(value(target)));
                line.push(times(advantage(row.better, value(first), value(target))));
            }
            lines.push(line);
        }
        align(&lines)
    }

    /// Writes everything as JSON.
    pub(crate) fn write_json(&self, path: &Path) -> Result<()> {
        let document = json!({"machine": machine(), "targets": self.targets, "measures": self.rows});
        let text =
            serde_json::to_string_pretty(&document).context(|| "could not encode the results".to_string())?;
        fs::write(path, text + "\n").context(|| format!("could not write {}", path.display()))
    }
}

/// How many times better the first value is.
fn advantage(better: Better, first: Option<f64>, other: Option<f64>) -> Option<f64> {
    let (first, other) = (first?, other?);
    let (above, below) = match better {
        Better::Higher => (first, other),
        Better::Lower => (other, first),
    };
    (below > 0.0).then(|| above / below)
}

fn number(value: Option<f64>) -> String {
    match value {
        None => "-".to_string(),
        Some(0.0) => "0".to_string(),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) if value.abs() >= 1.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.3}"),
    }
}

fn times(factor: Option<f64>) -> String {
    factor.map_or("-".to_string(), |factor| format!("{}x", number(Some(factor))))
}

/// Renders lines of equal length as a Markdown table: the first two columns to the left, numbers to
/// the right.
fn align(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0).max(3))
        .collect();
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            text.push_str(&match column {
                0 | 1 => format!("| {cell:<width$} "),
                _ => format!("| {cell:>width$} "),
            });
        }
        text.push_str("|\n");
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(*width);
                text.push_str(&if column < 2 {
                    format!("| {dashes} ")
                } else {
                    format!("| {}: ", &dashes[1..])
                });
            }
            text.push_str("|\n");
        }
    }
    text
}

/// The machine the numbers belong to: no number means anything without it.
fn machine() -> serde_json::Value {
    let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_string();
    let cpus = std::thread::available_parallelism().map_or(0, |count| count.get());
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |text: &str, name: &str| {
        text.lines()
            .find(|line| line.starts_with(name))
            .and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_string())
    };
    json!({
        "kernel": line("/proc/sys/kernel/osrelease"),
        "cpus": cpus,
        "cpu": field(&info, "model name"),
        "memory": field(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_better_and_how_much() {
        let rows = [
            ("half the time", Better::Lower, Some(5.0), Some(10.0), Some(2.0)),
            ("double the rate", Better::Higher, Some(10.0), Some(5.0), Some(2.0)),
            ("slower", Better::Lower, Some(10.0), Some(5.0), Some(0.5)),
            ("missing", Better::Lower, Some(10.0), None, None),
            ("nothing at all against something", Better::Lower, Some(0.0), Some(5.0), None),
        ];
        for (name, better, first, other, expected) in rows {
            assert_eq!(advantage(better, first, other), expected, "{name}");
        }
    }

    #[test]
    fn three_digits_are_enough() {
        let rows = [
            (Some(12345.6), "12346"),
            (Some(123.4), "123"),
            (Some(12.34), "12.3"),
            (Some(1.234), "1.23"),
            (Some(0.1234), "0.123"),
            (Some(0.0), "0"),
            (None, "-"),
        ];
        for (value, expected) in rows {
            assert_eq!(number(value), expected);
        }
    }

    #[test]
    fn the_table_of_two_targets() {
        let mut report = Report::default();
        report.add(
            "sampan",
            vec![Measure::lower("create p50", "ms", 1.0), Measure::higher("create", "1/s", 2000.0)],
        );
        report.add("other", vec![Measure::higher("create", "1/s", 500.0), Measure::lower("list", "ms", 3.0)]);
        let expected = "\
| measurement | unit | sampan | other | sampan vs other |
| ----------- | ---- | -----: | ----: | --------------: |
| create p50  | ms   |   1.00 |     - |               - |
| create      | 1/s  |   2000 |   500 |           4.00x |
| list        | ms   |      - |  3.00 |               - |
";
        assert_eq!(report.table(), expected);
    }

    #[test]
    fn the_table_of_one_target_compares_nothing() {
        let mut report = Report::default();
        report.add("a", vec![Measure::lower("x", "s", 0.5), Measure::lower("unknown", "s", f64::NAN)]);
        let expected = "\
| measurement | unit |     a |
| ----------- | ---- | ----: |
| x           | s    | 0.500 |
";
        assert_eq!(report.table(), expected);
    }

    #[test]
    fn nothing_measured_is_an_empty_table() {
        assert_eq!(Report::default().table(), "");
    }
}
