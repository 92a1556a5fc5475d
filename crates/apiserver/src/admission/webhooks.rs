//! Admission webhooks: somebody else's word on a request (`admissionregistration.k8s.io/v1`).
//!
//! Deciding is pure: [`configuration`] reads what webhooks want, [`super::matching`] and [`conditions`] say who is asked,
//! [`review`] writes the question and reads the answer. What is left here is asking: mutating webhooks one after the
//! other (configurations by name, webhooks in order), validating ones at once.
//!
//! The configurations are compiled when one has changed ([`Latest`]).

pub(in crate::admission) mod conditions;
mod configuration;
mod review;

use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream;
use serde_json::Value;

pub(crate) use review::in_words;

use super::Admission;
use super::intercepted::{Intercepted, Seen};
use super::latest::Latest;
use super::policy::authorizer::Asked;
use super::reinvocation::Reinvocation;
use crate::cache::WatchCache;
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::outbound::Outbound;
use configuration::Webhook;
use review::Verdict;

const RESOURCES: [&str; 2] = [
    "mutatingwebhookconfigurations.admissionregistration.k8s.io",
    "validatingwebhookconfigurations.admissionregistration.k8s.io",
];
/// Validating webhooks asked at once for one request.
const MAX_AT_ONCE: usize = 32;

struct Compiled {
    mutating: Vec<Webhook>,
    validating: Vec<Webhook>,
}

impl Compiled {
    /// Configurations come by name, and so do their webhooks.
    fn read(configurations: [Vec<Value>; 2]) -> Self {
        let webhooks = |configurations: &[Value], mutating| {
            configurations
                .iter()
                .flat_map(|configuration| Webhook::read_all(configuration, mutating))
                .collect()
        };
        let [mutating, validating] = configurations;
        Self { mutating: webhooks(&mutating, true), validating: webhooks(&validating, false) }
    }
}

/// All webhooks of the cluster.
pub(crate) struct Webhooks {
    compiled: Latest<Compiled, 2>,
    outbound: Arc<Outbound>,
    metrics: Arc<Metrics>,
}

/// What has been asked so far about one object: mutating webhooks by place.
pub(super) struct Round {
    compiled: Arc<Compiled>,
    pub(super) again: Reinvocation<usize>,
}

/// Completes a document after a change of a policy or a webhook, and puts right what they may not change.
pub(super) type Settle<'a> = &'a (dyn Fn(&mut Value) -> Result<(), ApiError> + Sync);

impl Webhooks {
    pub(crate) fn new(cache: Arc<WatchCache>, outbound: Arc<Outbound>, metrics: Arc<Metrics>) -> Self {
        Self { compiled: Latest::new(cache, RESOURCES, Compiled::read), outbound, metrics }
    }

    /// Whether anybody may have a word at all. Cheap: every write asks.
    pub(crate) fn exist(&self) -> bool {
        let current = self.compiled.get();
        !current.mutating.is_empty() || !current.validating.is_empty()
    }

    /// Begins to ask mutating webhooks, if there are some.
    pub(super) fn round(&self) -> Option<Round> {
        let compiled = self.compiled.get();
        (!compiled.mutating.is_empty()).then(|| Round { compiled, again: Reinvocation::default() })
    }

    /// Asks mutating webhooks about a document (`None` for a delete) and applies their patches.
    pub(super) async fn mutate(
        &self,
        round: &mut Round,
        admission: &Admission<'_>,
        request: &Intercepted<'_>,
        document: &mut Option<Value>,
        settle: Settle<'_>,
    ) -> Result<(), ApiError> {
        let compiled = round.compiled.clone();
        if request.is_exempt() {
            return Ok(());
        }
        for (place, webhook) in compiled.mutating.iter().enumerate() {
            if !round.again.wants(&place) {
                continue;
            }
            let Some(seen) = wanted(webhook, admission, request, document.as_ref()).await? else { continue };
            let patch = self.ask(webhook, admission, request, &seen).await?;
            if let Some(patch) = patch {
                let mut patched = review::apply(&webhook.name, seen.object.as_deref(), patch)?;
                check_type(seen.object.as_deref(), &patched)?;
                patched = request.own_form(admission.server, seen.kind, patched).await?;
                settle(&mut patched)?;
                if document.as_ref() != Some(&patched) {
                    *document = Some(patched);
                    round.again.change();
                }
            }
            if webhook.reinvoked {
                round.again.ask(place);
            }
        }
        round.again.end(document.as_ref());
        Ok(())
    }

