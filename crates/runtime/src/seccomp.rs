//! System call filters: our default list and OCI profiles, compiled with `seccompiler`.
//!
//! One `seccompiler` filter knows one action besides its default, and the kernel obeys the strictest of several
//! filters. So a profile becomes: a filter that lets pass every call the profile names and gives the rest the default
//! action, and one filter for each other action that lets pass everything but its calls. For profiles that name a
//! call under one action only, which is what profiles do, that is exactly their meaning.
//!
//! Only the machine's own architecture is filtered; a call through another ABI (32-bit programs) ends the process.

mod search;

use std::collections::{BTreeMap, HashMap};

use rustix::thread::CapabilitySet;
use sampan_kernel::seccomp::Instruction;
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use serde::Deserialize;

use crate::capability;
use crate::failure::Failure;

const DEFAULT_PROFILE: &str = include_str!("../data/seccomp_default.txt");

#[cfg(target_arch = "x86_64")]
const SYSCALLS: &str = include_str!("../data/syscalls_x86_64.txt");
#[cfg(target_arch = "aarch64")]
const SYSCALLS: &str = include_str!("../data/syscalls_aarch64.txt");

/// This machine's architecture for `seccompiler`, and as `AUDIT_ARCH_*` number.
#[cfg(target_arch = "x86_64")]
const TARGET: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const TARGET: TargetArch = TargetArch::aarch64;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Largest profile file that is read; the largest known ones have about 30 KiB.
pub(crate) const PROFILE_LIMIT: u64 = 1024 * 1024;

const EPERM: u32 = 1;

/// Programs to load one after the other.
pub(crate) type Filters = Vec<Vec<Instruction>>;

/// A profile in its simplest form.
#[derive(Debug)]
struct Profile {
    default: SeccompAction,
    entries: Vec<Entry>,
}

/// Calls that get `action` when all conditions hold.
#[derive(Debug)]
struct Entry {
    names: Vec<String>,
    conditions: Vec<SeccompCondition>,
    action: SeccompAction,
}

/// The filters of `RuntimeDefault` for a container with these capabilities.
///
/// # Errors
/// Never with the list in this repository; a test compiles it.
pub(crate) fn default_filters(capabilities: CapabilitySet) -> Result<Filters, Failure> {
    compile(&parse_default(DEFAULT_PROFILE, capabilities)?)
}

/// The filters of a profile file in OCI form (`linux.seccomp` of a `config.json`; `includes` and `excludes` by
/// capability, which container engines add to that form, are understood too).
///
/// # Errors
/// When the text is no such profile or uses what `seccompiler` cannot express.
pub(crate) fn oci_filters(text: &[u8], capabilities: CapabilitySet) -> Result<Filters, Failure> {
    let profile: OciProfile = serde_json::from_slice(text)
        .map_err(|error| Failure::new(format!("failed to parse seccomp profile: {error}")))?;
    compile(&profile.simplify(capabilities)?)
}

fn parse_default(text: &str, capabilities: CapabilitySet) -> Result<Profile, Failure> {
    let mut entries = Vec::new();
    let mut section_applies = true;
    for line in text.lines().map(str::trim) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match (line.chars().next(), &words[..]) {
            (None | Some('#'), _) => {}
            (Some('['), _) => {
                let name = line.trim_matches(['[', ']']);
                section_applies = match name.strip_prefix('!') {
                    Some(name) => !capability::contains(capabilities, name),
                    None => capability::contains(capabilities, name),
                };
            }
            _ if !section_applies => {}
            (Some('?'), [name, argument, operator, value]) => entries.push(Entry {
                names: vec![name[1..].to_owned()],
                conditions: vec![parse_condition(argument, operator, value)?],
                action: SeccompAction::Allow,
            }),
            (Some('!'), [errno, name]) => entries.push(Entry {
                names: vec![(*name).to_owned()],
                conditions: vec![],
                action: SeccompAction::Errno(parse_number(&errno[1..])? as u32),
            }),
            (_, names) => entries.push(Entry {
                names: names.iter().map(|name| (*name).to_owned()).collect(),
                conditions: vec![],
                action: SeccompAction::Allow,
            }),
        }
    }
    Ok(Profile { default: SeccompAction::Errno(EPERM), entries })
}

