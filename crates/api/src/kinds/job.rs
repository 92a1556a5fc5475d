//! Jobs and CronJobs: pods that end, once or on a schedule.

mod policy;
mod schedule;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{copy_field, default_field, int, is_true, list, set, text};
use super::pod::default_template_spec;
use super::{pod, rules, workload};
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Strategy, Subresource};
use crate::{names, table};

/// Jobs.
pub static JOB: Row = Row {
    group: "batch",
    kind: "Job",
    plural: "jobs",
    singular: "job",
    categories: &["all"],
    subresources: &[Subresource::Status],
    schema: "io.k8s.api.batch.v1.Job",
    columns: &[
        Column::name(),
        Column::new("Status", "How far the job is."),
        Column::new("Completions", "Pods that succeeded, of all that must."),
        Column::new("Duration", "How long the job took, or is taking."),
        Column::age(),
        Column::new("Containers", "Names of the containers of the template.").wide(),
        Column::new("Images", "Images of the containers of the template.").wide(),
        Column::new("Selector", "Labels by which the pods are found.").wide(),
    ],
    table_row: job_row,
    field_selectors: &[("status.successful", "/status/succeeded")],
    generation: true,
    strategy: Strategy {
        default: default_job,
        prepare_create: prepare_job,
        validate: validate_job,
        validate_update: validate_job_update,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

/// CronJobs.
pub static CRON_JOB: Row = Row {
    group: "batch",
    kind: "CronJob",
    plural: "cronjobs",
    singular: "cronjob",
    short_names: &["cj"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    schema: "io.k8s.api.batch.v1.CronJob",
    columns: &[
        Column::name(),
        Column::new("Schedule", "When jobs are started."),
        Column::new("Timezone", "Whose clock the schedule goes by."),
        Column::new("Suspend", "Whether no jobs are started.").of_type("boolean"),
        Column::new("Active", "Jobs that run.").of_type("integer"),
        Column::new("Last Schedule", "Time since a job was started."),
        Column::age(),
        Column::new("Containers", "Names of the containers of the template.").wide(),
        Column::new("Images", "Images of the containers of the template.").wide(),
        Column::new("Selector", "Labels by which the pods are found.").wide(),
    ],
    table_row: cron_job_row,
    generation: true,
    strategy: Strategy {
        default: default_cron_job,
        prepare_create: |job| set(job, "status", json!({})),
        validate: validate_cron_job,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

/// The labels a job's selector is made of when the user gives none.
const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";

/// Most pods that run at once, and most completions, of jobs that count each index; their status names indexes.
const MAX_PARALLEL_INDEXES: i64 = 100_000;
/// Longest name of a program that manages jobs instead of the cluster.
const LONGEST_MANAGER: usize = 63;

/// A job without a selector of its own finds its pods by its uid, which the server has set before.
fn prepare_job(job: &mut Value) {
    set(job, "status", json!({}));
    let uid = text(&job["metadata"]["uid"]).to_owned();
    if !uid.is_empty() {
        select_own_pods(job, &uid);
    }
}

fn default_job(job: &mut Value) {
    let Some(spec) = job.get_mut("spec").filter(|spec| spec.is_object()) else {
        return;
    };
    default_job_spec(spec);
}

fn default_job_spec(spec: &mut Value) {
    if let Some(template) = spec.pointer_mut("/template/spec") {
        default_template_spec(template);
    }
    // One pod that must succeed, unless the user asks for a number or for whatever a queue holds.
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        set(spec, "completions", 1);
    }
    default_field(spec, "parallelism", 1);
    default_field(spec, "completionMode", "NonIndexed");
    default_field(spec, "suspend", false);
    let limit = if spec["backoffLimitPerIndex"].is_null() { 6 } else { i64::from(i32::MAX) };
    default_field(spec, "backoffLimit", limit);
    let replacement = if spec["podFailurePolicy"].is_null() { "TerminatingOrFailed" } else { "Failed" };
    default_field(spec, "podReplacementPolicy", replacement);
}

fn default_cron_job(job: &mut Value) {
    if let Some(template) = job.pointer_mut("/spec/jobTemplate/spec/template/spec") {
        default_template_spec(template);
    }
}

fn validate_job(job: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &job["spec"]);
    validate_job_spec(&mut errors, &path, spec);
    let selector = &spec["selector"];
    if !selector.is_null() && !rules::selects(selector, &spec["template"]["metadata"]["labels"]) {
        let labels = path.child("template").child("metadata").child("labels");
        let shown = spec["template"]["metadata"]["labels"].clone();
        errors.invalid(&labels, shown, rules::SELECTOR_MISMATCH);
    }
    if selector.is_null() {
        errors.required(&path.child("selector"), "");
    } else if !is_true(&spec["manualSelector"]) && !is_generated(selector, job) {
        errors.invalid(&path.child("selector"), selector.clone(), "`selector` not auto-generated");
    }
    validate_host_names(&mut errors, job);
    errors
}

/// Whether a selector finds the pods of this very job and says nothing else.
fn is_generated(selector: &Value, job: &Value) -> bool {
    let uid = &job["metadata"]["uid"];
    ["", "batch.kubernetes.io/"].iter().any(|prefix| {
        super::json::same(selector, &json!({"matchLabels": {format!("{prefix}controller-uid"): uid}}))
    })
}

/// Pods of a job that counts indexes are called by the job's name and theirs.
fn validate_host_names(errors: &mut Errors, job: &Value) {
    let (spec, name) = (&job["spec"], text(&job["metadata"]["name"]));
    let completions = int(&spec["completions"]);
    if text(&spec["completionMode"]) != "Indexed" || completions < 1 {
        return;
    }
    let longest = format!("{name}-{}", completions - 1);
    if !names::dns1123_label(&longest).is_empty() {
        let detail = format!("will not able to create pod with invalid DNS label: {longest}");
        errors.invalid(&Path::new("metadata").child("name"), name, detail);
    }
}

fn validate_job_spec(errors: &mut Errors, path: &Path, spec: &Value) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
        "ttlSecondsAfterFinished",
    ] {
        rules::non_negative(errors, &path.child(field), &spec[field]);
    }
    let mode = &spec["completionMode"];
    rules::optional_one_of(errors, &path.child("completionMode"), mode, &["NonIndexed", "Indexed"]);
    if text(mode) == "Indexed" && spec["completions"].is_null() {
        errors.required(&path.child("completions"), "when completion mode is Indexed");
    }
    validate_indexes(errors, path, spec);
    if let Some(manager) = spec["managedBy"].as_str() {
        rules::domain_prefixed_path(errors, &path.child("managedBy"), manager);
        if manager.len() > LONGEST_MANAGER {
            errors.too_long(&path.child("managedBy"), LONGEST_MANAGER);
        }
    }
    policy::validate_failure(errors, path, spec);
    policy::validate_success(errors, path, spec);
    let replacements: &[&str] =
        if spec["podFailurePolicy"].is_null() { &["Failed", "TerminatingOrFailed"] } else { &["Failed"] };
    let replacement = &spec["podReplacementPolicy"];
    rules::optional_one_of(errors, &path.child("podReplacementPolicy"), replacement, replacements);
    let path = path.child("template");
    pod::spec::validate_template(errors, &path, &spec["template"]);
    let policy = text(&spec["template"]["spec"]["restartPolicy"]);
    if policy == "Always" {
        let path = path.child("spec").child("restartPolicy");
        errors.not_supported(&path, policy, &["OnFailure", "Never"]);
    }
}

/// What only jobs that count each index may say, and how much of it.
fn validate_indexes(errors: &mut Errors, path: &Path, spec: &Value) {
    let indexed = text(&spec["completionMode"]) == "Indexed";
    for field in ["parallelism", "completions"] {
        let number = int(&spec[field]);
        if indexed && number > MAX_PARALLEL_INDEXES {
            let detail = format!(
                "must be less than or equal to {MAX_PARALLEL_INDEXES} when completion mode is Indexed"
            );
            errors.invalid(&path.child(field), number, detail);
        }
    }
    let per_index = &spec["backoffLimitPerIndex"];
    if !per_index.is_null() && !indexed {
        let detail = "requires indexed completion mode";
        errors.invalid(&path.child("backoffLimitPerIndex"), per_index.clone(), detail);
    }
    let Some(failed) = spec["maxFailedIndexes"].as_i64() else {
        return;
    };
    if per_index.is_null() {
        errors.required(&path.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if failed > int(&spec["completions"]) {
        let detail = "must be less than or equal to completions";
        errors.invalid(&path.child("maxFailedIndexes"), failed, detail);
    }
}

fn validate_job_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, new, old) = (Path::new("spec"), &new["spec"], &old["spec"]);
    const FIXED: [&str; 6] = [
        "selector",
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
        "successPolicy",
    ];
    for field in FIXED {
        rules::immutable(&mut errors, &path.child(field), &new[field], &old[field]);
    }
    let (completions, before) = (&new["completions"], &old["completions"]);
    if text(&new["completionMode"]) != "Indexed" {
        rules::immutable(&mut errors, &path.child("completions"), completions, before);
    } else if completions != before && completions != &new["parallelism"] {
        let detail = "may only be modified in tandem with spec.parallelism";
        errors.invalid(&path.child("completions"), completions.clone(), detail);
    }
    let mut template = new["template"].clone();
    // Where the pods of a suspended job go may still change: queues decide that late (KEP-2926).
    if is_true(&old["suspend"])
        && let Some(spec) = template.get_mut("spec")
    {
        for field in ["affinity", "nodeSelector", "tolerations", "schedulingGates"] {
            copy_field(spec, &old["template"]["spec"], field);
        }
        if let Some(metadata) = template.get_mut("metadata") {
            for field in ["annotations", "labels"] {
                copy_field(metadata, &old["template"]["metadata"], field);
            }
        }
    }
    rules::immutable(&mut errors, &path.child("template"), &template, &old["template"]);
    errors
}

fn validate_cron_job(job: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &job["spec"]);
    let (schedule, schedule_path) = (text(&spec["schedule"]), path.child("schedule"));
    if schedule.is_empty() {
        errors.required(&schedule_path, "");
    } else if schedule.contains("TZ") {
        errors.invalid(
            &schedule_path,
            schedule,
            "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        );
    } else if let Some(problem) = schedule::problem(schedule) {
        errors.invalid(&schedule_path, schedule, problem);
    }
    for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        rules::non_negative(&mut errors, &path.child(field), &spec[field]);
    }
    rules::one_of(
        &mut errors,
        &path.child("concurrencyPolicy"),
        &spec["concurrencyPolicy"],
        &["Allow", "Forbid", "Replace"],
    );
    match spec["timeZone"].as_str() {
        Some("") => errors.invalid(&path.child("timeZone"), "", "timeZone must be nil or non-empty string"),
        Some(zone) if zone.eq_ignore_ascii_case("Local") => {
            let detail =
                "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
            errors.invalid(&path.child("timeZone"), zone, detail);
        }
        _ => {}
    }
    validate_job_spec(&mut errors, &path.child("jobTemplate").child("spec"), &spec["jobTemplate"]["spec"]);
    let name = text(&job["metadata"]["name"]);
    // A job's name is that of its CronJob and eleven characters more.
    if name.len() > 63 - 11 {
        let path = Path::new("metadata").child("name");
        errors.invalid(&path, name, "must be no more than 52 characters");
    }
    errors
}

