//! What processes of this machine cost: memory, CPU time, bytes written.
//!
//! Memory is PSS, the proportional share: a page that ten processes share counts a tenth for each, so
//! that the sum over processes is what the machine would get back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::error::{BenchError, Result};
use crate::report::Measure;

/// Clock ticks per second in /proc, fixed by the kernel's ABI on every architecture we run on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Which processes make up a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    /// These processes and all their descendants.
    Trees(Vec<u32>),
    /// Every process whose command or executable begins with this.
    Named(String),
}

/// `target=pid,pid` or `target=name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProcessGroup {
    pub(crate) target: String,
    pub(crate) selection: Selection,
}

impl FromStr for ProcessGroup {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (target, what) = text
            .split_once('=')
            .filter(|(target, what)| !target.is_empty() && !what.is_empty())
            .ok_or_else(|| format!("expected target=pid,pid or target=name, not {text:?}"))?;
        let pids: std::result::Result<Vec<u32>, _> = what.split(',').map(str::parse).collect();
        let selection = match pids {
            Ok(pids) => Selection::Trees(pids),
            Err(_) => Selection::Named(what.to_string()),
        };
        Ok(Self { target: target.to_string(), selection })
    }
}

/// A process as /proc shows it.
#[derive(Clone, Debug, Default)]
struct Process {
    pid: u32,
    parent: u32,
    /// The kernel's short name, the base name of the executable and of the first argument.
    names: [String; 3],
}

impl ProcessGroup {
    /// Reads what the processes of the group have used so far.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let members = members(&self.selection, &all_processes());
        if members.is_empty() {
            return Err(BenchError::new(format!("no process of {} is running", self.target)));
        }
        Ok(Usage { by_process: members.into_iter().filter_map(|pid| Some((pid, read_one(pid)?))).collect() })
    }
}

/// What a group of processes has used at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage {
    by_process: BTreeMap<u32, OneUsage>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct OneUsage {
    pss_kib: u64,
    cpu_ticks: u64,
    written_bytes: u64,
}

impl Usage {
    /// Memory of all processes, in MiB.
    pub(crate) fn pss_mib(&self) -> f64 {
        self.by_process.values().map(|one| one.pss_kib).sum::<u64>() as f64 / 1024.0
    }

    pub(crate) fn processes(&self) -> usize {
        self.by_process.len()
    }

    /// What was used since `before`: CPU in thousandths of a core over `elapsed`, and bytes written.
    /// Processes that ended meanwhile are not seen; those that began count in full.
    fn since(&self, before: &Self, elapsed: Duration) -> (f64, f64) {
        let (mut ticks, mut bytes) = (0, 0);
        for (pid, now) in &self.by_process {
            let then = before.by_process.get(pid).copied().unwrap_or_default();
            ticks += now.cpu_ticks.saturating_sub(then.cpu_ticks);
            bytes += now.written_bytes.saturating_sub(then.written_bytes);
        }
        (ticks as f64 / TICKS_PER_SECOND / elapsed.as_secs_f64() * 1000.0, bytes as f64)
    }
}

/// What a cluster, if its processes are known, and this program have used at one moment. The program
/// shares the machine with what it measures, so its own share belongs beside the cluster's.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    at: Instant,
    cluster: Option<Usage>,
    own: Usage,
}

impl Reading {
    pub(crate) fn take(group: Option<&ProcessGroup>) -> Result<Self> {
        let own = std::process::id();
        let own = Usage { by_process: read_one(own).map(|usage| (own, usage)).into_iter().collect() };
        Ok(Self { at: Instant::now(), cluster: group.map(ProcessGroup::usage).transpose()?, own })
    }

    /// How much memory the cluster has gained since `before`, in KiB; not a number without processes.
    pub(crate) fn cluster_kib_since(&self, before: &Self) -> f64 {
        let cluster = |reading: &Self| reading.cluster.as_ref().map_or(f64::NAN, Usage::pss_mib);
        (cluster(self) - cluster(before)) * 1024.0
    }

    /// How much memory this program has gained since `before`, in KiB.
    pub(crate) fn own_kib_since(&self, before: &Self) -> f64 {
        (self.own.pss_mib() - before.own.pss_mib()) * 1024.0
    }

    /// CPU of the cluster and of this program since `before`.
    pub(crate) fn cpu_since(&self, before: &Self, what: &str) -> Vec<Measure> {
        let elapsed = self.at.duration_since(before.at);
        let cluster = self.cluster.as_ref().zip(before.cluster.as_ref());
        let cluster = cluster.map_or(f64::NAN, |(now, then)| now.since(then, elapsed).0);
        vec![
            Measure::lower(format!("CPU of the cluster, {what}"), "millicores", cluster),
            Measure::lower(
                format!("CPU of bench, {what}"),
                "millicores",
                self.own.since(&before.own, elapsed).0,
            ),
        ]
    }
}

/// Watches a group that has nothing to do.
pub(crate) async fn measure_idle(group: &ProcessGroup, duration: Duration) -> Result<Vec<Measure>> {
    let before = group.usage()?;
    let begun = tokio::time::Instant::now();
    tokio::time::sleep(duration).await;
    let after = group.usage()?;
    let (cpu, written) = after.since(&before, begun.elapsed());
    Ok(vec![
        Measure::lower("idle memory (PSS)", "MiB", after.pss_mib()),
        Measure::lower("processes", "", after.processes() as f64),
        Measure::lower("idle CPU", "millicores", cpu),
        Measure::lower(format!("written while idle, {} s", duration.as_secs()), "bytes", written),
    ])
}