fn parse_condition(argument: &str, operator: &str, value: &str) -> Result<SeccompCondition, Failure> {
    let operator = match operator {
        "eq" => SeccompCmpOp::Eq,
        "ne" => SeccompCmpOp::Ne,
        other => match other.strip_prefix("masked:") {
            Some(mask) => SeccompCmpOp::MaskedEq(parse_number(mask)?),
            None => {
                return Err(Failure::new(format!("unknown operator {other:?} in seccomp list")));
            }
        },
    };
    condition(parse_number(argument)? as u8, operator, parse_number(value)?)
}

fn parse_number(text: &str) -> Result<u64, Failure> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
    .map_err(|error| Failure::new(format!("malformed number {text:?} in seccomp list: {error}")))
}

fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, Failure> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, value)
        .map_err(|error| Failure::new(format!("seccomp profile cannot be compiled: {error}")))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OciProfile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<OciEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OciEntry {
    #[serde(default)]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<OciArgument>>,
    #[serde(default)]
    includes: OciFilter,
    #[serde(default)]
    excludes: OciFilter,
}

#[derive(Debug, Default, Deserialize)]
struct OciFilter {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OciArgument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

impl OciProfile {
    fn simplify(self, capabilities: CapabilitySet) -> Result<Profile, Failure> {
        let default = parse_action(&self.default_action, self.default_errno_ret)?;
        let mut entries = Vec::new();
        for entry in self.syscalls {
            if !entry.applies(capabilities) {
                continue;
            }
            let action = parse_action(&entry.action, entry.errno_ret)?;
            let conditions = entry
                .args
                .unwrap_or_default()
                .iter()
                .map(OciArgument::condition)
                .collect::<Result<_, _>>()?;
            entries.push(Entry { names: entry.names, conditions, action });
        }
        Ok(Profile { default, entries })
    }
}

impl OciEntry {
    fn applies(&self, capabilities: CapabilitySet) -> bool {
        let here = if cfg!(target_arch = "x86_64") { ["amd64", "x86"] } else { ["arm64", "arm"] };
        let has = |name: &String| capability::contains(capabilities, name);
        let is_here = |name: &String| here.contains(&name.as_str());
        self.includes.caps.iter().all(has)
            && (self.includes.arches.is_empty() || self.includes.arches.iter().any(is_here))
            && !self.excludes.caps.iter().any(has)
            && !self.excludes.arches.iter().any(is_here)
    }
}

impl OciArgument {
    fn condition(&self) -> Result<SeccompCondition, Failure> {
        let (operator, value) = match self.op.as_str() {
            "SCMP_CMP_NE" => (SeccompCmpOp::Ne, self.value),
            "SCMP_CMP_LT" => (SeccompCmpOp::Lt, self.value),
            "SCMP_CMP_LE" => (SeccompCmpOp::Le, self.value),
            "SCMP_CMP_EQ" => (SeccompCmpOp::Eq, self.value),
            "SCMP_CMP_GE" => (SeccompCmpOp::Ge, self.value),
            "SCMP_CMP_GT" => (SeccompCmpOp::Gt, self.value),
            "SCMP_CMP_MASKED_EQ" => (SeccompCmpOp::MaskedEq(self.value), self.value_two),
            other => {
                return Err(Failure::new(format!("unknown operator {other:?} in seccomp profile")));
            }
        };
        condition(self.index, operator, value)
    }
}

fn parse_action(name: &str, errno: Option<u32>) -> Result<SeccompAction, Failure> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => SeccompAction::Allow,
        "SCMP_ACT_ERRNO" => SeccompAction::Errno(errno.unwrap_or(EPERM)),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => SeccompAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => SeccompAction::KillProcess,
        "SCMP_ACT_LOG" => SeccompAction::Log,
        "SCMP_ACT_TRAP" => SeccompAction::Trap,
        "SCMP_ACT_TRACE" => SeccompAction::Trace(errno.unwrap_or(EPERM)),
        other => {
            return Err(Failure::new(format!("action {other:?} of the seccomp profile is not supported")));
        }
    })
}

