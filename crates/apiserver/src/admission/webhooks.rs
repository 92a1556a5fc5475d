//! Admission webhooks: somebody else's word on a request (`admissionregistration.k8s.io/v1`).
//!
//! Deciding is pure: [`configuration`] reads what webhooks want, [`matching`] and [`conditions`] say who is asked,
//! [`review`] writes the question and reads the answer. What is left here is asking: mutating webhooks one after the
//! other (configurations by name, webhooks in order), validating ones at once.
//!
//! The configurations are compiled from the watch cache when one has changed, as the rules of RBAC are.

pub(in crate::admission) mod conditions;
mod configuration;
mod matching;
mod review;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream;
use sampan_store::Store;
use serde_json::Value;

pub(crate) use matching::Intercepted;
pub(crate) use review::in_words;

use super::Notes;
use super::policy::authorizer;
use super::policy::expression::Calls;
use crate::cache::WatchCache;
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::outbound::Outbound;
use crate::write::namespace_key;
use configuration::Webhook;
use review::Verdict;

const RESOURCES: [&str; 2] = [
    "mutatingwebhookconfigurations.admissionregistration.k8s.io",
    "validatingwebhookconfigurations.admissionregistration.k8s.io",
];
/// Validating webhooks asked at once for one request.
const MAX_AT_ONCE: usize = 32;

struct Compiled {
    revisions: [u64; 2],
    mutating: Vec<Webhook>,
    validating: Vec<Webhook>,
}

/// All webhooks of the cluster.
pub(crate) struct Webhooks {
    cache: Arc<WatchCache>,
    store: Arc<dyn Store>,
    outbound: Arc<Outbound>,
    metrics: Arc<Metrics>,
    compiled: Mutex<Option<Arc<Compiled>>>,
}

/// What has been asked so far about one object: a webhook may want to be asked again when others changed the object
/// after it (`reinvocationPolicy`, KEP-492), once.
pub(crate) struct Round {
    compiled: Arc<Compiled>,
    /// Those who were asked and want to be asked again, by place.
    asked: Vec<usize>,
    /// Those who are asked again.
    again: BTreeSet<usize>,
    second: bool,
}

impl Round {
    /// Begins the second round; `changed`: the server's own steps have changed the object since.
    pub(crate) fn next(&mut self, changed: bool) {
        self.second = true;
        if changed {
            self.again.extend(&self.asked);
        }
    }

    fn wants(&self, place: usize) -> bool {
        !self.second || self.again.contains(&place)
    }
}

/// Completes a document after a webhook's patch.
pub(crate) type Settle<'a> = &'a (dyn Fn(&mut Value) -> Result<(), ApiError> + Sync);

impl Webhooks {
    pub(crate) fn new(
        cache: Arc<WatchCache>,
        store: Arc<dyn Store>,
        outbound: Arc<Outbound>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { cache, store, outbound, metrics, compiled: Mutex::default() }
    }

    fn current(&self) -> Arc<Compiled> {
        let revisions = RESOURCES.map(|resource| self.cache.resource(resource).revision());
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        match &*compiled {
            Some(current) if current.revisions == revisions => current.clone(),
            _ => {
                let [mutating, validating] = [0, 1].map(|place| self.read(RESOURCES[place], place == 0));
                let fresh = Arc::new(Compiled { revisions, mutating, validating });
                *compiled = Some(fresh.clone());
                fresh
            }
        }
    }

    /// The webhooks of one resource; the cache lists configurations by name.
    fn read(&self, resource: &str, mutating: bool) -> Vec<Webhook> {
        let configurations = self.cache.resource(resource).list(&format!("/{resource}/"));
        let parsed = configurations.iter().filter_map(|item| serde_json::from_slice(&item.bytes).ok());
        parsed.flat_map(|c: Value| Webhook::read_all(&c, mutating)).collect()
    }

    /// Whether anybody may have a word at all. Cheap: every write asks.
    pub(crate) fn exist(&self) -> bool {
        let current = self.current();
        !current.mutating.is_empty() || !current.validating.is_empty()
    }

    /// Begins to ask mutating webhooks.
    pub(crate) fn round(&self) -> Round {
        Round { compiled: self.current(), asked: Vec::new(), again: BTreeSet::new(), second: false }
    }

    /// Asks mutating webhooks about a document (`None` for a delete) and applies their patches. Whether it changed.
    pub(crate) async fn mutate(
        &self,
        round: &mut Round,
        request: &Intercepted<'_>,
        document: &mut Option<Value>,
        notes: &Notes,
        settle: Settle<'_>,
    ) -> Result<bool, ApiError> {
        let compiled = round.compiled.clone();
        if compiled.mutating.is_empty() || matching::is_exempt(request.kind) {
            return Ok(false);
        }
        let labels = self.namespace_labels(request).await?;
        let mut changed = false;
        for (place, webhook) in compiled.mutating.iter().enumerate() {
            if !round.wants(place) {
                continue;
            }
            let Some(version) = wanted_version(webhook, request, document.as_ref(), labels.as_ref())? else {
                continue;
            };
            let patch = self.ask(webhook, request, &version, document.as_ref(), notes).await?;
            if let Some(patch) = patch {
                let patched = patched(webhook, request, &version, document.as_ref(), patch, settle)?;
                if document.as_ref() != Some(&patched) {
                    *document = Some(patched);
                    round.again.extend(&round.asked);
                    changed = true;
                }
            }
            if webhook.reinvoked {
                round.asked.push(place);
            }
        }
        Ok(changed)
    }

