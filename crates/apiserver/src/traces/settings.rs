//! Where traces go and how many: Kubernetes' `TracingConfiguration`, and the variables every program with OpenTelemetry
//! understands. What the file says counts before what variables say.
//!
//! Upstream speaks OTLP over gRPC; this server speaks OTLP over HTTP, which every collector takes at its port 4318. That
//! is why `endpoint` means another port here than in a cluster that is moved.

use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, Uri};
use serde::Deserialize;

use super::context::{Rate, Sampler};
use crate::request::percent_decoded;

/// Port of OTLP over HTTP.
const PORT: u16 = 4318;
/// Address of traces below a collector's.
const PATH: &str = "/v1/traces";
/// Pairs that are read of a list such as `OTEL_RESOURCE_ATTRIBUTES`.
const MAX_PAIRS: usize = 64;
/// How long finished spans wait for others (`OTEL_BSP_SCHEDULE_DELAY`, and its default).
const DELAY: Duration = Duration::from_secs(5);
/// Longer ones would keep spans from everybody, and fill the queue.
const MAX_DELAY: Duration = Duration::from_secs(60);
const MILLION: u32 = 1_000_000;

const VERSIONS: [&str; 3] =
    ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1", "apiserver.config.k8s.io/v1alpha1"];

/// Everything the export needs to know.
#[derive(Debug)]
pub struct Settings {
    pub(super) endpoint: Endpoint,
    pub(super) headers: HeaderMap,
    /// What the spans are spans of: `service.name` and others.
    pub(super) resource: Vec<(String, String)>,
    pub(super) sampler: Sampler,
    /// Authorities of the collector's certificate, PEM; the machine's if there are none.
    pub(super) authorities: Option<Vec<u8>>,
    pub(super) delay: Duration,
}

/// The collector.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) path: String,
}

impl Endpoint {
    /// Reads `HOST:PORT` or an address; `base`: the path of traces is below the one that is given.
    fn parse(text: &str, base: bool) -> Result<Self, String> {
        let bad = |why: &str| format!("endpoint {text:?}: {why}");
        let uri: Uri = match text.contains("://") {
            true => text.parse(),
            false => format!("http://{text}").parse(),
        }
        .map_err(|e| bad(&format!("{e}")))?;
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(bad("only http and https are spoken")),
        };
        let authority = uri.authority().ok_or_else(|| bad("it names no host"))?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(bad("it must name a host, and no user"));
        }
        let usual = match (text.contains("://"), tls) {
            (false, _) => PORT,
            (true, true) => 443,
            (true, false) => 80,
        };
        let given = uri.path_and_query().map_or("", PathAndQuery::path).trim_end_matches('/');
        let path = if base || given.is_empty() { format!("{given}{PATH}") } else { given.to_owned() };
        Ok(Self { tls, host: authority.host().to_owned(), port: authority.port_u16().unwrap_or(usual), path })
    }

    /// As the header `Host` has it.
    pub(super) fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// As messages show it.
    pub(super) fn url(&self) -> String {
        format!("{}://{}{}", if self.tls { "https" } else { "http" }, self.authority(), self.path)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TracingConfiguration {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    endpoint: Option<String>,
    sampling_rate_per_million: Option<i64>,
}

impl TracingConfiguration {
    fn parse(text: &str) -> Result<Self, String> {
        let configuration: Self = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        let (version, kind) = (&configuration.api_version, &configuration.kind);
        if !VERSIONS.contains(&version.as_str()) || kind != "TracingConfiguration" {
            return Err(format!("it is a {kind} of {version}"));
        }
        Ok(configuration)
    }

    fn rate(&self) -> Result<Option<Rate>, String> {
        let Some(given) = self.sampling_rate_per_million else { return Ok(None) };
        let rate = u32::try_from(given).ok().filter(|rate| *rate <= MILLION);
        let rate = rate.ok_or_else(|| {
            format!(
                "samplingRatePerMillion: Invalid value: {given}: sampling rate must be between 0 and 1000000"
            )
        })?;
        Ok(Some(match rate {
            0 => Rate::None,
            MILLION => Rate::All,
            rate => Rate::Part(f64::from(rate) / f64::from(MILLION)),
        }))
    }
}

/// The operator's words: variables of the environment, and files they name.
pub struct Environment<'a> {
    /// The value of a variable.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// The content of a file.
    pub file: &'a dyn Fn(&str) -> std::io::Result<Vec<u8>>,
}

