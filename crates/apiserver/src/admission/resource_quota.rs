//! ResourceQuota: what a namespace may use at most.
//!
//! The usage in a quota's status is raised in the same transaction that stores the object, on the condition that the
//! quota has not changed since it was read. So two requests can never both take the last place, whichever of several
//! servers they came to; the loser looks again. Within one server the writers of a namespace take turns, so that a crowd
//! does not spend itself on lost races.
//!
//! Giving back is not done here: a loop counts again from the objects (`controllers/src/resource_quota.rs`). Until it
//! has, a quota says more than is used, never less.
//!
//! Source of the rules and of the words: `apiserver/pkg/admission/plugin/resourcequota`.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use jiff::Timestamp;
use sampan_api::quantity::Quantity;
use sampan_api::quota::{self, Amounts};
use sampan_store::{Compare, Durability, KeyValue, Op, Range};
use serde_json::{Value, json};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::{Admission, Operation};
use crate::encode;
use crate::error::ApiError;
use crate::view::View;
use crate::write::parse;

/// How many namespaces can be charged at the same time; two that share a turn only wait for each other.
const TURNS: usize = 64;

/// Whose turn it is to charge the quotas of a namespace.
pub(crate) struct Turns(Vec<Arc<Mutex<()>>>);

impl Default for Turns {
    fn default() -> Self {
        Self((0..TURNS).map(|_| Arc::default()).collect())
    }
}

impl Turns {
    async fn take(&self, namespace: &str) -> Option<OwnedMutexGuard<()>> {
        let mut hasher = DefaultHasher::new();
        namespace.hash(&mut hasher);
        let place = usize::try_from(hasher.finish() % TURNS as u64).unwrap_or(0);
        match self.0.get(place) {
            Some(turn) => Some(turn.clone().lock_owned().await),
            None => None,
        }
    }
}

/// What must be written together with an object, and under which conditions.
#[must_use]
#[derive(Default)]
pub(crate) struct Charges {
    compare: Vec<Compare>,
    ops: Vec<Op>,
    /// Held until the transaction is over.
    _turn: Option<OwnedMutexGuard<()>>,
}

impl Charges {
    /// Adds conditions and changes to the transaction of the object, after its own.
    pub(crate) fn join(&self, compare: &mut Vec<Compare>, ops: &mut Vec<Op>) {
        compare.extend(self.compare.iter().cloned());
        ops.extend(self.ops.iter().cloned());
    }

    /// Whether a key is one whose change makes the decision void, so that the request must be admitted again.
    pub(crate) fn guard(&self, key: &str) -> bool {
        self.compare.iter().any(|condition| match condition {
            Compare::ModRevision(own, _) | Compare::Absent(own) | Compare::Present(own) => &**own == key,
        })
    }
}

/// Whether a request can cost anything: new objects, changed services and claims, resized pods.
fn is_counted(admission: &Admission<'_>) -> bool {
    let kind = admission.kind;
    if !kind.namespaced() || !kind.stored() {
        return false;
    }
    match (admission.operation, admission.view) {
        (Operation::Create, View::Object) => true,
        (Operation::Update, View::Object) => {
            kind.group.is_empty() && matches!(&*kind.plural, "services" | "persistentvolumeclaims")
        }
        (Operation::Update, View::Resize) => admission.is("", "pods"),
        _ => false,
    }
}