    /// Asks validating webhooks, all at once. Of several refusals the first in order counts.
    pub(crate) async fn validate(
        &self,
        request: &Intercepted<'_>,
        document: Option<&Value>,
        notes: &Notes,
    ) -> Result<(), ApiError> {
        let compiled = self.current();
        if compiled.validating.is_empty() || matching::is_exempt(request.kind) {
            return Ok(());
        }
        let labels = self.namespace_labels(request).await?;
        let mut chosen = Vec::new();
        for webhook in &compiled.validating {
            if let Some(version) = wanted_version(webhook, request, document, labels.as_ref())? {
                chosen.push((webhook, version));
            }
        }
        let mut questions: Vec<BoxFuture<'_, Result<Option<Value>, ApiError>>> = Vec::new();
        for (webhook, version) in &chosen {
            questions.push(Box::pin(self.ask(webhook, request, version, document, notes)));
        }
        let answers: Vec<Result<Option<Value>, ApiError>> =
            stream::iter(questions).buffered(MAX_AT_ONCE).collect().await;
        answers.into_iter().try_for_each(|answer| answer.map(|_| ()))
    }

    /// Labels of the request's namespace. One that was made a moment ago is in the store before it is in the cache.
    async fn namespace_labels(&self, request: &Intercepted<'_>) -> Result<Option<Value>, ApiError> {
        if request.namespace.is_empty() {
            return Ok(None);
        }
        let key = namespace_key(request.namespace);
        let bytes = match self.cache.resource("namespaces").get(&key) {
            Some(item) => Some(item.bytes.clone()),
            None => self.store.get(&key).await?.map(|kv| kv.value),
        };
        let namespace: Value = bytes.and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
        Ok(namespace.pointer("/metadata/labels").cloned())
    }

    /// Asks one webhook. Its patch if it has one; its refusal, or its failure if it fails closed, as an error.
    async fn ask(
        &self,
        webhook: &Webhook,
        request: &Intercepted<'_>,
        version: &str,
        document: Option<&Value>,
        notes: &Notes,
    ) -> Result<Option<Value>, ApiError> {
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
        let asking = self.consult(webhook, request, version, document);
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
        version: &str,
        document: Option<&Value>,
    ) -> Result<Verdict, String> {
        if !webhook.speaks_v1 {
            return Err("could not create admission objects: webhook does not accept known AdmissionReview versions (v1)"
                .to_owned());
        }
        let target = webhook.target.as_ref().map_err(|why| format!("could not get REST client: {why}"))?;
        let target = target.with_parameter(&format!("timeout={}s", webhook.timeout.as_secs()));
        let uid = uuid::Uuid::new_v4().to_string();
        let review = review::request(request, version, &uid, document);
        let answer = self.outbound.post(&target, review.to_string().into(), webhook.timeout).await;
        let answer = answer.map_err(|e| format!("failed to call webhook: Post {:?}: {e}", target.url()))?;
        review::verdict(&webhook.name, webhook.mutating, &uid, &answer)
    }
}

/// The version in which a webhook wants this document, if it wants to see it.
fn wanted_version(
    webhook: &Webhook,
    request: &Intercepted<'_>,
    document: Option<&Value>,
    labels: Option<&Value>,
) -> Result<Option<String>, ApiError> {
    let Some(version) = webhook.version_for(request) else { return Ok(None) };
    if !webhook.selects_namespace(request, document, |_| labels.cloned())
        || !webhook.selects_object(document, request.old.as_ref())
    {
        return Ok(None);
    }
    if webhook.conditions.is_empty() {
        return Ok(Some(version));
    }
    let review = review::request(request, &version, "", document);
    let authorizer = |calls: &Calls| match request.admission {
        Some(admission) => authorizer::answer(admission, request.name, calls),
        None => Err("there is nobody to ask".to_owned()),
    };
    let review = &review["request"];
    match conditions::hold(&webhook.conditions, review, &authorizer, webhook.fails_closed) {
        Ok(holds) => Ok(holds.then_some(version)),
        Err(why) => Err(ApiError::forbidden(&request.kind.group, &request.kind.plural, request.name, why)),
    }
}

/// The document after the patch of a webhook that saw it as `version`.
fn patched(
    webhook: &Webhook,
    request: &Intercepted<'_>,
    version: &str,
    document: Option<&Value>,
    patch: Value,
    settle: Settle<'_>,
) -> Result<Value, ApiError> {
    let seen = document.map(|document| review::as_sent(request, version, document));
    let mut patched = review::apply(&webhook.name, seen.as_ref(), patch)?;
    if let (Some(document), Some(seen)) = (document, &seen)
        && patched["apiVersion"] == seen["apiVersion"]
        && let Some(own) = document["apiVersion"].as_str()
    {
        patched = review::at_version(&patched, own);
    }
    settle(&mut patched)?;
    Ok(patched)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_round_asks_whom_it_must() {
        let compiled = Arc::new(Compiled { revisions: [0; 2], mutating: Vec::new(), validating: Vec::new() });
        let mut round = Round { compiled, asked: vec![0, 2], again: BTreeSet::from([0]), second: false };
        assert!(round.wants(1));
        round.next(false);
        assert_eq!([0, 1, 2].map(|place| round.wants(place)), [true, false, false]);
        round.next(true);
        assert_eq!([0, 1, 2].map(|place| round.wants(place)), [true, false, true]);
    }
}