impl Environment<'_> {
    fn get(&self, name: &str) -> Option<String> {
        (self.variable)(name).filter(|value| !value.is_empty())
    }

    /// A variable about traces, or the one about everything.
    fn of_traces(&self, name: &str) -> Option<String> {
        self.get(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
            .or_else(|| self.get(&format!("OTEL_EXPORTER_OTLP_{name}")))
    }
}

impl Settings {
    /// What configuration file and environment come to; `None`: nothing is exported.
    pub fn decide(file: Option<&str>, environment: &Environment<'_>) -> Result<Option<Self>, String> {
        let get = |name: &str| environment.get(name);
        let named = get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").is_some()
            || get("OTEL_EXPORTER_OTLP_ENDPOINT").is_some();
        let refused = get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
            || get("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
        let configuration = file.map(TracingConfiguration::parse).transpose()?;
        if configuration.is_none() && (!named || refused) {
            return Ok(None);
        }
        if let Some(protocol) = environment.of_traces("PROTOCOL").filter(|name| !name.starts_with("http/")) {
            return Err(format!("OTEL_EXPORTER_OTLP_PROTOCOL: {protocol:?} is not spoken, http/json is"));
        }
        let endpoint = match configuration.as_ref().and_then(|c| c.endpoint.as_deref()) {
            Some(endpoint) => Endpoint::parse(endpoint, false)?,
            None => match (get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), get("OTEL_EXPORTER_OTLP_ENDPOINT")) {
                (Some(exact), _) => Endpoint::parse(&exact, false)?,
                (None, Some(base)) => Endpoint::parse(&base, true)?,
                (None, None) => Endpoint::parse(&format!("localhost:{PORT}"), true)?,
            },
        };
        let sampler = match &configuration {
            // A file that names no rate leaves the decision to callers, as upstream does.
            Some(configuration) => match configuration.rate()? {
                Some(rate) => Sampler { by_parent: true, rate },
                None if get("OTEL_TRACES_SAMPLER").is_some() => sampler(environment)?,
                None => Sampler { by_parent: true, rate: Rate::None },
            },
            None => sampler(environment)?,
        };
        let authorities = match environment.of_traces("CERTIFICATE") {
            Some(path) => Some((environment.file)(&path).map_err(|e| format!("cannot read {path}: {e}"))?),
            None => None,
        };
        Ok(Some(Self {
            endpoint,
            headers: headers(&environment.of_traces("HEADERS").unwrap_or_default())?,
            resource: resource(environment),
            sampler,
            authorities,
            delay: delay(environment)?,
        }))
    }
}

/// `OTEL_BSP_SCHEDULE_DELAY`, milliseconds.
fn delay(environment: &Environment<'_>) -> Result<Duration, String> {
    let Some(text) = environment.get("OTEL_BSP_SCHEDULE_DELAY") else { return Ok(DELAY) };
    let delay = text.parse().ok().map(Duration::from_millis).filter(|delay| *delay <= MAX_DELAY);
    delay.ok_or_else(|| {
        format!("OTEL_BSP_SCHEDULE_DELAY: {text:?} is not between 0 and {}", MAX_DELAY.as_millis())
    })
}

