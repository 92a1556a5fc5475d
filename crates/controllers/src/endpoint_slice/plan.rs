//! The fewest writes that turn the slices there are into the endpoints there should be.
//!
//! Every write of a slice is sent to every node, so a slice that is still right is not touched: changed
//! endpoints are changed where they are, new ones go first into slices that are written anyway, then
//! into those with room, and only then into new ones. Slices are not packed again afterwards; a hundred
//! services with half-full slices cost less than the rewriting.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::endpoints::{Port, SliceKind, address_types, desired, has_endpoints};
use crate::common::owner::controller_reference;

/// The label that says whose slice this is.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that says who looks after a slice.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// We do the work of upstream's controller under its name, so that tools recognise the slices.
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// The label of slices whose service has no address of its own.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// The most endpoints in a slice; upstream's default.
const SLICE_LENGTH: usize = 100;

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    Create(Box<EndpointSlice>),
    Update(Box<EndpointSlice>),
    Delete(Arc<EndpointSlice>),
}

/// Whether this controller looks after a slice.
pub(super) fn is_managed(slice: &EndpointSlice) -> bool {
    let manager = slice.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY));
    manager.is_some_and(|manager| manager == MANAGER)
}

/// The writes for a service; `pods` and `slices` are those of its namespace.
pub(super) fn plan(service: &Service, pods: &[Arc<Pod>], slices: &[Arc<EndpointSlice>]) -> Vec<Action> {
    if !has_endpoints(service) {
        return Vec::new();
    }
    let mut desired = desired(service, pods);
    add_placeholders(service, &mut desired);
    let mut present: BTreeMap<SliceKind, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| is_slice_of(slice, service)) {
        present.entry(kind_of(slice)).or_default().push(Arc::clone(slice));
    }
    let mut work = Work { service, actions: Vec::new(), spare: Vec::new() };
    let orphaned: Vec<SliceKind> =
        present.keys().filter(|kind| !desired.contains_key(*kind)).cloned().collect();
    work.spare = orphaned.iter().filter_map(|kind| present.remove(kind)).flatten().collect();
    for (kind, endpoints) in desired {
        let slices = present.remove(&kind).unwrap_or_default();
        work.fill(&kind, endpoints, slices);
    }
    let deletions = work.spare.into_iter().map(Action::Delete);
    work.actions.into_iter().chain(deletions).collect()
}

/// A service without endpoints keeps one empty slice, so that its readers see that it has none.
fn add_placeholders(service: &Service, desired: &mut BTreeMap<SliceKind, Vec<Endpoint>>) {
    for address_type in address_types(service) {
        if !desired.keys().any(|kind| kind.address_type == address_type) {
            desired.insert(SliceKind { address_type, ports: Vec::new() }, Vec::new());
        }
    }
}

fn is_slice_of(slice: &EndpointSlice, service: &Service) -> bool {
    let name = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
    name == service.metadata.name.as_ref() && is_managed(slice) && slice.metadata.deletion_timestamp.is_none()
}

fn kind_of(slice: &EndpointSlice) -> SliceKind {
    let mut ports: Vec<Port> = slice.ports.iter().flatten().map(Port::from).collect();
    ports.sort();
    SliceKind { address_type: slice.address_type.clone(), ports }
}

/// The writes so far, and the slices nobody needs as they are.
struct Work<'a> {
    service: &'a Service,
    actions: Vec<Action>,
    spare: Vec<Arc<EndpointSlice>>,
}

/// A slice while its endpoints are being decided.
struct Draft {
    slice: Arc<EndpointSlice>,
    endpoints: Vec<Endpoint>,
    changed: bool,
}

