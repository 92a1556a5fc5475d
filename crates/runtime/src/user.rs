//! Who a container runs as: numbers, or names looked up in the container's own `/etc/passwd` and `/etc/group`.
//!
//! The files come from an image, so they are read with bounds; a line that does not parse is skipped, as the C
//! library does.

use crate::cri::SecurityContext;
use crate::failure::Failure;

/// Largest passwd or group file that is read; real ones have a few kilobytes.
pub(crate) const FILE_LIMIT: u64 = 1024 * 1024;

/// What a process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1)?;
        Some(PasswdEntry { name, uid, gid, home })
    })
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn group_entries(text: &str) -> impl Iterator<Item = GroupEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        let members = fields.next().unwrap_or("");
        Some(GroupEntry { name, gid, members })
    })
}

/// Resolves the security context's user against the contents of the two files (empty when absent).
///
/// # Errors
/// When a name is in none of the files.
pub(crate) fn resolve(security: &SecurityContext, passwd: &str, group: &str) -> Result<User, Failure> {
    let (wanted_user, wanted_group) = match security.run_as_user {
        Some(uid) => (uid.to_string(), None),
        None => match security.image_user.split_once(':') {
            Some((user, group)) => (user.to_owned(), Some(group).filter(|group| !group.is_empty())),
            None => (security.image_user.clone(), None),
        },
    };
    let wanted_user = if wanted_user.is_empty() { "0" } else { &wanted_user };
    // A numeric user is looked up as well: for its home, its group and the groups it is a member of. Numbers are
    // tried as numbers first, so that a user named "0" in an image's file cannot stand in for root.
    let entry = match wanted_user.parse::<u32>() {
        Ok(uid) => passwd_entries(passwd).find(|entry| entry.uid == uid),
        Err(_) => passwd_entries(passwd).find(|entry| entry.name == wanted_user),
    };
    let uid = match (&entry, wanted_user.parse::<u32>()) {
        (_, Ok(uid)) => uid,
        (Some(entry), Err(_)) => entry.uid,
        (None, Err(_)) => {
            return Err(Failure::new(format!("user {wanted_user:?} is not in /etc/passwd of the image")));
        }
    };
    let gid = match (security.run_as_group, wanted_group) {
        (Some(gid), _) => gid,
        (None, Some(name)) => resolve_group(name, group)?,
        (None, None) => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut groups = vec![gid];
    groups.extend(&security.supplemental_groups);
    if let Some(entry) = &entry
        && wanted_group.is_none()
    {
        let is_member = |group: &GroupEntry<'_>| group.members.split(',').any(|member| member == entry.name);
        groups.extend(group_entries(group).filter(is_member).map(|group| group.gid));
    }
    groups.sort_unstable();
    groups.dedup();
    let home = entry.map(|entry| entry.home).filter(|home| !home.is_empty()).unwrap_or("/").to_owned();
    Ok(User { uid, gid, groups, home })
}

fn resolve_group(name: &str, group: &str) -> Result<u32, Failure> {
    if let Ok(gid) = name.parse() {
        return Ok(gid);
    }
    group_entries(group)
        .find(|entry| entry.name == name)
        .map(|entry| entry.gid)
        .ok_or_else(|| Failure::new(format!("group {name:?} is not in /etc/group of the image")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\n\nbroken line\nweb:x:33:34:Web:/srv/web:/bin/false\n0:x:99:99::/:\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:50:other,web\nnumbers:x:abc:web\nadm:x:4:root\n";

    fn context(image_user: &str, uid: Option<u32>, gid: Option<u32>) -> SecurityContext {
        SecurityContext {
            image_user: image_user.to_owned(),
            run_as_user: uid,
            run_as_group: gid,
            supplemental_groups: vec![],
            ..SecurityContext::default()
        }
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        for (image_user, uid, gid, expected) in [
            ("", None, None, (0, 0, vec![0, 4], "/root")),
            ("web", None, None, (33, 34, vec![34, 50], "/srv/web")),
            ("33", None, None, (33, 34, vec![34, 50], "/srv/web")),
            ("web:logs", None, None, (33, 50, vec![50], "/srv/web")),
            ("web:77", None, None, (33, 77, vec![77], "/srv/web")),
            ("web:", None, None, (33, 34, vec![34, 50], "/srv/web")),
            ("1234", None, None, (1234, 0, vec![0], "/")),
            ("nobody", Some(33), None, (33, 34, vec![34, 50], "/srv/web")),
            ("web", Some(1000), Some(2000), (1000, 2000, vec![2000], "/")),
            ("0", None, None, (0, 0, vec![0, 4], "/root")),
        ] {
            let user = resolve(&context(image_user, uid, gid), PASSWD, GROUP).expect(image_user);
            assert_eq!((user.uid, user.gid, user.groups, user.home.as_str()), expected, "{image_user}");
        }
    }

    #[test]
    fn unknown_names_are_refused() {
        assert!(resolve(&context("nobody", None, None), PASSWD, GROUP).is_err());
        assert!(resolve(&context("web:nothing", None, None), PASSWD, GROUP).is_err());
        assert!(resolve(&context("-1", None, None), PASSWD, GROUP).is_err());
    }

    #[test]
    fn supplemental_groups_are_added() {
        let mut security = context("web", None, None);
        security.supplemental_groups = vec![7, 50];
        assert_eq!(resolve(&security, PASSWD, GROUP).expect("known").groups, vec![7, 34, 50]);
    }
}