/// `OTEL_TRACES_SAMPLER` and its argument.
fn sampler(environment: &Environment<'_>) -> Result<Sampler, String> {
    let name = environment.get("OTEL_TRACES_SAMPLER").unwrap_or_else(|| "parentbased_always_on".to_owned());
    let (by_parent, rate) = match name.strip_prefix("parentbased_") {
        Some(rate) => (true, rate),
        None => (false, name.as_str()),
    };
    let rate = match rate {
        "always_on" => Rate::All,
        "always_off" => Rate::None,
        "traceidratio" => {
            let text = environment.get("OTEL_TRACES_SAMPLER_ARG").unwrap_or_else(|| "1".to_owned());
            let part: Option<f64> = text.parse().ok().filter(|part| (0.0..=1.0).contains(part));
            Rate::Part(
                part.ok_or_else(|| format!("OTEL_TRACES_SAMPLER_ARG: {text:?} is not between 0 and 1"))?,
            )
        }
        _ => return Err(format!("OTEL_TRACES_SAMPLER: {name:?} is not known")),
    };
    Ok(Sampler { by_parent, rate })
}

/// Reads `KEY=VALUE,KEY=VALUE`, values percent-encoded.
fn pairs(text: &str) -> impl Iterator<Item = (String, String)> {
    let pairs = text.split(',').filter_map(|pair| pair.split_once('=')).take(MAX_PAIRS);
    pairs.map(|(key, value)| (key.trim().to_owned(), percent_decoded(value.trim()).into_owned()))
}