/// Calls with the conditions of which any may hold; none at all means always.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn compile(profile: &Profile) -> Result<Filters, Failure> {
    let numbers: HashMap<&str, i64> = SYSCALLS
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(name, number)| Some((name, number.parse().ok()?)))
        .collect();
    let mut named = Rules::new();
    let mut by_action: Vec<(SeccompAction, Rules)> = Vec::new();
    for entry in profile.entries.iter().filter(|entry| entry.action != profile.default) {
        let rule = match &entry.conditions[..] {
            [] => None,
            conditions => Some(SeccompRule::new(conditions.to_vec()).map_err(cannot_compile)?),
        };
        // Names of other architectures and newer kernels are in every profile; skipping them keeps the default action.
        for number in entry.names.iter().filter_map(|name| numbers.get(name.as_str())) {
            add_rule(&mut named, *number, rule.clone());
            if entry.action != SeccompAction::Allow {
                let position = by_action.iter().position(|(action, _)| *action == entry.action);
                let position = position.unwrap_or_else(|| {
                    by_action.push((entry.action.clone(), Rules::new()));
                    by_action.len() - 1
                });
                add_rule(&mut by_action[position].1, *number, rule.clone());
            }
        }
    }
    // The filter with the default action comes last: the ones before it must not be kept from being loaded.
    let mut filters = Vec::new();
    for (action, rules) in by_action {
        filters.push(assemble(rules, SeccompAction::Allow, action)?);
    }
    if profile.default != SeccompAction::Allow {
        filters.push(assemble(named, profile.default.clone(), SeccompAction::Allow)?);
    }
    Ok(filters)
}

/// Adds a rule; a call that is named without conditions anywhere needs none of its other rules.
fn add_rule(rules: &mut Rules, number: i64, rule: Option<SeccompRule>) {
    match (rules.get_mut(&number), rule) {
        (_, None) => {
            rules.insert(number, vec![]);
        }
        (None, Some(rule)) => {
            rules.insert(number, vec![rule]);
        }
        (Some(present), Some(rule)) if !present.is_empty() => present.push(rule),
        (Some(_), Some(_)) => {}
    }
}

/// One filter: `action` for calls that fit the rules. Calls without conditions are searched for, the few others are
/// left to `seccompiler`.
fn assemble(
    rules: Rules,
    otherwise: SeccompAction,
    action: SeccompAction,
) -> Result<Vec<Instruction>, Failure> {
    let (always, sometimes): (Rules, Rules) = rules.into_iter().partition(|(_, rules)| rules.is_empty());
    let numbers: Vec<u32> = always.keys().filter_map(|number| u32::try_from(*number).ok()).collect();
    let rest = if sometimes.is_empty() {
        search::constant(otherwise.into())
    } else {
        let filter =
            SeccompFilter::new(sometimes, otherwise, action.clone(), TARGET).map_err(cannot_compile)?;
        let program: seccompiler::BpfProgram = filter.try_into().map_err(cannot_compile)?;
        program.into_iter().map(convert).collect()
    };
    Ok(search::program(ARCHITECTURE, &numbers, action.into(), &rest))
}

fn convert(code: seccompiler::sock_filter) -> Instruction {
    Instruction { code: code.code, jump_true: code.jt, jump_false: code.jf, operand: code.k }
}