/// Gives a new job the selector that finds its own pods only.
fn select_own_pods(job: &mut Value, uid: &str) {
    if is_true(&job["spec"]["manualSelector"]) {
        return;
    }
    let name = text(&job["metadata"]["name"]).to_owned();
    let Some(spec) = job.get_mut("spec").filter(|spec| spec.is_object()) else {
        return;
    };
    // What a user selects besides makes the job invalid, because it would find pods of others.
    default_field(spec, "selector", json!({}));
    if let Some(selector) = spec.get_mut("selector") {
        default_field(selector, "matchLabels", json!({}));
        if let Some(labels) = selector.get_mut("matchLabels") {
            default_field(labels, CONTROLLER_UID, uid);
        }
    }
    let Some(template) = spec.get_mut("template").filter(|template| template.is_object()) else {
        return;
    };
    default_field(template, "metadata", json!({}));
    let Some(metadata) = template.get_mut("metadata") else {
        return;
    };
    default_field(metadata, "labels", json!({}));
    if let Some(labels) = metadata.get_mut("labels") {
        for prefix in ["", "batch.kubernetes.io/"] {
            set(labels, &format!("{prefix}controller-uid"), uid);
            set(labels, &format!("{prefix}job-name"), name.as_str());
        }
    }
}

fn has_condition(job: &Value, type_: &str) -> bool {
    list(&job["status"]["conditions"])
        .iter()
        .any(|condition| text(&condition["type"]) == type_ && text(&condition["status"]) == "True")
}