fn members(selection: &Selection, processes: &[Process]) -> BTreeSet<u32> {
    match selection {
        Selection::Named(prefix) => processes
            .iter()
            .filter(|process| process.names.iter().any(|name| name.starts_with(prefix.as_str())))
            .map(|process| process.pid)
            .collect(),
        Selection::Trees(roots) => {
            let present: BTreeSet<u32> = processes.iter().map(|process| process.pid).collect();
            let mut found: BTreeSet<u32> =
                roots.iter().copied().filter(|pid| present.contains(pid)).collect();
            // Children may have lower numbers than their parents, so one pass is not enough.
            loop {
                let before = found.len();
                let children = processes.iter().filter(|process| found.contains(&process.parent));
                let children: Vec<u32> = children.map(|process| process.pid).collect();
                found.extend(children);
                if found.len() == before {
                    return found;
                }
            }
        }
    }
}

/// All processes but this one, which would find itself by its arguments.
fn all_processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|&pid| pid != std::process::id())
        .filter_map(read_process)
        .collect()
}

fn read_process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let base =
        |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let first = arguments.split(|byte| *byte == 0).next().map(String::from_utf8_lossy).unwrap_or_default();
    Some(Process {
        pid,
        parent: fields.split_whitespace().nth(1)?.parse().ok()?,
        names: [
            fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_string(),
            fs::read_link(format!("/proc/{pid}/exe")).map(|path| base(&path)).unwrap_or_default(),
            base(Path::new(&*first)),
        ],
    })
}

/// `None` when the process has ended.
fn read_one(pid: u32) -> Option<OneUsage> {
    let file = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
    Some(OneUsage {
        // Empty for kernel threads, and unreadable when the process is just ending.
        pss_kib: field(&file("smaps_rollup").unwrap_or_default(), "Pss:").unwrap_or(0),
        cpu_ticks: cpu_ticks(&file("stat").ok()?)?,
        written_bytes: field(&file("io").unwrap_or_default(), "write_bytes:").unwrap_or(0),
    })
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// User and system time out of /proc/PID/stat. The name in it may hold spaces and parentheses, so
/// counting begins after the last one: the state is the first field there, user time the twelfth.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (times.next()?.parse().ok()?, times.next()?.parse().ok()?);
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, parent: u32, name: &str) -> Process {
        Process { pid, parent, names: [name.to_string(), String::new(), String::new()] }
    }

    #[test]
    fn groups_are_given_by_number_or_by_name() {
        let rows = [
            ("a=1", Selection::Trees(vec![1])),
            ("a=1,23", Selection::Trees(vec![1, 23])),
            ("a=sampan", Selection::Named("sampan".to_string())),
            ("a=1,x", Selection::Named("1,x".to_string())),
        ];
        for (text, selection) in rows {
            assert_eq!(text.parse(), Ok(ProcessGroup { target: "a".to_string(), selection }), "{text}");
        }
        for wrong in ["", "a", "a=", "=1"] {
            assert!(wrong.parse::<ProcessGroup>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn who_belongs_to_a_group() {
        let processes = [
            process(10, 1, "sampan"),
            process(5, 10, "sampan-pod"),
            process(3, 5, "web"),
            process(11, 1, "other"),
        ];
        let rows = [
            (Selection::Named("sampan".to_string()), vec![5, 10]),
            (Selection::Trees(vec![10]), vec![3, 5, 10]),
            (Selection::Trees(vec![11, 99]), vec![11]),
        ];
        for (selection, expected) in rows {
            let found: Vec<u32> = members(&selection, &processes).into_iter().collect();
            assert_eq!(found, expected, "{selection:?}");
        }
    }

    #[test]
    fn numbers_out_of_proc() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 100 200 0 0 7 5 1 2 20 0 4 0 100 1 1";
        assert_eq!(cpu_ticks(stat), Some(12));
        assert_eq!(field("Rss: 10 kB\nPss:     7 kB\nPss_Anon: 3 kB\n", "Pss:"), Some(7));
        assert_eq!(field("rchar: 1\nwrite_bytes: 4096\n", "write_bytes:"), Some(4096));
        assert_eq!(field("", "Pss:"), None);
    }

    #[test]
    fn differences_of_usage() {
        let usage = |entries: &[(u32, u64, u64)]| Usage {
            by_process: entries
                .iter()
                .map(|&(pid, cpu_ticks, written_bytes)| {
                    (pid, OneUsage { pss_kib: 512, cpu_ticks, written_bytes })
                })
                .collect(),
        };
        let before = usage(&[(1, 100, 10), (2, 50, 0)]);
        let after = usage(&[(1, 110, 30), (3, 10, 5)]);
        assert_eq!(after.since(&before, Duration::from_secs(2)), (100.0, 25.0));
        assert_eq!(after.pss_mib(), 1.0);
    }

    #[test]
    fn readings_without_a_cluster_know_this_program() {
        let before = Reading::take(None).expect("no processes are asked for");
        let after = Reading::take(None).expect("no processes are asked for");
        assert!(after.own.pss_mib() > 0.0);
        assert!(after.cluster_kib_since(&before).is_nan());
        let (cluster, own) = match after.cpu_since(&before, "x").as_slice() {
            [cluster, own] => (cluster.value, own.value),
            other => panic!("not two measures: {other:?}"),
        };
        assert!(cluster.is_nan() && own >= 0.0);
    }

    #[test]
    fn this_machine_has_processes() {
        assert!(all_processes().iter().any(|process| process.pid == 1));
    }
}