/// Refuses what exceeds a quota, and says how the quotas change with the object.
pub(super) async fn charge(admission: &Admission<'_>, object: &Value) -> Result<Charges, ApiError> {
    let prefix = format!("/resourcequotas/{}/", admission.namespace);
    let server = admission.server;
    if !is_counted(admission) || server.cache.resource("resourcequotas").list(&prefix).is_empty() {
        return Ok(Charges::default());
    }
    let turn = server.quota_turns.take(admission.namespace).await;
    // The store and not the cache: the condition on the revision would fail on what the cache does not show yet.
    let stored = server.store.range(Range { prefix, ..Range::default() }).await?.items;
    let mut quotas = stored.iter().map(|kv| Ok((kv, parse(kv)?))).collect::<Result<Vec<_>, ApiError>>()?;
    for (_, quota) in &mut quotas {
        if quota["status"]["hard"].is_null() {
            count(admission, quota).await?;
        }
    }
    let (group, plural) = (&*admission.kind.group, &*admission.kind.plural);
    let cost = Cost { group, plural, object, old: admission.old, now: Timestamp::now() };
    let mut charges = Charges { _turn: turn, ..Charges::default() };
    for (kv, mut quota) in quotas {
        let used = cost.charge(&quota).map_err(|why| admission.forbidden(object, why))?;
        if let Some(used) = used {
            quota["status"]["used"] = quota::to_value(&used);
            charges.push(kv, &quota);
        }
    }
    Ok(charges)
}

impl Charges {
    fn push(&mut self, kv: &KeyValue, quota: &Value) {
        self.compare.push(Compare::ModRevision(kv.key.clone(), kv.mod_revision));
        self.ops.push(Op::Put {
            key: kv.key.clone(),
            value: encode::for_store(quota),
            durability: Durability::Durable,
        });
    }
}

/// A quota that nobody has counted for yet is counted now, so that it holds from its first moment.
async fn count(admission: &Admission<'_>, quota: &mut Value) -> Result<(), ApiError> {
    let server = admission.server;
    let registry = server.registry();
    let kinds = registry.kinds().iter().filter(|kind| {
        kind.namespaced() && kind.stored() && quota::may_count(&quota["spec"], &kind.group, &kind.plural)
    });
    // Versions of one resource share their objects.
    let kinds: BTreeMap<&str, _> = kinds.map(|kind| (kind.stored_resource(), kind)).collect();
    let mut objects = Vec::new();
    for kind in kinds.into_values() {
        let prefix = format!("{}{}/", kind.store_prefix(), admission.namespace);
        for kv in server.store.range(Range { prefix, ..Range::default() }).await?.items {
            objects.push((kind, parse(&kv)?));
        }
    }
    let objects = objects.iter().map(|(kind, object)| (&*kind.group, &*kind.plural, object));
    let used = quota::recount(&quota["spec"], objects, Timestamp::now());
    quota["status"] = json!({"hard": quota["spec"]["hard"], "used": quota::to_value(&used)});
    Ok(())
}

/// What a request costs.
struct Cost<'a> {
    group: &'a str,
    plural: &'a str,
    object: &'a Value,
    /// `None` for a new object.
    old: Option<&'a Value>,
    now: Timestamp,
}

