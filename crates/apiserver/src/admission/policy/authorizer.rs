//! The variable `authorizer` of policies: who may what, asked of RBAC.

use serde_json::Value;

use super::expression::Calls;
use crate::admission::Admission;
use crate::auth::User;
use crate::auth::rbac::Attributes;

/// Answers a question about the user of a request, or about a service account.
pub(in crate::admission) fn answer(
    admission: &Admission<'_>,
    name: &str,
    calls: &Calls,
) -> Result<Value, String> {
    let question = Question::read(calls, &Subject::of(admission, name))?;
    let user = question.user.as_ref().unwrap_or(admission.user);
    let allowed = admission.server.decide(user, &question.attributes()).allowed;
    Ok(question.answer(allowed))
}

/// What `authorizer.requestResource` stands for.
struct Subject<'a> {
    group: &'a str,
    resource: &'a str,
    subresource: &'a str,
    namespace: &'a str,
    name: &'a str,
}

impl<'a> Subject<'a> {
    fn of(admission: &'a Admission<'_>, name: &'a str) -> Self {
        Self {
            group: &admission.kind.group,
            resource: &admission.kind.plural,
            subresource: admission.subresource,
            namespace: admission.namespace,
            name,
        }
    }
}

#[derive(Default)]
struct Question {
    user: Option<User>,
    verb: String,
    group: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
    path: Option<String>,
    asked: String,
}

impl Question {
    fn read(calls: &Calls, subject: &Subject<'_>) -> Result<Self, String> {
        let mut question = Self::default();
        for (method, arguments) in calls {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            match (method.as_str(), arguments.as_slice()) {
                ("serviceAccount", [namespace, name]) => question.user = Some(account(namespace, name)),
                ("path", [path]) => question.path = Some((*path).to_owned()),
                ("group", [group]) => question.group = (*group).to_owned(),
                ("resource", [resource]) => question.resource = (*resource).to_owned(),
                ("subresource", [subresource]) => question.subresource = (*subresource).to_owned(),
                ("namespace", [namespace]) => question.namespace = (*namespace).to_owned(),
                ("name", [name]) => question.name = (*name).to_owned(),
                ("fieldSelector" | "labelSelector", [_]) => {}
                ("requestResource", []) => {
                    question.group = subject.group.to_owned();
                    question.resource = subject.resource.to_owned();
                    question.subresource = subject.subresource.to_owned();
                    question.namespace = subject.namespace.to_owned();
                    question.name = subject.name.to_owned();
                }
                ("check", [verb]) => question.verb = (*verb).to_owned(),
                ("allowed" | "reason" | "errored" | "error", []) => question.asked = method.clone(),
                _ => return Err(format!("authorizer.{method}: no such overload")),
            }
        }
        if question.verb.is_empty() { Err("authorizer: nothing is checked".to_owned()) } else { Ok(question) }
    }

    fn attributes(&self) -> Attributes<'_> {
        Attributes {
            verb: &self.verb,
            group: &self.group,
            resource: &self.resource,
            subresource: &self.subresource,
            namespace: &self.namespace,
            name: &self.name,
            path: self.path.as_deref(),
            ..Attributes::default()
        }
    }

    fn answer(&self, allowed: bool) -> Value {
        match self.asked.as_str() {
            "allowed" => allowed.into(),
            "errored" => false.into(),
            _ => "".into(),
        }
    }
}

fn account(namespace: &str, name: &str) -> User {
    let of_namespace = format!("system:serviceaccounts:{namespace}");
    User::known(
        &format!("system:serviceaccount:{namespace}:{name}"),
        &["system:serviceaccounts", &of_namespace],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(calls: &[(&str, &[&str])]) -> Result<String, String> {
        let subject =
            Subject { group: "apps", resource: "deployments", subresource: "", namespace: "n", name: "x" };
        let calls: Vec<(String, Vec<String>)> = calls
            .iter()
            .map(|(method, arguments)| {
                ((*method).to_owned(), arguments.iter().map(|argument| (*argument).to_owned()).collect())
            })
            .collect();
        let question = Question::read(&calls, &subject)?;
        let asked = question.attributes();
        let user = question.user.as_ref().map_or("", |user| user.name.as_str());
        let path = asked.path.unwrap_or_default();
        Ok(format!(
            "{user} {} {}/{}/{} {}/{} {path}",
            asked.verb, asked.group, asked.resource, asked.subresource, asked.namespace, asked.name
        ))
    }

    #[test]
    fn questions_are_read() {
        let allowed: (&str, &[&str]) = ("allowed", &[]);
        let rows: Vec<(Vec<(&str, &[&str])>, Result<&str, &str>)> = vec![
            (
                vec![
                    ("group", &["a"]),
                    ("resource", &["r"]),
                    ("namespace", &["m"]),
                    ("check", &["get"]),
                    allowed,
                ],
                Ok(" get a/r/ m/ "),
            ),
            (
                vec![("requestResource", &[]), ("check", &["update"]), allowed],
                Ok(" update apps/deployments/ n/x "),
            ),
            (vec![("path", &["/healthz"]), ("check", &["get"]), allowed], Ok(" get // / /healthz")),
            (
                vec![("serviceAccount", &["n", "a"]), ("path", &["/"]), ("check", &["get"]), allowed],
                Ok("system:serviceaccount:n:a get // / /"),
            ),
            (vec![("group", &["a"]), allowed], Err("authorizer: nothing is checked")),
            (vec![("what", &["a"]), allowed], Err("authorizer.what: no such overload")),
        ];
        for (calls, expected) in rows {
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(read(&calls), expected, "{calls:?}");
        }
    }
}