    /// Asks validating webhooks, all at once. Of several refusals the first in order counts.
    pub(super) async fn validate(
        &self,
        admission: &Admission<'_>,
        request: &Intercepted<'_>,
        document: Option<&Value>,
    ) -> Result<(), ApiError> {
        let compiled = self.compiled.get();
        if compiled.validating.is_empty() || request.is_exempt() {
            return Ok(());
        }
        let mut chosen = Vec::new();
        for webhook in &compiled.validating {
            if let Some(seen) = wanted(webhook, admission, request, document).await? {
                chosen.push((webhook, seen));
            }
        }
        let mut questions: Vec<BoxFuture<'_, Result<Option<Value>, ApiError>>> = Vec::new();
        for (webhook, seen) in &chosen {
            questions.push(Box::pin(self.ask(webhook, admission, request, seen)));
        }
        let answers: Vec<Result<Option<Value>, ApiError>> =
            stream::iter(questions).buffered(MAX_AT_ONCE).collect().await;
        answers.into_iter().try_for_each(|answer| answer.map(|_| ()))
    }

    /// Asks one webhook. Its patch if it has one; its refusal, or its failure if it fails closed, as an error.
    async fn ask(
        &self,
        webhook: &Webhook,
        admission: &Admission<'_>,
        request: &Intercepted<'_>,
        seen: &Seen<'_>,
    ) -> Result<Option<Value>, ApiError> {
        let notes = admission.notes;
        if request.dry_run && !webhook.dry_run_safe {
            let why = format!("admission webhook {:?} does not support dry run", webhook.name);
            return Err(ApiError::bad_request(why));
        }
        let began = Instant::now();
        let span = crate::traces::part!(
            "admission webhook",
            webhook.name = webhook.name,
            webhook.type = if webhook.mutating { "admit" } else { "validating" }
        );
        let asking = self.consult(webhook, request, seen);
        let answer = tracing::Instrument::instrument(asking, span).await;
        let kind = if webhook.mutating { "admit" } else { "validating" };
        let rejected = match &answer {
            Ok(verdict) => verdict.refusal.is_some(),
            Err(_) => webhook.fails_closed,
        };
        self.metrics.webhook(&webhook.name, kind, request.operation.as_str(), rejected, began.elapsed());
        match answer {
            Ok(verdict) => {
                verdict.warnings.iter().for_each(|warning| notes.warn(warning));
                verdict.annotations.into_iter().for_each(|(key, value)| notes.annotate(key, value));
                verdict.refusal.map_or(Ok(verdict.patch), Err)
            }
            Err(why) => {
                let message = format!("failed calling webhook {:?}: {why}", webhook.name);
                if webhook.fails_closed {
                    return Err(ApiError::internal(message));
                }
                tracing::warn!(
                    webhook = webhook.name,
                    operation = request.operation.as_str(),
                    resource = &*request.kind.plural,
                    namespace = request.namespace,
                    name = request.name,
                    error = message,
                    "a webhook that fails open"
                );
                Ok(None)
            }
        }
    }

    async fn consult(
        &self,
        webhook: &Webhook,
        request: &Intercepted<'_>,
        seen: &Seen<'_>,
    ) -> Result<Verdict, String> {
        if !webhook.speaks_v1 {
            return Err("could not create admission objects: webhook does not accept known AdmissionReview versions (v1)"
                .to_owned());
        }
        let target = webhook.target.as_ref().map_err(|why| format!("could not get REST client: {why}"))?;
        let target = target.with_parameter(&format!("timeout={}s", webhook.timeout.as_secs()));
        let uid = uuid::Uuid::new_v4().to_string();
        let review = review::request(request, seen, &uid);
        let answer = self.outbound.post(&target, review.to_string().into(), webhook.timeout).await;
        let answer = answer.map_err(|e| format!("failed to call webhook: Post {:?}: {e}", target.url()))?;
        review::verdict(&webhook.name, webhook.mutating, &uid, &answer)
    }
}

/// A patch may change what a document says, not what it is.
fn check_type(before: Option<&Value>, after: &Value) -> Result<(), ApiError> {
    let changed = |field: &&str| before.is_some_and(|before| before[*field] != after[*field]);
    match ["apiVersion", "kind"].into_iter().find(changed) {
        Some(field) => {
            Err(ApiError::internal(format!("a webhook attempted to change the {field} of an object")))
        }
        None => Ok(()),
    }
}

/// The documents as a webhook wants to see them, if it does.
async fn wanted<'a>(
    webhook: &Webhook,
    admission: &Admission<'_>,
    request: &'a Intercepted<'_>,
    document: Option<&'a Value>,
) -> Result<Option<Seen<'a>>, ApiError> {
    let labels = request.labels(document, admission.namespace_object());
    let Some(matched) = webhook.matcher.matches(request, &labels) else { return Ok(None) };
    let seen = request.seen(admission.server, matched, document).await?;
    if webhook.conditions.is_empty() {
        return Ok(Some(seen));
    }
    let authorizer = Asked { admission, name: request.name };
    let (object, old) = (seen.object.as_deref(), seen.old.as_deref());
    let description = request.description(matched);
    let documents = [object.unwrap_or(&Value::Null), old.unwrap_or(&Value::Null), &description];
    match conditions::hold(&webhook.conditions, documents, &authorizer, webhook.fails_closed) {
        Ok(holds) => Ok(holds.then_some(seen)),
        Err(why) => Err(ApiError::forbidden(&request.kind.group, &request.kind.plural, request.name, why)),
    }
}
