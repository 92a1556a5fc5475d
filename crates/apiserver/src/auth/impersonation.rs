//! `kubectl --as`: who may act as whom is a rule like any other.
//!
//! User, groups, uid and further attributes are each asked for by the verb `impersonate` on virtual resources, as in
//! Kubernetes: `users`, `groups` and `serviceaccounts` of the core group, `uids` and `userextras/KEY` of
//! `authentication.k8s.io`.

use http::HeaderMap;

use super::authorize::forbidden;
use super::certificates::extra_in;
use super::rbac::Attributes;
use super::{ANONYMOUS, UNAUTHENTICATED, User};
use crate::error::ApiError;
use crate::server::ApiServer;

/// Groups and values of attributes one impersonation may name; each is a question to the rules.
const MAX_QUESTIONS: usize = 100;
const EXTRA_PREFIX: &str = "Impersonate-Extra-";

/// Whom a request wants to act as.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    name: String,
    uid: String,
    groups: Vec<String>,
    extra: Vec<(String, Vec<String>)>,
}

impl Wanted {
    /// `None` when the request acts as itself.
    fn read(headers: &HeaderMap) -> Result<Option<Self>, ApiError> {
        let text = |name: &str| {
            let value = headers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let groups = headers.get_all("impersonate-group").iter();
        let wanted = Self {
            name: text("impersonate-user"),
            uid: text("impersonate-uid"),
            groups: groups.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect(),
            extra: extra_in(headers, &[EXTRA_PREFIX.to_owned()]),
        };
        if wanted == Self::default() {
            return Ok(None);
        }
        if wanted.name.is_empty() {
            return Err(ApiError::bad_request("requested groups, uid or extra without impersonating a user"));
        }
        let values: usize = wanted.extra.iter().map(|(_, values)| values.len()).sum();
        if wanted.groups.len() + values > MAX_QUESTIONS {
            return Err(ApiError::bad_request("too many groups and attributes to impersonate"));
        }
        Ok(Some(wanted))
    }

    /// Namespace and name of a service account.
    fn account(&self) -> Option<(&str, &str)> {
        self.name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'))
    }

    /// What must be allowed.
    fn questions(&self) -> Vec<Attributes<'_>> {
        const AUTHENTICATION: &str = "authentication.k8s.io";
        let question = |group, resource, name| Attributes {
            verb: "impersonate",
            group,
            resource,
            name,
            ..Attributes::default()
        };
        let mut questions = vec![match self.account() {
            Some((namespace, account)) => {
                Attributes { namespace, ..question("", "serviceaccounts", account) }
            }
            None => question("", "users", &self.name),
        }];
        questions.extend(self.groups.iter().map(|group| question("", "groups", group)));
        if !self.uid.is_empty() {
            questions.push(question(AUTHENTICATION, "uids", &self.uid));
        }
        for (key, values) in &self.extra {
            questions.extend(values.iter().map(|value| Attributes {
                subresource: key,
                ..question(AUTHENTICATION, "userextras", value)
            }));
        }
        questions
    }

    fn user(self) -> User {
        let mut groups = self.groups.clone();
        if let Some((namespace, _)) = self.account()
            && groups.is_empty()
        {
            groups.push("system:serviceaccounts".to_owned());
            groups.push(format!("system:serviceaccounts:{namespace}"));
        }
        let names: Vec<&str> = groups.iter().map(String::as_str).collect();
        let mut user = User::known(&self.name, &names);
        if self.name == ANONYMOUS {
            user.groups = groups;
            if user.groups.is_empty() {
                user.groups.push(UNAUTHENTICATED.to_owned());
            }
        }
        user.uid = self.uid;
        user.extra = self.extra;
        user
    }
}

impl ApiServer {
    /// The user a request acts as: the sender, or whom the sender may be instead (then the second part is true).
    pub(crate) fn impersonate(&self, headers: &HeaderMap, sender: User) -> Result<(User, bool), ApiError> {
        let Some(wanted) = Wanted::read(headers)? else { return Ok((sender, false)) };
        for question in wanted.questions() {
            let decision = self.decide(&sender, &question);
            if !decision.allowed {
                return Err(forbidden(&sender, &question, &decision.reason));
            }
        }
        Ok((wanted.user(), true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::AUTHENTICATED;

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            let name: http::HeaderName = name.parse().expect("a name");
            headers.append(name, value.parse().expect("a value"));
        }
        headers
    }

    #[test]
    fn what_is_asked() {
        type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);
        let rows: [Row<'_>; 3] = [
            ("user", &[("Impersonate-User", "ann")], &["/users//ann"]),
            (
                "account",
                &[("Impersonate-User", "system:serviceaccount:ns:robot"), ("Impersonate-Group", "g")],
                &["/serviceaccounts//robot", "/groups//g"],
            ),
            (
                "everything",
                &[
                    ("Impersonate-User", "ann"),
                    ("Impersonate-Uid", "u"),
                    ("Impersonate-Extra-Scopes", "a"),
                    ("Impersonate-Extra-scopes", "b"),
                ],
                &[
                    "/users//ann",
                    "authentication.k8s.io/uids//u",
                    "authentication.k8s.io/userextras/scopes/a",
                    "authentication.k8s.io/userextras/scopes/b",
                ],
            ),
        ];
        for (what, list, expected) in rows {
            let wanted = Wanted::read(&headers(list)).expect("fine").expect("somebody");
            let asked: Vec<String> = wanted
                .questions()
                .iter()
                .map(|q| format!("{}/{}/{}/{}", q.group, q.resource, q.subresource, q.name))
                .collect();
            assert_eq!(asked, expected, "{what}");
        }
        assert!(Wanted::read(&headers(&[])).expect("fine").is_none());
        for alone in ["Impersonate-Group", "Impersonate-Uid", "Impersonate-Extra-a"] {
            assert!(Wanted::read(&headers(&[(alone, "x")])).is_err(), "{alone}");
        }
    }

    #[test]
    fn whom_it_comes_to() {
        let account = "system:serviceaccount:ns:robot";
        type Row<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);
        let rows: [Row<'_>; 4] = [
            (&[("Impersonate-User", "ann"), ("Impersonate-Group", "g")], &["g", AUTHENTICATED]),
            (
                &[("Impersonate-User", account)],
                &["system:serviceaccounts", "system:serviceaccounts:ns", AUTHENTICATED],
            ),
            (&[("Impersonate-User", account), ("Impersonate-Group", "g")], &["g", AUTHENTICATED]),
            (&[("Impersonate-User", ANONYMOUS)], &[UNAUTHENTICATED]),
        ];
        for (list, groups) in rows {
            let user = Wanted::read(&headers(list)).expect("fine").expect("somebody").user();
            assert_eq!(user.groups, groups, "{list:?}");
        }
    }
}
