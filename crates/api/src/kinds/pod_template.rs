//! PodTemplates: a template of pods kept for whoever wants to make some.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::text;
use super::pod::default_template_spec;
use super::{pod, workload};
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Strategy};
use crate::table;

/// PodTemplates.
pub static POD_TEMPLATE: Row = Row {
    kind: "PodTemplate",
    plural: "podtemplates",
    singular: "podtemplate",
    schema: "io.k8s.api.core.v1.PodTemplate",
    returns_deleted: true,
    columns: &[
        Column::name(),
        Column::new("Containers", "Names of the containers of the template."),
        Column::new("Images", "Images of the containers of the template."),
        Column::new("Pod Labels", "Labels of the pods."),
    ],
    table_row,
    generation: true,
    strategy: Strategy { default, validate, ..Strategy::PLAIN },
    ..Row::PLAIN
};

fn default(object: &mut Value) {
    if let Some(spec) = object.pointer_mut("/template/spec") {
        default_template_spec(spec);
    }
}

fn validate(object: &Value) -> Errors {
    let mut errors = Errors::new();
    pod::spec::validate_template(&mut errors, &Path::new("template"), &object["template"]);
    errors
}

fn table_row(object: &Value, _: Timestamp) -> Vec<Value> {
    let template = &object["template"];
    let [containers, images] = workload::container_cells(&template["spec"]);
    let labels = table::format_labels(template["metadata"].get("labels"));
    vec![json!(text(&object["metadata"]["name"])), containers, images, json!(labels)]
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::{expect, with};
    use super::*;

    #[test]
    fn validation_and_cells() {
        let mut object = json!({
            "metadata": {"name": "a"},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "restartPolicy": "Never", "dnsPolicy": "ClusterFirst",
                    "containers": [{"name": "c", "image": "a:1", "terminationMessagePolicy": "File"}],
                },
            },
        });
        default(&mut object);
        expect("good", &validate(&object), &[]);
        expect(
            "no containers",
            &validate(&with(object.clone(), &[("/template/spec/containers", json!([]))])),
            &["template.spec.containers: Required value"],
        );
        assert_eq!(
            table_row(&object, Timestamp::UNIX_EPOCH),
            ["a", "c", "a:1", "app=web"].map(|cell| json!(cell))
        );
    }
}