impl Work<'_> {
    /// Brings the slices of one kind to these endpoints.
    fn fill(&mut self, kind: &SliceKind, endpoints: Vec<Endpoint>, slices: Vec<Arc<EndpointSlice>>) {
        let wants_none = endpoints.is_empty();
        let (mut drafts, mut missing) = keep(endpoints, slices);
        // Slices that will be written anyway first, then the fullest, which leaves the emptiest to vanish.
        drafts.sort_by_key(|draft| (!draft.changed, usize::MAX - draft.endpoints.len()));
        for draft in &mut drafts {
            let room = SLICE_LENGTH.saturating_sub(draft.endpoints.len()).min(missing.len());
            draft.changed |= room > 0;
            draft.endpoints.extend(missing.drain(..room));
        }
        let mut has_placeholder = false;
        for draft in drafts {
            let placeholder = wants_none && !has_placeholder;
            if draft.endpoints.is_empty() && !placeholder {
                self.spare.push(draft.slice);
                continue;
            }
            has_placeholder |= placeholder;
            let written = self.slice(kind, draft.endpoints, Some(&draft.slice));
            if draft.changed || written.metadata != draft.slice.metadata {
                self.actions.push(Action::Update(Box::new(written)));
            }
        }
        while !missing.is_empty() || (wants_none && !has_placeholder) {
            let rest = missing.split_off(missing.len().min(SLICE_LENGTH));
            self.place(kind, std::mem::replace(&mut missing, rest));
            has_placeholder = true;
        }
    }

    /// A slice more: one that nobody needs, rewritten, or a new one. The kind of address cannot be
    /// rewritten.
    fn place(&mut self, kind: &SliceKind, endpoints: Vec<Endpoint>) {
        let fits = |slice: &Arc<EndpointSlice>| slice.address_type == kind.address_type;
        let action = match self.spare.iter().position(fits) {
            Some(index) => {
                let spare = self.spare.swap_remove(index);
                Action::Update(Box::new(self.slice(kind, endpoints, Some(&spare))))
            }
            None => Action::Create(Box::new(self.slice(kind, endpoints, None))),
        };
        self.actions.push(action);
    }

    fn slice(
        &self,
        kind: &SliceKind,
        endpoints: Vec<Endpoint>,
        from: Option<&EndpointSlice>,
    ) -> EndpointSlice {
        let service = &self.service.metadata;
        let mut metadata = from.map_or_else(
            || ObjectMeta {
                namespace: service.namespace.clone(),
                generate_name: service.name.as_ref().map(|name| format!("{name}-")),
                ..ObjectMeta::default()
            },
            |slice| slice.metadata.clone(),
        );
        metadata.labels = Some(labels(self.service));
        if let Some(owner) = controller_reference(self.service) {
            metadata.owner_references = Some(vec![owner]);
        }
        let ports: Vec<EndpointPort> = kind.ports.iter().map(EndpointPort::from).collect();
        EndpointSlice {
            metadata,
            address_type: kind.address_type.clone(),
            endpoints: Some(endpoints),
            ports: Some(ports),
        }
    }
}

/// The service's labels and our own.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None")) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(SERVICE_NAME.into(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

/// Puts wanted endpoints where they are already; returns what the slices keep and what is in none.
fn keep(endpoints: Vec<Endpoint>, slices: Vec<Arc<EndpointSlice>>) -> (Vec<Draft>, Vec<Endpoint>) {
    let mut wanted: HashMap<String, Endpoint> = HashMap::new();
    let mut order = Vec::new();
    for endpoint in endpoints {
        order.push(identity(&endpoint));
        wanted.insert(identity(&endpoint), endpoint);
    }
    let mut drafts = Vec::new();
    for slice in slices {
        let before = slice.endpoints.as_deref().unwrap_or_default();
        let kept: Vec<Endpoint> =
            before.iter().filter_map(|endpoint| wanted.remove(&identity(endpoint))).collect();
        let changed = kept.as_slice() != before;
        drafts.push(Draft { slice, endpoints: kept, changed });
    }
    let missing = order.iter().filter_map(|identity| wanted.remove(identity)).collect();
    (drafts, missing)
}

/// What makes an endpoint the same one as before: the pod it stands for.
fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone());
    uid.unwrap_or_else(|| endpoint.addresses.join(","))
}
