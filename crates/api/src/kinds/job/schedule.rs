//! Cron schedules: five fields, or a word for them. The grammar is that of `robfig/cron`, which Kubernetes uses.

/// What a field of a schedule may hold: least, most, and names for the first few numbers.
struct Field {
    least: u32,
    most: u32,
    names: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field { least: 0, most: 59, names: &[] },
    Field { least: 0, most: 23, names: &[] },
    Field { least: 1, most: 31, names: &[] },
    Field {
        least: 1,
        most: 12,
        names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    },
    Field { least: 0, most: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] },
];

const DESCRIPTORS: [&str; 7] =
    ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];

/// What is wrong with a schedule.
pub(super) fn problem(schedule: &str) -> Option<String> {
    if schedule.starts_with('@') {
        return descriptor_problem(schedule);
    }
    let parts: Vec<&str> = schedule.split_whitespace().collect();
    if parts.len() != FIELDS.len() {
        return Some(format!("expected exactly 5 fields, found {}: [{}]", parts.len(), parts.join(" ")));
    }
    parts
        .iter()
        .zip(FIELDS)
        .find_map(|(part, field)| part.split(',').find_map(|range| range_problem(range, &field)))
}

fn descriptor_problem(schedule: &str) -> Option<String> {
    if let Some(interval) = schedule.strip_prefix("@every ") {
        let fine = is_duration(interval);
        return (!fine)
            .then(|| format!("failed to parse duration {schedule}: time: invalid duration \"{interval}\""));
    }
    (!DESCRIPTORS.contains(&schedule)).then(|| format!("unrecognized descriptor: {schedule}"))
}

/// A duration as Go writes it: `1h30m`, `1.5s`.
fn is_duration(text: &str) -> bool {
    let mut rest = text.trim_start_matches(['+', '-']);
    if rest == "0" {
        return true;
    }
    let mut any = false;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (digits, after) = rest.split_at(number);
        let unit = ["ns", "us", "µs", "ms", "s", "m", "h"].into_iter().filter(|unit| after.starts_with(unit));
        let Some(unit) = unit.max_by_key(|unit| unit.len()) else {
            return false;
        };
        if !digits.bytes().any(|b| b.is_ascii_digit()) || digits.matches('.').count() > 1 {
            return false;
        }
        rest = &after[unit.len()..];
        any = true;
    }
    any
}

/// One of the ranges of a field: `*`, `5`, `1-5`, each with `/STEP`.
fn range_problem(range: &str, field: &Field) -> Option<String> {
    let parts: Vec<&str> = range.split('/').collect();
    let (bounds, step) = match parts[..] {
        [bounds] => (bounds, None),
        [bounds, step] => (bounds, Some(step)),
        _ => return Some(format!("too many slashes: {range}")),
    };
    let ends: Vec<&str> = bounds.split('-').collect();
    let (start, end) = match ends[..] {
        ["*" | "?"] => (field.least, field.most),
        [one] => match number(one, field) {
            Ok(start) => (start, if step.is_some() { field.most } else { start }),
            Err(problem) => return Some(problem),
        },
        [first, last] => match (number(first, field), number(last, field)) {
            (Ok(start), Ok(end)) => (start, end),
            (Err(problem), _) | (_, Err(problem)) => return Some(problem),
        },
        _ => return Some(format!("too many hyphens: {range}")),
    };
    let step = match step.map(plain_number) {
        None => 1,
        Some(Ok(step)) => step,
        Some(Err(problem)) => return Some(problem),
    };
    if start < field.least {
        return Some(format!("beginning of range ({start}) below minimum ({}): {range}", field.least));
    }
    if end > field.most {
        return Some(format!("end of range ({end}) above maximum ({}): {range}", field.most));
    }
    if start > end {
        return Some(format!("beginning of range ({start}) beyond end of range ({end}): {range}"));
    }
    (step == 0).then(|| format!("step of range should be a positive number: {range}"))
}

fn number(text: &str, field: &Field) -> Result<u32, String> {
    let lower = text.to_ascii_lowercase();
    match field.names.iter().zip(field.least..).find(|(name, _)| **name == lower) {
        Some((_, number)) => Ok(number),
        None => plain_number(text),
    }
}

fn plain_number(text: &str) -> Result<u32, String> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|_| digits)
        .ok_or_else(|| format!("failed to parse int from {text}: invalid syntax"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        let rows: [(&str, Option<&str>); 20] = [
            ("* * * * *", None),
            ("*/5 0-23/2 1,15 JAN-mar mon", None),
            ("0 0 ? * SUN", None),
            ("5/15 * * * *", None),
            ("@hourly", None),
            ("@every 1h30m", None),
            ("@every 1.5s", None),
            ("@every soon", Some("failed to parse duration @every soon: time: invalid duration \"soon\"")),
            ("@sometimes", Some("unrecognized descriptor: @sometimes")),
            ("* * * *", Some("expected exactly 5 fields, found 4: [* * * *]")),
            ("60 * * * *", Some("end of range (60) above maximum (59): 60")),
            ("* * 0 * *", Some("beginning of range (0) below minimum (1): 0")),
            ("* * * * 7", Some("end of range (7) above maximum (6): 7")),
            ("5-1 * * * *", Some("beginning of range (5) beyond end of range (1): 5-1")),
            ("*/0 * * * *", Some("step of range should be a positive number: */0")),
            ("1-2-3 * * * *", Some("too many hyphens: 1-2-3")),
            ("1/2/3 * * * *", Some("too many slashes: 1/2/3")),
            ("a * * * *", Some("failed to parse int from a: invalid syntax")),
            ("1, * * * *", Some("failed to parse int from : invalid syntax")),
            ("+1 * * * *", Some("failed to parse int from +1: invalid syntax")),
        ];
        for (schedule, expected) in rows {
            assert_eq!(problem(schedule).as_deref(), expected, "{schedule}");
        }
    }
}
