//! What the operator says about traces: a file of Kubernetes', and the variables of OpenTelemetry. What they mean is
//! `sampan-apiserver`'s matter; this file is where both come from.

use std::path::Path;

use sampan_apiserver::{SpanLayer, TraceEnvironment, TraceExporter, TraceSettings, start_traces};

use crate::Failure;

/// The two halves of the export, if traces are wanted.
pub(crate) fn start(file: Option<&Path>) -> Result<Option<(SpanLayer, TraceExporter)>, Failure> {
    let text = match file {
        Some(path) => {
            Some(std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?)
        }
        None => None,
    };
    let environment = TraceEnvironment {
        variable: &|name: &str| std::env::var(name).ok(),
        file: &|path: &str| std::fs::read(path),
    };
    let settings = TraceSettings::decide(text.as_deref(), &environment);
    let named = |why: String| match file {
        Some(path) => format!("{}: {why}", path.display()),
        None => why,
    };
    Ok(settings.map_err(named)?.map(start_traces))
}