fn headers(text: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (key, value) in pairs(text) {
        // The value may be a secret.
        let bad = || format!("OTEL_EXPORTER_OTLP_HEADERS: {key:?} cannot be sent");
        let name = HeaderName::from_bytes(key.as_bytes()).map_err(|_| bad())?;
        let mut value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| bad())?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

fn resource(environment: &Environment<'_>) -> Vec<(String, String)> {
    let mut resource = vec![
        ("service.name".to_owned(), "sampan".to_owned()),
        ("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    ];
    let given = environment.get("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let name = environment.get("OTEL_SERVICE_NAME").map(|name| ("service.name".to_owned(), name));
    for (key, value) in pairs(&given).chain(name) {
        match resource.iter_mut().find(|(known, _)| *known == key) {
            Some((_, known)) => *known = value,
            None => resource.push((key, value)),
        }
    }
    resource
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(file: Option<&str>, variables: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        let file_content = |path: &str| match path {
            "/ca.pem" => Ok(b"PEM".to_vec()),
            _ => Err(std::io::Error::other("no such file")),
        };
        Settings::decide(file, &Environment { variable: &variable, file: &file_content })
    }

    fn file(rest: &str) -> String {
        format!("apiVersion: apiserver.config.k8s.io/v1beta1\nkind: TracingConfiguration\n{rest}")
    }

    #[test]
    fn where_to_and_how_many() {
        const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        let parent = |rate| Sampler { by_parent: true, rate };
        // File, variables, address, sampler.
        let rows: Vec<(Option<String>, &[(&str, &str)], &str, Sampler)> = vec![
            (Some(file("")), &[], "http://localhost:4318/v1/traces", parent(Rate::None)),
            (
                Some(file("endpoint: otel.example:5000\nsamplingRatePerMillion: 250000\n")),
                &[(ENDPOINT, "http://other:1"), ("OTEL_TRACES_SAMPLER", "always_off")],
                "http://otel.example:5000/v1/traces",
                parent(Rate::Part(0.25)),
            ),
            (
                Some(file("samplingRatePerMillion: 1000000\n")),
                &[(ENDPOINT, "https://otel.example/base/")],
                "https://otel.example:443/base/v1/traces",
                parent(Rate::All),
            ),
            (
                Some(file("endpoint: https://otel.example:4318/own\n")),
                &[("OTEL_TRACES_SAMPLER", "always_on")],
                "https://otel.example:4318/own",
                Sampler { by_parent: false, rate: Rate::All },
            ),
            (None, &[(ENDPOINT, "http://a")], "http://a:80/v1/traces", parent(Rate::All)),
            (
                None,
                &[
                    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://a:4318/v1/x"),
                    (ENDPOINT, "http://b"),
                    ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
                    ("OTEL_TRACES_SAMPLER_ARG", "0.5"),
                ],
                "http://a:4318/v1/x",
                parent(Rate::Part(0.5)),
            ),
            (
                None,
                &[(ENDPOINT, "http://[::1]:4318"), ("OTEL_TRACES_SAMPLER", "always_off")],
                "http://[::1]:4318/v1/traces",
                Sampler { by_parent: false, rate: Rate::None },
            ),
        ];
        for (file, variables, url, sampler) in rows {
            let settings = decide(file.as_deref(), variables).expect(url).expect(url);
            assert_eq!((settings.endpoint.url().as_str(), settings.sampler), (url, sampler));
        }
        for variables in [
            &[][..],
            &[(ENDPOINT, "http://a"), ("OTEL_SDK_DISABLED", "true")],
            &[(ENDPOINT, "http://a"), ("OTEL_TRACES_EXPORTER", "none")],
            &[(ENDPOINT, "")],
        ] {
            assert!(decide(None, variables).expect("fine").is_none(), "{variables:?}");
        }
    }

    #[test]
    fn what_is_no_configuration() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a");
        let rows: Vec<(Option<String>, Vec<(&str, &str)>, &str)> = vec![
            (Some("kind: Pod\napiVersion: v1\n".to_owned()), vec![], "it is a Pod of v1"),
            (Some(file("samplingRatePerMillion: 1000001\n")), vec![], "must be between 0 and 1000000"),
            (Some(file("samplingRatePerMillion: -1\n")), vec![], "must be between 0 and 1000000"),
            (Some(file("endpoint: dns://a:1\n")), vec![], "only http and https are spoken"),
            (Some(file("endpoint: u@a:1\n")), vec![], "and no user"),
            (Some(file("endpiont: a\n")), vec![], "endpiont"),
            (None, vec![endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], "\"grpc\" is not spoken"),
            (None, vec![endpoint, ("OTEL_TRACES_SAMPLER", "jaeger_remote")], "is not known"),
            (
                None,
                vec![endpoint, ("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")],
                "is not between 0 and 1",
            ),
            (None, vec![endpoint, ("OTEL_EXPORTER_OTLP_HEADERS", "a b=c")], "\"a b\" cannot be sent"),
            (None, vec![endpoint, ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/none")], "cannot read /none"),
            (None, vec![endpoint, ("OTEL_BSP_SCHEDULE_DELAY", "5s")], "\"5s\" is not between 0 and 60000"),
            (None, vec![endpoint, ("OTEL_BSP_SCHEDULE_DELAY", "60001")], "is not between 0 and 60000"),
            (None, vec![endpoint, ("OTEL_BSP_SCHEDULE_DELAY", "-1")], "is not between 0 and 60000"),
        ];
        for (file, variables, why) in rows {
            let error = decide(file.as_deref(), &variables).expect_err(why);
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn who_speaks_and_with_what_words() {
        let settings = decide(
            None,
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://a"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x, x-team = b"),
                ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
                ("OTEL_RESOURCE_ATTRIBUTES", "service.name=lost,host.name=h%2C1"),
                ("OTEL_SERVICE_NAME", "own"),
                ("OTEL_BSP_SCHEDULE_DELAY", "10"),
            ],
        );
        let settings = settings.expect("fine").expect("settings");
        assert_eq!(settings.headers["authorization"], "Bearer x");
        assert_eq!(settings.headers["x-team"], "b");
        assert_eq!(settings.authorities.as_deref(), Some(&b"PEM"[..]));
        assert_eq!(settings.delay, Duration::from_millis(10));
        let resource: Vec<(&str, &str)> =
            settings.resource.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(resource, [("service.name", "own"), ("service.version", version), ("host.name", "h,1")]);
    }
}