impl Cost<'_> {
    /// The usage of a quota with this object; `None` when the quota has nothing to do with it, or why it is refused.
    fn charge(&self, quota: &Value) -> Result<Option<Amounts>, String> {
        let (status, name) = (&quota["status"], quota["metadata"]["name"].as_str().unwrap_or_default());
        let hard = quota::amounts(&status["hard"]);
        if !quota::applies(&quota["spec"], self.group, self.plural, self.object, &hard) {
            return Ok(None);
        }
        if let Some(why) = quota::unspecified(self.group, self.plural, self.object, &hard) {
            return Err(format!("failed quota: {name}: {why}"));
        }
        let mut used = quota::amounts(&status["used"]);
        let unknown: Vec<&str> = hard
            .keys()
            .filter(|resource| quota::counts(resource, self.group, self.plural))
            .filter(|resource| !used.contains_key(*resource))
            .map(String::as_str)
            .collect();
        if !unknown.is_empty() {
            return Err(format!("status unknown for quota: {name}, resources: {}", unknown.join(",")));
        }
        let requested: Amounts =
            self.increase().into_iter().filter(|(resource, _)| hard.contains_key(resource)).collect();
        if requested.is_empty() {
            return Ok(None);
        }
        let before = used.clone();
        quota::add(&mut used, &requested);
        let exceeded = |resource: &String| match (used.get(resource), hard.get(resource)) {
            (Some(used), Some(hard)) => used > hard,
            _ => false,
        };
        if requested.keys().any(exceeded) {
            let mask = |amounts: &Amounts| {
                let kept = amounts.iter().filter(|(resource, _)| requested.contains_key(*resource));
                let kept = kept.filter(|(resource, _)| exceeded(resource));
                quota::to_text(&kept.map(|(resource, amount)| (resource.clone(), *amount)).collect())
            };
            return Err(format!(
                "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
                mask(&requested),
                mask(&before),
                mask(&hard)
            ));
        }
        Ok(Some(used))
    }

    /// What comes on top; what becomes less is given back by the loop.
    fn increase(&self) -> Amounts {
        let mut cost = quota::usage(self.group, self.plural, self.object, self.now);
        let before =
            self.old.map(|old| quota::usage(self.group, self.plural, old, self.now)).unwrap_or_default();
        for (resource, amount) in &mut cost {
            *amount = amount.minus(before.get(resource).copied().unwrap_or(Quantity::ZERO));
        }
        cost.retain(|_, amount| !amount.is_zero() && !amount.is_negative());
        cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(hard: Value, used: Value) -> Value {
        json!({"metadata": {"name": "q"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": used}})
    }

    fn check(
        quota: &Value,
        plural: &str,
        old: Option<&Value>,
        object: &Value,
    ) -> Result<Option<String>, String> {
        let cost = Cost { group: "", plural, object, old, now: Timestamp::UNIX_EPOCH };
        cost.charge(quota).map(|used| used.map(|used| quota::to_text(&used)))
    }

    fn pod(cpu: &str) -> Value {
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})
    }

    #[test]
    fn what_is_charged_and_refused() {
        let pods = quota(json!({"pods": "5"}), json!({"pods": "4"}));
        let full = quota(json!({"pods": "5"}), json!({"pods": "5"}));
        let cpu =
            quota(json!({"pods": "5", "requests.cpu": "2"}), json!({"pods": "1", "requests.cpu": "1500m"}));
        let limits = quota(json!({"limits.cpu": "2"}), json!({"limits.cpu": "0"}));
        let fresh = quota(json!({"pods": "5"}), json!({}));
        let rows: Vec<(&Value, Value, Result<Option<&str>, &str>)> = vec![
            (&pods, pod("1"), Ok(Some("pods=5"))),
            (&full, pod("1"), Err("exceeded quota: q, requested: pods=1, used: pods=5, limited: pods=5")),
            (&cpu, pod("500m"), Ok(Some("pods=2,requests.cpu=2"))),
            (
                &cpu,
                pod("1"),
                Err(
                    "exceeded quota: q, requested: requests.cpu=1, used: requests.cpu=1500m, limited: requests.cpu=2",
                ),
            ),
            (&limits, pod("1"), Err("failed quota: q: must specify limits.cpu for: c")),
            (&fresh, pod("1"), Err("status unknown for quota: q, resources: pods")),
        ];
        for (quota, pod, expected) in rows {
            let expected = expected.map(|used| used.map(str::to_owned)).map_err(str::to_owned);
            assert_eq!(check(quota, "pods", None, &pod), expected, "{quota}");
        }
    }

    #[test]
    fn an_update_costs_the_difference() {
        let service = |type_: &str, ports: Value| json!({"spec": {"type": type_, "ports": ports}});
        let (cluster, node) = (service("ClusterIP", json!([{}])), service("NodePort", json!([{}, {}])));
        let ports = quota(json!({"services.nodeports": "2"}), json!({"services.nodeports": "1"}));
        assert_eq!(check(&ports, "services", Some(&node), &node), Ok(None));
        assert_eq!(check(&ports, "services", Some(&node), &cluster), Ok(None));
        let why = "exceeded quota: q, requested: services.nodeports=2, used: services.nodeports=1, \
                   limited: services.nodeports=2";
        assert_eq!(check(&ports, "services", Some(&cluster), &node), Err(why.to_owned()));
        let cpu = quota(json!({"requests.cpu": "4"}), json!({"requests.cpu": "1"}));
        let resized = check(&cpu, "pods", Some(&pod("1")), &pod("3"));
        assert_eq!(resized, Ok(Some("requests.cpu=3".to_owned())));
    }
}
