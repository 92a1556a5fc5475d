//! The table of built-in kinds.
//!
//! One file per kind or family of kinds; each holds its [`Row`]: names, columns, defaults that need thought, validation.
//! [`ROWS`] lists what the server serves. A kind is added by one file and one line here.
//!
//! `prepare_update` and `validate_update` of a row are for writes to the object itself; writes to a subresource change
//! one part and are checked by the rules of that part (see [`pod::update`]).

pub mod admission;
pub mod api_service;
pub mod binding;
pub mod certificate;
pub mod component_status;
pub mod config_map;
pub mod controller_revision;
pub mod csi;
pub mod custom_resource_definition;
pub mod daemon_set;
pub mod deployment;
pub mod device;
pub mod endpoint_slice;
pub mod endpoints;
pub mod event;
pub mod expression;
pub mod flow_control;
pub mod horizontal_pod_autoscaler;
pub mod ingress;
pub mod job;
pub(crate) mod json;
pub mod lease;
pub mod limit_range;
pub mod namespace;
pub mod network_policy;
pub mod node;
pub mod pod;
pub mod pod_template;
pub mod policy;
pub mod priority_class;
pub mod rbac;
pub mod replica_set;
pub mod replication_controller;
pub mod resource_quota;
pub mod reviews;
pub(crate) mod rules;
pub mod runtime_class;
pub mod secret;
pub mod service;
pub mod service_account;
pub mod service_cidr;
pub mod stateful_set;
pub mod storage;
pub mod volume_attachment;
mod workload;

use crate::kind::Row;