fn cannot_compile(error: impl std::fmt::Display) -> Failure {
    Failure::new(format!("seccomp profile cannot be compiled: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;

    /// Runs the programs like the kernel: the numerically smallest action (signed) is the strictest.
    fn verdict(filters: &Filters, name: &str, arguments: [u64; 6]) -> u32 {
        let number = SYSCALLS
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<u32>().ok())
            .expect("known call");
        let mut data = Vec::new();
        data.extend(number.to_ne_bytes());
        data.extend(ARCHITECTURE.to_ne_bytes());
        data.extend([0; 8]);
        data.extend(arguments.iter().flat_map(|argument| argument.to_ne_bytes()));
        filters.iter().map(|program| run(program, &data)).min_by_key(|action| *action as i32).unwrap_or(ALLOW)
    }

    /// Executes a program on a `struct seccomp_data`.
    pub(super) fn run(program: &[Instruction], data: &[u8]) -> u32 {
        let (mut accumulator, mut position) = (0_u32, 0);
        loop {
            let code = program[position];
            position += 1;
            let jump = |taken: bool| if taken { code.jump_true } else { code.jump_false } as usize;
            match code.code {
                0x20 => {
                    let at = code.operand as usize;
                    accumulator = u32::from_ne_bytes(data[at..at + 4].try_into().expect("four bytes"));
                }
                0x05 => position += code.operand as usize,
                0x15 => position += jump(accumulator == code.operand),
                0x25 => position += jump(accumulator > code.operand),
                0x35 => position += jump(accumulator >= code.operand),
                0x54 => accumulator &= code.operand,
                0x06 => return code.operand,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn the_default_list_decides_as_documented() {
        let plain = default_filters(capability::parse("CHOWN").expect("known")).expect("compiles");
        let admin = default_filters(capability::parse("SYS_ADMIN").expect("known")).expect("compiles");
        let with = |value: u64| [value, 0, 0, 0, 0, 0];
        for (name, arguments, in_plain, in_admin) in [
            ("read", with(0), ALLOW, ALLOW),
            ("execve", with(0), ALLOW, ALLOW),
            ("mount", with(0), ERRNO | 1, ALLOW),
            ("unshare", with(0), ERRNO | 1, ALLOW),
            ("keyctl", with(0), ERRNO | 1, ERRNO | 1),
            ("io_uring_setup", with(0), ERRNO | 1, ERRNO | 1),
            ("reboot", with(0), ERRNO | 1, ERRNO | 1),
            ("clone3", with(0), ERRNO | 38, ALLOW),
            ("clone", with(0x11), ALLOW, ALLOW),
            ("clone", with(0x1000_0011), ERRNO | 1, ALLOW),
            ("clone", with(0x0002_0011), ERRNO | 1, ALLOW),
            ("personality", with(0), ALLOW, ALLOW),
            ("personality", with(0x0004_0000), ERRNO | 1, ERRNO | 1),
            ("socket", with(2), ALLOW, ALLOW),
            ("socket", with(40), ERRNO | 1, ERRNO | 1),
        ] {
            assert_eq!(verdict(&plain, name, arguments), in_plain, "{name} {arguments:x?}");
            assert_eq!(verdict(&admin, name, arguments), in_admin, "{name} {arguments:x?} with SYS_ADMIN");
        }
    }

    #[test]
    fn every_name_of_the_default_list_exists_somewhere() {
        let known: Vec<&str> =
            [include_str!("../data/syscalls_x86_64.txt"), include_str!("../data/syscalls_aarch64.txt")]
                .iter()
                .flat_map(|table| table.lines())
                .filter_map(|line| Some(line.split_once(' ')?.0))
                .collect();
        let profile = parse_default(DEFAULT_PROFILE, capability::all()).expect("parses");
        for name in profile.entries.iter().flat_map(|entry| &entry.names) {
            assert!(known.contains(&name.as_str()), "{name}");
        }
    }

    #[test]
    fn oci_profiles_are_translated() {
        let text = br#"{
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 95, "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [
                {"names": ["read", "write", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["chmod"], "action": "SCMP_ACT_KILL_PROCESS"},
                {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
                {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 15, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"}]},
                {"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_CHROOT"]}},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_CHROOT"]}}
            ]}"#;
        let filters = oci_filters(text, capability::parse("SYS_CHROOT").expect("known")).expect("compiles");
        for (name, arguments, expected) in [
            ("read", [0; 6], ALLOW),
            ("open", [0; 6], ERRNO | 95),
            ("chmod", [0; 6], 0x8000_0000),
            ("mkdir", [0; 6], ERRNO | 13),
            ("socket", [1, 0x801, 0, 0, 0, 0], ALLOW),
            ("socket", [1, 0x802, 0, 0, 0, 0], ERRNO | 95),
            ("socket", [2, 0x801, 0, 0, 0, 0], ERRNO | 95),
            ("chroot", [0; 6], ALLOW),
            ("mount", [0; 6], ERRNO | 95),
        ] {
            assert_eq!(verdict(&filters, name, arguments), expected, "{name} {arguments:x?}");
        }
    }

    #[test]
    fn a_profile_that_allows_by_default_refuses_only_its_names() {
        let text = br#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}]}"#;
        let filters = oci_filters(text, CapabilitySet::empty()).expect("compiles");
        assert_eq!(verdict(&filters, "chmod", [0; 6]), ERRNO | 1);
        assert_eq!(verdict(&filters, "open", [0; 6]), ALLOW);
    }

    #[test]
    fn broken_profiles_are_refused() {
        for text in ["", "{}", r#"{"defaultAction": "SCMP_ACT_FLY"}"#, "[1"] {
            assert!(oci_filters(text.as_bytes(), CapabilitySet::empty()).is_err(), "{text}");
        }
    }
}
