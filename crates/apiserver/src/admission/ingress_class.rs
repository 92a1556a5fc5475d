//! DefaultIngressClass: an ingress that names no class gets the one that says it is the default.

use serde_json::Value;

use super::Admission;
use super::storage_class::newest_default;
use crate::error::ApiError;

/// How a class says that it is the default.
const DEFAULT: &[&str] = &["ingressclass.kubernetes.io/is-default-class"];
/// The old way of naming a class.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const CLASSES: &str = "ingressclasses.networking.k8s.io";

pub(super) fn default_class(admission: &Admission<'_>, object: &mut Value) -> Result<(), ApiError> {
    if admission.creates("networking.k8s.io", "ingresses") && names_no_class(object) {
        let classes = admission.cached_list(CLASSES, &format!("/{CLASSES}/"));
        if let Some(name) = newest_default(&classes, DEFAULT) {
            object["spec"]["ingressClassName"] = name.into();
        }
    }
    Ok(())
}

fn names_no_class(ingress: &Value) -> bool {
    ingress["spec"]["ingressClassName"].is_null()
        && ingress["metadata"]["annotations"][CLASS_ANNOTATION].is_null()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_named_class_stays() {
        let rows = [
            (json!({"spec": {}}), true),
            (json!({"spec": {"ingressClassName": "x"}}), false),
            (json!({"metadata": {"annotations": {"kubernetes.io/ingress.class": "x"}}, "spec": {}}), false),
        ];
        for (ingress, expected) in rows {
            assert_eq!(names_no_class(&ingress), expected, "{ingress}");
        }
    }
}