fn job_status(job: &Value) -> &'static str {
    let first_of = |types: &[&'static str]| types.iter().copied().find(|type_| has_condition(job, type_));
    let leaving = !job["metadata"]["deletionTimestamp"].is_null();
    first_of(&["Complete", "Failed"])
        .or(leaving.then_some("Terminating"))
        .or_else(|| first_of(&["Suspended", "FailureTarget", "SuccessCriteriaMet"]))
        .unwrap_or("Running")
}

fn job_row(job: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&job["spec"], &job["status"]);
    let succeeded = int(&status["succeeded"]);
    let completions = match (spec["completions"].as_i64(), int(&spec["parallelism"])) {
        (Some(all), _) => format!("{succeeded}/{all}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let (start, end) = (text(&status["startTime"]), text(&status["completionTime"]));
    let duration = match (start.parse::<Timestamp>(), end.parse::<Timestamp>()) {
        (Err(_), _) => String::new(),
        (Ok(start), end) => table::human_duration(end.unwrap_or(now).as_second() - start.as_second()),
    };
    let [containers, images] = workload::container_cells(&spec["template"]["spec"]);
    vec![
        json!(text(&job["metadata"]["name"])),
        json!(job_status(job)),
        json!(completions),
        json!(duration),
        table::age(job, now),
        containers,
        images,
        json!(workload::format_selector(&spec["selector"])),
    ]
}

fn cron_job_row(job: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&job["spec"], &job["status"]);
    let or_none = |text: &str| {
        if text.is_empty() { "<none>".to_owned() } else { text.to_owned() }
    };
    let last = match text(&status["lastScheduleTime"]) {
        "" => "<none>".to_owned(),
        time => table::since(time, now),
    };
    let template = &spec["jobTemplate"]["spec"];
    let [containers, images] = workload::container_cells(&template["template"]["spec"]);
    vec![
        json!(text(&job["metadata"]["name"])),
        json!(text(&spec["schedule"])),
        json!(or_none(text(&spec["timeZone"]))),
        json!(is_true(&spec["suspend"])),
        json!(list(&status["active"]).len()),
        json!(last),
        table::age(job, now),
        containers,
        images,
        json!(workload::format_selector(&template["selector"])),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::{expect, with};
    use super::*;

    fn good() -> Value {
        let mut job = json!({
            "metadata": {"name": "a", "uid": "u-1", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"template": {"spec": {
                "restartPolicy": "Never", "dnsPolicy": "ClusterFirst",
                "containers": [{"name": "c", "image": "a:1", "terminationMessagePolicy": "File"}],
            }}},
        });
        prepare_job(&mut job);
        default_job(&mut job);
        job
    }

    #[test]
    fn a_job_finds_its_own_pods() {
        let spec = &good()["spec"];
        assert_eq!(spec["selector"], json!({"matchLabels": {CONTROLLER_UID: "u-1"}}));
        let labels = &spec["template"]["metadata"]["labels"];
        assert_eq!(
            (&labels["batch.kubernetes.io/job-name"], &labels["controller-uid"]),
            (&json!("a"), &json!("u-1"))
        );
        let mut own = with(good(), &[("/spec/selector", json!({"matchLabels": {"app": "x"}}))]);
        prepare_job(&mut own);
        assert!(validate_job(&own).0.iter().any(|error| error.detail == "`selector` not auto-generated"));
        let mut manual = with(
            good(),
            &[
                ("/spec/manualSelector", json!(true)),
                ("/spec/selector", json!({"matchLabels": {"app": "x"}})),
                ("/spec/template/metadata/labels", json!({"app": "x"})),
            ],
        );
        let before = manual["spec"].clone();
        prepare_job(&mut manual);
        assert_eq!(manual["spec"], before);
        expect("manual", &validate_job(&manual), &[]);
    }

    #[test]
    fn indexed_jobs() {
        let indexed = [("/spec/completionMode", json!("Indexed")), ("/spec/completions", json!(3))];
        let row = |what: &str, changes: &[(&str, Value)], expected: &[&str]| {
            expect(what, &validate_job(&with(with(good(), &indexed), changes)), expected);
        };
        row("good", &[("/spec/backoffLimitPerIndex", json!(1)), ("/spec/maxFailedIndexes", json!(2))], &[]);
        row(
            "too many",
            &[("/spec/parallelism", json!(100_001))],
            &[
                "spec.parallelism: Invalid value: 100001: must be less than or equal to 100000 when completion mode is Indexed",
            ],
        );
        row(
            "failed indexes",
            &[("/spec/maxFailedIndexes", json!(4))],
            &[
                "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
                "spec.maxFailedIndexes: Invalid value: 4: must be less than or equal to completions",
            ],
        );
        row(
            "host names",
            &[("/metadata/name", json!("a.b"))],
            &[
                "metadata.name: Invalid value: \"a.b\": will not able to create pod with invalid DNS label: a.b-2",
            ],
        );
        let old = with(good(), &indexed);
        let both = with(old.clone(), &[("/spec/completions", json!(5)), ("/spec/parallelism", json!(5))]);
        expect("in tandem", &validate_job_update(&both, &old), &[]);
        let one = with(old.clone(), &[("/spec/completions", json!(5))]);
        expect(
            "alone",
            &validate_job_update(&one, &old),
            &["spec.completions: Invalid value: 5: may only be modified in tandem with spec.parallelism"],
        );
    }

    #[test]
    fn cron_jobs() {
        let cron_job = |changes: &[(&str, Value)]| {
            let mut template = good()["spec"].clone();
            super::super::json::remove(&mut template, "selector");
            with(
                json!({
                    "metadata": {"name": "nightly"},
                    "spec": {"schedule": "0 3 * * *", "concurrencyPolicy": "Allow", "jobTemplate": {"spec": template}},
                }),
                changes,
            )
        };
        let row = |what: &str, pointer: &str, value: Value, expected: &[&str]| {
            expect(what, &validate_cron_job(&cron_job(&[(pointer, value)])), expected);
        };
        row("good", "/spec/timeZone", json!("Europe/Berlin"), &[]);
        row(
            "schedule",
            "/spec/schedule",
            json!("61 * * * *"),
            &["spec.schedule: Invalid value: \"61 * * * *\": end of range (61) above maximum (59): 61"],
        );
        row(
            "zone in the schedule",
            "/spec/schedule",
            json!("TZ=UTC 0 3 * * *"),
            &[
                "spec.schedule: Invalid value: \"TZ=UTC 0 3 * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field \
               instead",
            ],
        );
        row(
            "zone of the machine",
            "/spec/timeZone",
            json!("local"),
            &[
                "spec.timeZone: Invalid value: \"local\": timeZone must be an explicit time zone as defined in \
               https://www.iana.org/time-zones",
            ],
        );
        row(
            "long name",
            "/metadata/name",
            json!("a".repeat(53)),
            &[&format!(
                "metadata.name: Invalid value: \"{}\": must be no more than 52 characters",
                "a".repeat(53)
            )],
        );
    }

    #[test]
    fn defaults_and_validation() {
        assert_eq!(good()["spec"]["completions"], 1);
        assert_eq!(good()["spec"]["backoffLimit"], 6);
        expect("good", &validate_job(&good()), &[]);
        expect(
            "restart policy",
            &validate_job(&with(good(), &[("/spec/template/spec/restartPolicy", json!("Always"))])),
            &[
                "spec.template.spec.restartPolicy: Unsupported value: \"Always\": supported values: \"OnFailure\", \
               \"Never\"",
            ],
        );
        let more = with(good(), &[("/spec/completions", json!(2))]);
        expect(
            "completions",
            &validate_job_update(&more, &good()),
            &["spec.completions: Invalid value: 2: field is immutable"],
        );
        expect(
            "parallelism",
            &validate_job_update(&with(good(), &[("/spec/parallelism", json!(2))]), &good()),
            &[],
        );
    }

    #[test]
    fn cells() {
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        let running =
            job_row(&with(good(), &[("/status", json!({"startTime": "2026-01-01T00:00:30Z"}))]), now);
        assert_eq!(running[1..4], [json!("Running"), json!("0/1"), json!("30s")]);
        let status = json!({
            "startTime": "2026-01-01T00:00:30Z", "completionTime": "2026-01-01T00:00:35Z", "succeeded": 1,
            "conditions": [{"type": "Complete", "status": "True"}],
        });
        let done = job_row(&with(good(), &[("/status", status)]), now);
        assert_eq!(done[1..4], [json!("Complete"), json!("1/1"), json!("5s")]);
    }
}
