//! From `tracing` spans to records: a span of [`TARGET`] gets a place in a trace when it is made, attributes while it lives,
//! and goes to the exporter's queue when it ends, if its trace is sampled. The queue is bounded, and nobody waits for it.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Metadata, Span, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::context::{Sampler, SpanContext};
use super::exporter::{Counts, Queue};
use super::{TARGET, nanoseconds};

/// Attributes of one span; more are left out.
const MAX_ATTRIBUTES: usize = 64;
/// Characters of one attribute: what clients send, such as a user agent, may be long.
const MAX_TEXT: usize = 1024;

/// Listens to spans.
pub struct SpanLayer {
    sampler: Sampler,
    queue: Queue,
    counts: Arc<Counts>,
}

impl SpanLayer {
    pub(super) fn new(sampler: Sampler, queue: Queue, counts: Arc<Counts>) -> Self {
        Self { sampler, queue, counts }
    }

    /// The layer, hearing of nothing but spans of the target.
    pub fn filtered<S>(self) -> impl Layer<S> + Send + Sync
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        self.with_filter(filter_fn(|metadata: &Metadata<'_>| {
            metadata.is_span() && metadata.target() == TARGET
        }))
    }
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Attribute {
    Text(String),
    Integer(i64),
    Float(f64),
    Flag(bool),
}

/// Whose work a span is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    #[default]
    Internal,
    Server,
    Client,
}

/// A span that is told of.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) context: SpanContext,
    pub(crate) parent: Option<[u8; 8]>,
    pub(crate) link: Option<SpanContext>,
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Nanoseconds since 1970.
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) attributes: Vec<(&'static str, Attribute)>,
    /// What went wrong, if something did.
    pub(crate) error: Option<String>,
}

/// What a living span carries. Of one that is not sampled only its place is kept, for its children.
struct Place {
    context: SpanContext,
    told: Option<Box<Finished>>,
}

/// Where a span stands, if it is in a trace.
pub(super) fn context_of(span: &Span) -> Option<SpanContext> {
    span.with_subscriber(|(id, dispatch)| {
        let span = dispatch.downcast_ref::<Registry>()?.span(id)?;
        span.scope().find_map(|span| span.extensions().get::<Place>().map(|place| place.context))
    })?
}

impl<S> Layer<S> for SpanLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut beginning = Beginning::default();
        attributes.record(&mut beginning);
        let above = span.parent().and_then(|parent| parent.extensions().get::<Place>().map(|p| p.context));
        let (place, parent) = match (above, beginning.parent) {
            (Some(above), _) => (above.child(), Some(above.span)),
            (None, _) if !beginning.root => return,
            (None, Some(remote)) => (SpanContext::remote(remote, self.sampler), Some(remote.span)),
            (None, None) => (SpanContext::root(self.sampler), None),
        };
        let told = place.sampled.then(|| {
            let mut told = Box::new(Finished {
                context: place,
                parent,
                link: beginning.link,
                name: span.name().to_owned(),
                kind: Kind::default(),
                start: nanoseconds(SystemTime::now()),
                end: 0,
                attributes: Vec::new(),
                error: None,
            });
            attributes.record(&mut *told);
            told
        });
        span.extensions_mut().insert(Place { context: place, told });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(told) =
            span.extensions_mut().get_mut::<Place>().and_then(|place| place.told.as_deref_mut())
        {
            values.record(told);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let place = span.extensions_mut().remove::<Place>();
        let Some(mut told) = place.and_then(|place| place.told) else { return };
        told.end = nanoseconds(SystemTime::now()).max(told.start);
        if self.queue.try_send(told).is_err() {
            self.counts.lost(1);
        }
    }
}

/// What must be known of a span before it has a place.
#[derive(Default)]
struct Beginning {
    root: bool,
    parent: Option<SpanContext>,
    link: Option<SpanContext>,
}

impl Visit for Beginning {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.root |= field.name() == "otel.root" && value;
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "otel.parent" => self.parent = SpanContext::parse(value),
            "otel.link" => self.link = SpanContext::parse(value),
            _ => {}
        }
    }
    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

impl Finished {
    fn set(&mut self, field: &Field, value: Attribute) {
        match (field.name(), value) {
            ("otel.name", Attribute::Text(name)) => self.name = name,
            ("otel.kind", Attribute::Text(kind)) => {
                self.kind = match kind.as_str() {
                    "server" => Kind::Server,
                    "client" => Kind::Client,
                    _ => Kind::Internal,
                };
            }
            ("otel.error", Attribute::Text(error)) => self.error = Some(error),
            ("otel.start", Attribute::Integer(start)) => self.start = start.unsigned_abs(),
            (name, _) if name.starts_with("otel.") => {}
            (name, value) => match self.attributes.iter().position(|(known, _)| *known == name) {
                Some(at) => self.attributes[at].1 = value,
                None if self.attributes.len() < MAX_ATTRIBUTES => self.attributes.push((name, value)),
                None => {}
            },
        }
    }
}

impl Visit for Finished {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, Attribute::Float(value));
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, Attribute::Integer(value));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, Attribute::Integer(i64::try_from(value).unwrap_or(i64::MAX)));
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, Attribute::Flag(value));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, Attribute::Text(value.chars().take(MAX_TEXT).collect()));
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        self.record_str(field, &text);
    }
}