/// All kinds, in the order discovery shows them: core first, then group by group, the best version of a kind first.
pub static ROWS: &[&Row] = &[
    &binding::BINDING,
    &component_status::COMPONENT_STATUS,
    &config_map::CONFIG_MAP,
    &endpoints::ENDPOINTS,
    &event::EVENT,
    &limit_range::LIMIT_RANGE,
    &namespace::NAMESPACE,
    &node::NODE,
    &storage::PERSISTENT_VOLUME_CLAIM,
    &storage::PERSISTENT_VOLUME,
    &pod::POD,
    &pod_template::POD_TEMPLATE,
    &replication_controller::REPLICATION_CONTROLLER,
    &resource_quota::RESOURCE_QUOTA,
    &secret::SECRET,
    &service_account::SERVICE_ACCOUNT,
    &service::SERVICE,
    &api_service::API_SERVICE,
    &controller_revision::CONTROLLER_REVISION,
    &daemon_set::DAEMON_SET,
    &deployment::DEPLOYMENT,
    &replica_set::REPLICA_SET,
    &stateful_set::STATEFUL_SET,
    &event::EVENTS_EVENT,
    &reviews::SELF_SUBJECT_REVIEW,
    &reviews::TOKEN_REVIEW,
    &reviews::LOCAL_SUBJECT_ACCESS_REVIEW,
    &reviews::SELF_SUBJECT_ACCESS_REVIEW,
    &reviews::SELF_SUBJECT_RULES_REVIEW,
    &reviews::SUBJECT_ACCESS_REVIEW,
    &custom_resource_definition::CUSTOM_RESOURCE_DEFINITION,
    &horizontal_pod_autoscaler::HORIZONTAL_POD_AUTOSCALER,
    &horizontal_pod_autoscaler::HORIZONTAL_POD_AUTOSCALER_V1,
    &job::CRON_JOB,
    &job::JOB,
    &certificate::CERTIFICATE_SIGNING_REQUEST,
    &certificate::CLUSTER_TRUST_BUNDLE,
    &ingress::INGRESS_CLASS,
    &ingress::INGRESS,
    &service_cidr::IP_ADDRESS,
    &network_policy::NETWORK_POLICY,
    &service_cidr::SERVICE_CIDR,
    &policy::POD_DISRUPTION_BUDGET,
    &rbac::CLUSTER_ROLE_BINDING,
    &rbac::CLUSTER_ROLE,
    &rbac::ROLE_BINDING,
    &rbac::ROLE,
    &csi::CSI_DRIVER,
    &csi::CSI_NODE,
    &csi::CSI_STORAGE_CAPACITY,
    &storage::STORAGE_CLASS,
    &volume_attachment::VOLUME_ATTACHMENT,
    &storage::VOLUME_ATTRIBUTES_CLASS,
    &admission::policy::MUTATING_ADMISSION_POLICY,
    &admission::policy::MUTATING_ADMISSION_POLICY_BINDING,
    &admission::webhook::MUTATING_WEBHOOK_CONFIGURATION,
    &admission::policy::VALIDATING_ADMISSION_POLICY,
    &admission::policy::VALIDATING_ADMISSION_POLICY_BINDING,
    &admission::webhook::VALIDATING_WEBHOOK_CONFIGURATION,
    &priority_class::PRIORITY_CLASS,
    &lease::LEASE,
    &runtime_class::RUNTIME_CLASS,
    &endpoint_slice::ENDPOINT_SLICE,
    &flow_control::FLOW_SCHEMA,
    &flow_control::PRIORITY_LEVEL_CONFIGURATION,
    &device::DEVICE_CLASS,
    &device::RESOURCE_CLAIM,
    &device::RESOURCE_CLAIM_TEMPLATE,
    &device::slice::RESOURCE_SLICE,
];

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;
    use crate::kind::{Requester, STATUS_METADATA, Subresource};
    use crate::schema::{FieldType, Types};

    fn documents() -> Vec<(&'static Row, Value)> {
        ROWS.iter().map(|row| (*row, json!({"metadata": {"name": "a"}, "spec": {}, "status": {}}))).collect()
    }

    #[test]
    fn rows_are_complete_and_different() {
        let (mut plurals, mut kinds, mut shorts) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
        for row in ROWS {
            assert!(plurals.insert((row.group, row.version, row.plural)), "{} stands twice", row.plural);
            assert!(kinds.insert((row.group, row.version, row.kind)), "{} stands twice", row.kind);
            assert_eq!(row.singular, row.kind.to_lowercase());
            assert!(Types::get().type_(row.schema).is_some(), "{} has no schema", row.kind);
            for short in row.short_names {
                // Two versions of a kind share their short names.
                assert_eq!(*shorts.entry(*short).or_insert(row.kind), row.kind, "{short} stands twice");
            }
        }
    }

    #[test]
    fn selectors_point_at_fields_of_the_schema() {
        for row in ROWS {
            for (label, pointer) in row.field_selectors {
                let mut type_ = Types::get().type_(row.schema);
                for step in pointer.split('/').skip(1) {
                    let field = type_.and_then(|type_| type_.field(step));
                    let field = field.unwrap_or_else(|| panic!("{}: {label} points at nothing", row.kind));
                    type_ = match field.type_ {
                        FieldType::Struct(name) => Types::get().type_(name),
                        _ => None,
                    };
                }
            }
        }
    }

    /// As the status strategies of upstream do it (`PrepareForUpdate` in `pkg/registry/*/*/strategy.go`).
    #[test]
    fn what_a_write_of_status_leaves_alone() {
        const ALL: &[&str] = STATUS_METADATA;
        let expected: &[(&str, &[&str])] = &[
            ("APIService", ALL),
            ("CertificateSigningRequest", &[]),
            ("CronJob", &[]),
            ("CustomResourceDefinition", ALL),
            ("DaemonSet", &[]),
            ("Deployment", &["labels"]),
            ("FlowSchema", ALL),
            ("HorizontalPodAutoscaler", &[]),
            ("Ingress", &[]),
            ("Job", &[]),
            ("Namespace", &[]),
            ("Node", &[]),
            ("PersistentVolume", &[]),
            ("PersistentVolumeClaim", &[]),
            ("Pod", &["ownerReferences"]),
            ("PodDisruptionBudget", &[]),
            ("PriorityLevelConfiguration", ALL),
            ("ReplicaSet", &[]),
            ("ReplicationController", &[]),
            ("ResourceClaim", ALL),
            ("ResourceQuota", &[]),
            ("Service", &[]),
            ("ServiceCIDR", ALL),
            ("StatefulSet", &[]),
            ("ValidatingAdmissionPolicy", ALL),
            ("VolumeAttachment", ALL),
        ];
        let with_status = ROWS.iter().filter(|row| row.subresources.contains(&Subresource::Status));
        let found: BTreeMap<&str, &[&str]> = with_status.map(|row| (row.kind, row.status_keeps)).collect();
        assert_eq!(found, expected.iter().copied().collect());
    }

    #[test]
    fn conversions_keep_the_schema() {
        for row in ROWS {
            let Some(conversion) = row.stored_as else { continue };
            let kept = ROWS.iter().find(|kept| {
                let name = crate::registry::Kind::from(**kept).resource().to_owned();
                name == conversion.resource && kept.stored_as.is_none()
            });
            let kept = kept.unwrap_or_else(|| panic!("{} is kept as nothing", row.kind));
            assert_eq!((kept.scope, kept.kind), (row.scope, row.kind));
            let version = |row: &'static Row| crate::registry::Kind::from(row).api_version().to_owned();
            let mut document =
                json!({"apiVersion": version(row), "kind": row.kind, "spec": {}, "status": {}});
            (conversion.to_storage)(&mut document);
            assert_eq!(document["apiVersion"], version(kept));
            (conversion.from_storage)(&mut document);
            assert_eq!(document["apiVersion"], version(row));
            for mut junk in [json!(null), json!([]), json!({"metadata": 1, "spec": [], "status": "x"})] {
                (conversion.to_storage)(&mut junk);
                (conversion.from_storage)(&mut junk);
            }
        }
    }

    #[test]
    fn every_row_has_a_cell_for_each_column() {
        for (row, document) in documents() {
            for document in [document, Value::Null] {
                let cells = (row.table_row)(&document, Timestamp::UNIX_EPOCH);
                assert_eq!(cells.len(), row.columns.len(), "{}", row.kind);
            }
        }
    }

    #[test]
    fn rules_survive_any_document_and_defaults_settle() {
        let junk = [json!(null), json!([]), json!({"metadata": 1, "spec": [], "status": "x"})];
        for (row, document) in documents() {
            for mut document in junk.iter().cloned().chain([document]) {
                let strategy = &row.strategy;
                (strategy.default)(&mut document);
                let once = document.clone();
                (strategy.default)(&mut document);
                assert_eq!(document, once, "{}", row.kind);
                (strategy.prepare_create)(&mut document);
                let nobody = Requester { username: "", uid: "", groups: &[], extra: &[] };
                (strategy.set_requester)(&mut document, nobody);
                (strategy.prepare_update)(&mut document, &once);
                (strategy.prepare_status)(&mut document, &once, Timestamp::UNIX_EPOCH);
                (strategy.prepare_approval)(&mut document, &once, Timestamp::UNIX_EPOCH);
                let _ = (strategy.validate_status)(&document, &once);
                let _ = (strategy.validate_approval)(&document, &once);
                let _ = ((strategy.validate)(&document), (strategy.validate_update)(&document, &once));
            }
        }
    }
}
