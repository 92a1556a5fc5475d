//! OTLP in its JSON form (`ExportTraceServiceRequest`): identifiers are hexadecimal, 64-bit numbers are text, enumerations
//! are numbers.

use serde_json::{Value, json};

use super::context::hex;
use super::layer::{Attribute, Finished, Kind};

/// The document that tells of these spans.
pub(super) fn document(resource: &[(String, String)], spans: &[Box<Finished>]) -> Value {
    let resource: Vec<Value> =
        resource.iter().map(|(key, text)| json!({"key": key, "value": {"stringValue": text}})).collect();
    let spans: Vec<Value> = spans.iter().map(|finished| span(finished)).collect();
    let scope = json!({"name": "sampan", "version": env!("CARGO_PKG_VERSION")});
    json!({"resourceSpans": [{
        "resource": {"attributes": resource},
        "scopeSpans": [{"scope": scope, "spans": spans}],
    }]})
}

fn span(of: &Finished) -> Value {
    let attributes: Vec<Value> =
        of.attributes.iter().map(|(key, value)| json!({"key": key, "value": any_value(value)})).collect();
    let mut span = json!({
        "traceId": hex(&of.context.trace),
        "spanId": hex(&of.context.span),
        "name": of.name,
        "kind": match of.kind { Kind::Internal => 1, Kind::Server => 2, Kind::Client => 3 },
        "startTimeUnixNano": of.start.to_string(),
        "endTimeUnixNano": of.end.to_string(),
        "attributes": attributes,
    });
    if let Some(parent) = of.parent {
        span["parentSpanId"] = hex(&parent).into();
    }
    if let Some(link) = of.link {
        span["links"] = json!([{"traceId": hex(&link.trace), "spanId": hex(&link.span)}]);
    }
    if let Some(error) = &of.error {
        span["status"] = json!({"code": 2, "message": error});
    }
    span
}

fn any_value(value: &Attribute) -> Value {
    match value {
        Attribute::Text(text) => json!({"stringValue": text}),
        Attribute::Integer(number) => json!({"intValue": number.to_string()}),
        Attribute::Float(number) => json!({"doubleValue": number}),
        Attribute::Flag(flag) => json!({"boolValue": flag}),
    }
}

#[cfg(test)]
mod tests {
    use super::super::context::SpanContext;
    use super::*;

    #[test]
    fn a_span_in_full() {
        let context = SpanContext { trace: [0xab; 16], span: [1; 8], sampled: true };
        let finished = Finished {
            context,
            parent: Some([2; 8]),
            link: Some(SpanContext { trace: [3; 16], span: [4; 8], sampled: false }),
            name: "GET /a".to_owned(),
            kind: Kind::Server,
            start: 1_700_000_000_000_000_001,
            end: 1_700_000_000_000_000_002,
            attributes: vec![
                ("a", Attribute::Text("b".to_owned())),
                ("n", Attribute::Integer(-5)),
                ("f", Attribute::Float(0.5)),
                ("y", Attribute::Flag(true)),
            ],
            error: Some("why".to_owned()),
        };
        let document = document(&[("service.name".to_owned(), "s".to_owned())], &[Box::new(finished)]);
        let expected = json!({"resourceSpans": [{
            "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "s"}}]},
            "scopeSpans": [{
                "scope": {"name": "sampan", "version": env!("CARGO_PKG_VERSION")},
                "spans": [{
                    "traceId": "abababababababababababababababab", "spanId": "0101010101010101",
                    "parentSpanId": "0202020202020202", "name": "GET /a", "kind": 2,
                    "startTimeUnixNano": "1700000000000000001", "endTimeUnixNano": "1700000000000000002",
                    "attributes": [
                        {"key": "a", "value": {"stringValue": "b"}}, {"key": "n", "value": {"intValue": "-5"}},
                        {"key": "f", "value": {"doubleValue": 0.5}}, {"key": "y", "value": {"boolValue": true}},
                    ],
                    "links": [{"traceId": "03030303030303030303030303030303", "spanId": "0404040404040404"}],
                    "status": {"code": 2, "message": "why"},
                }],
            }],
        }]});
        assert_eq!(document, expected);
    }
}
