//! What a program of a container finds: its user, its variables, and where it is itself.

use std::ffi::CString;
use std::path::Path;

use super::inside::Root;
use crate::cri::SecurityContext;
use crate::failure::{Failure, Tried};
use crate::user::{FILE_LIMIT, User, resolve};

/// Search path of images that set none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Looks the user up in the container's own files.
pub(crate) fn resolve_user(root: &Root, security: &SecurityContext) -> Result<User, Failure> {
    let read = |path: &str| {
        let bytes =
            root.read(Path::new(path), FILE_LIMIT).tried(|| format!("read {path} of the container"))?;
        Ok::<_, Failure>(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
    };
    resolve(security, &read("/etc/passwd")?, &read("/etc/group")?)
}

/// Environment variables, each name once.
#[derive(Debug)]
pub(crate) struct Variables(Vec<(String, String)>);

impl Variables {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: &str, value: &str) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, present)) => value.clone_into(present),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
    }

    fn set_default(&mut self, name: &str, value: &str) {
        if self.get(name).is_none() {
            self.set(name, value);
        }
    }

    /// As `execve` wants them; what holds a zero byte cannot exist and is left out.
    pub(crate) fn into_strings(self) -> Vec<CString> {
        self.0.into_iter().filter_map(|(name, value)| CString::new(format!("{name}={value}")).ok()).collect()
    }
}

/// The configured variables and what every container has: PATH, HOME, HOSTNAME, and TERM with a terminal.
pub(crate) fn variables(configured: &[(String, String)], user: &User, terminal: bool) -> Variables {
    let mut variables = Variables(Vec::with_capacity(configured.len() + 4));
    for (name, value) in configured {
        variables.set(name, value);
    }
    variables.set_default("PATH", DEFAULT_PATH);
    variables.set_default("HOME", &user.home);
    variables.set_default("HOSTNAME", &rustix::system::uname().nodename().to_string_lossy());
    if terminal {
        variables.set_default("TERM", "xterm");
    }
    variables
}

/// A command and the files it may be.
#[derive(Debug)]
pub(crate) struct Program {
    /// Never empty.
    pub(crate) arguments: Vec<CString>,
    /// Paths to try, in order.
    pub(crate) candidates: Vec<CString>,
}

impl Program {
    /// A name without a slash is searched in the container's PATH.
    pub(crate) fn find(command: &[String], variables: &Variables) -> Result<Self, Failure> {
        let arguments = command
            .iter()
            .map(|argument| CString::new(argument.as_str()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| Failure::new("an argument of the command holds a zero byte"))?;
        let name = command
            .first()
            .filter(|name| !name.is_empty())
            .ok_or_else(|| Failure { exit_code: 127, ..Failure::new("no command specified") })?;
        let paths: Vec<String> = if name.contains('/') {
            vec![name.clone()]
        } else {
            let directories = variables.get("PATH").unwrap_or(DEFAULT_PATH).split(':');
            directories
                .map(|directory| if directory.is_empty() { "." } else { directory })
                .map(|directory| format!("{directory}/{name}"))
                .collect()
        };
        let candidates = paths.into_iter().filter_map(|path| CString::new(path).ok()).collect();
        Ok(Self { arguments, candidates })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> User {
        User { uid: 0, gid: 0, groups: vec![], home: "/root".to_owned() }
    }

    #[test]
    fn later_variables_win_and_defaults_fill() {
        let pairs =
            [("A", "1"), ("HOME", "/x"), ("A", "2")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let variables = variables(&pairs, &user(), true);
        for (name, expected) in [
            ("A", Some("2")),
            ("HOME", Some("/x")),
            ("PATH", Some(DEFAULT_PATH)),
            ("TERM", Some("xterm")),
            ("B", None),
        ] {
            assert_eq!(variables.get(name), expected, "{name}");
        }
        assert!(variables.get("HOSTNAME").is_some());
    }

    #[test]
    fn programs_are_searched() {
        let with_path = |path: &str| Variables(vec![("PATH".to_owned(), path.to_owned())]);
        let candidates = |command: &str, path: &str| {
            Program::find(&[command.to_owned()], &with_path(path)).map(|program| {
                program.candidates.iter().map(|path| path.to_string_lossy().into_owned()).collect::<Vec<_>>()
            })
        };
        assert_eq!(candidates("sh", "/bin:/usr/bin").expect("found"), ["/bin/sh", "/usr/bin/sh"]);
        assert_eq!(candidates("./sh", "/bin").expect("found"), ["./sh"]);
        assert_eq!(candidates("sh", ":/bin").expect("found"), ["./sh", "/bin/sh"]);
        assert_eq!(candidates("", "/bin").expect_err("empty").exit_code, 127);
        assert_eq!(Program::find(&[], &with_path("/bin")).expect_err("empty").exit_code, 127);
    }
}
