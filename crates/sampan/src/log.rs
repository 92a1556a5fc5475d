//! The log on standard error: lines for people, or lines of JSON for programs.
//!
//! A line of JSON has the members that Kubernetes' components write (`ts`, milliseconds since 1970, and `msg`), beside
//! them `level` and `target`, and the fields of the event under their own names.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use sampan_apiserver::{SpanLayer, TRACE_TARGET};
use serde::Serialize;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::Failure;

/// What a line looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Directives that are always there. The netlink library warns of every answer that says "no such link", which is how one
/// asks whether a link exists.
const QUIET: &[(&str, &str)] = &[("nlink", "error"), ("hickory_server", "warn")];

/// Begins to log for the whole process, and to tell of traces if somebody wants to hear of them.
pub(crate) fn start(filter: &str, format: Format, traces: Option<SpanLayer>) -> Result<(), Failure> {
    let filter = read_filter(filter)?;
    match traces {
        Some(traces) => {
            let lines = lines(format, std::io::stderr).with_filter(filter);
            tracing_subscriber::registry().with(lines).with(traces.filtered()).try_init()?;
        }
        // One filter for the whole process costs less than one per layer.
        None => {
            let lines = lines(format, std::io::stderr);
            tracing_subscriber::registry().with(lines).with(filter).try_init()?;
        }
    }
    Ok(())
}

fn read_filter(filter: &str) -> Result<EnvFilter, Failure> {
    let mut directives = filter.to_owned();
    for (target, level) in QUIET.iter().filter(|(target, _)| !filter.contains(target)) {
        directives.push_str(&format!(",{target}={level}"));
    }
    // Spans of traces are no lines of the log, whatever is asked for.
    directives.push_str(&format!(",{TRACE_TARGET}=off"));
    Ok(EnvFilter::try_new(directives)?)
}

/// The layer that writes lines.
fn lines<S, W>(format: Format, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        Format::Text => layer.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        Format::Json => layer.with_ansi(false).event_format(JsonLines).boxed(),
    }
}

/// Writes an event as a line of JSON.
struct JsonLines;

#[derive(Serialize)]
struct Line<'a> {
    ts: f64,
    level: &'static str,
    msg: String,
    target: &'a str,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

/// Names that are not left to fields.
const OWN: [&str; 4] = ["ts", "level", "msg", "target"];

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let line = Line {
            ts: milliseconds(SystemTime::now()),
            level: level(*metadata.level()),
            msg: fields.message,
            target: metadata.target(),
            fields: fields.others,
        };
        let text = serde_json::to_string(&line).map_err(|_| fmt::Error)?;
        writeln!(writer, "{text}")
    }
}

fn milliseconds(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    // Microseconds are what a double holds of today's time.
    (since.as_micros() as f64) / 1000.0
}

fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// The fields of an event.
#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn set(&mut self, field: &Field, value: Value) {
        match field.name() {
            // What a formatted text says is the message, a field of that name is not.
            "message" if self.message.is_empty() => {
                self.message = match value {
                    Value::String(text) => text,
                    other => other.to_string(),
                }
            }
            name if OWN.contains(&name) => drop(self.others.insert(format!("{name}_"), value)),
            name => drop(self.others.insert(name.to_owned(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value.into());
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.set(field, crate::chain(value).into());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex, PoisonError};

    use super::*;

    /// A place to write to that can be read.
    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What is written while `work` runs.
    fn written(format: Format, filter: &str, work: impl FnOnce()) -> String {
        let page = Page::default();
        let writer = page.clone();
        let layer = lines(format, move || writer.clone());
        let filter = read_filter(filter).expect("a filter");
        let subscriber = tracing_subscriber::registry().with(layer.with_filter(filter));
        tracing::subscriber::with_default(subscriber, work);
        let bytes = page.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        String::from_utf8(bytes).expect("text")
    }

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open \"door\"")]
    struct Closed(#[source] std::io::Error);

    fn say_much() {
        tracing::info!("plain");
        tracing::warn!(
            name = "a\"b\n\u{1}é",
            count = 3,
            minus = -4,
            ratio = 0.5,
            yes = true,
            "with {}",
            "fields"
        );
        tracing::error!(error = &Closed(std::io::Error::other("locked")) as &dyn std::error::Error, "failed");
        tracing::error!(list = ?vec!["x"], none = Option::<u32>::None, not = f64::NAN);
        tracing::info!(level = "high", msg = "own", ts = 1, target = "there", "names that are taken");
        tracing::debug!("not asked for");
        tracing::warn!(target: "nlink", "no such link");
    }

    #[test]
    fn every_line_is_json() {
        let text = written(Format::Json, "info", say_much);
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
        assert_eq!(lines.len(), 5, "{text}");
        for line in &lines {
            assert!(line["ts"].as_f64().is_some_and(|ts| ts > 1.6e12), "{line}");
            assert_eq!(line["target"], "sampan::log::tests", "{line}");
        }
        // Line, member, value.
        let rows = [
            (0, "msg", Value::from("plain")),
            (0, "level", "info".into()),
            (1, "msg", "with fields".into()),
            (1, "name", "a\"b\n\u{1}é".into()),
            (1, "count", 3.into()),
            (1, "minus", (-4).into()),
            (1, "ratio", 0.5.into()),
            (1, "yes", true.into()),
            (2, "error", "cannot open \"door\": locked".into()),
            (2, "level", "error".into()),
            (3, "list", "[\"x\"]".into()),
            (3, "none", Value::Null),
            (3, "not", Value::Null),
            (3, "msg", "".into()),
            (4, "level", "info".into()),
            (4, "level_", "high".into()),
            (4, "msg_", "own".into()),
            (4, "ts_", 1.into()),
        ];
        for (line, member, value) in rows {
            assert_eq!(lines[line][member], value, "{member} of {}", lines[line]);
        }
    }

    #[test]
    fn text_is_for_people() {
        let text = written(Format::Text, "info", say_much);
        assert!(
            text.lines().next().is_some_and(|line| line.contains("INFO") && line.ends_with("plain")),
            "{text}"
        );
        assert!(serde_json::from_str::<Value>(text.lines().next().unwrap_or_default()).is_err());
    }

    #[test]
    fn spans_of_traces_are_no_lines() {
        let work = || {
            let span = tracing::info_span!(target: TRACE_TARGET, "a part");
            assert!(span.is_disabled());
            span.in_scope(|| tracing::info!("inside"));
        };
        for filter in ["info", "trace", "sampan=trace"] {
            let text = written(Format::Text, filter, work);
            assert!(text.contains("inside") && !text.contains("a part"), "{filter}: {text}");
        }
        // Modules whose names begin alike are heard.
        let text = written(Format::Text, "info", || tracing::info!(target: "sampan::traces", "a line"));
        assert!(text.contains("a line"), "{text}");
        let modules = ["sampan::", "sampan_apiserver::", "sampan_node::", "sampan_runtime::"];
        assert!(modules.iter().all(|module| !module.starts_with(TRACE_TARGET)));
    }

    #[test]
    fn who_asks_hears_more() {
        let links = |filter: &str| written(Format::Json, filter, say_much).contains("no such link");
        assert!(!links("info") && !links("debug"));
        assert!(links("info,nlink=warn"));
        assert!(read_filter("=nonsense=").is_err());
    }
}
