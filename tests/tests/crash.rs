//! The platform is killed at random moments under load, again and again, and may not lose or repeat anything.
//!
//! Writers create, change and delete ConfigMaps and keep a model of what was acknowledged. Pods run for the whole time,
//! or end with a known exit code after writing one line to the machine. After every restart
//!
//! - every acknowledged write is there, every acknowledged deletion holds, and what was not acknowledged happened wholly
//!   or not at all;
//! - long-running containers are the same processes;
//! - no container has run twice, and the exit codes of those that ended meanwhile are known.
//!
//! `SAMPAN_CRASH_KILLS` says how often (100), `SAMPAN_SEED` repeats the moments of a run.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sampan_tests::{Cluster, Namespace, Random, check, command, eventually, processes};
use serde_json::{Value, json};

/// How often the platform is killed when the environment does not say.
const CRASHES: u64 = 100;
/// Threads that write.
const WRITERS: usize = 3;
/// Objects each of them plays with.
const KEYS: usize = 40;
/// Requests of one connection.
const BATCH: u64 = 20;
/// The longest a platform lives before it is killed, in milliseconds.
const LIFE: u64 = 400;
/// Pods that run all the time.
const STEADY: u32 = 2;

#[test]
fn nothing_is_lost_or_repeated() {
    let crashes =
        std::env::var("SAMPAN_CRASH_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(CRASHES);
    let mut random = Random::from_environment();
    let space = Namespace::in_cluster(Arc::new(Cluster::start()), "crash");
    let mut writers: Vec<Writer> =
        (0..WRITERS).map(|number| Writer::new(&space, number, random.split())).collect();
    let mut pods = Pods::start(&space);
    let started = Instant::now();
    for round in 0..crashes {
        pods.start_one(&space, round);
        live_and_die(&space, &mut writers, random.below(LIFE));
        // Now and then it dies again while it finds its way.
        if random.below(8) == 0 {
            space.cluster().spawn();
            std::thread::sleep(Duration::from_millis(random.below(150)));
            space.cluster().kill();
        }
        space.cluster().up();
        let objects = objects(&space);
        writers.iter_mut().for_each(|writer| writer.compare(&objects, round));
        pods.compare(&space, round);
    }
    pods.settle(&space);
    let acknowledged: u64 = writers.iter().map(|writer| writer.acknowledged).sum();
    let unclear: u64 = writers.iter().map(|writer| writer.unclear).sum();
    println!(
        "{crashes} crashes in {:?}: {acknowledged} writes acknowledged, {unclear} cut off, {} pods ended",
        started.elapsed(),
        pods.ended
    );
    assert!(acknowledged > crashes * 10, "the load was too small to show anything: {acknowledged} writes");
}

/// Lets the writers write for a while, then kills the platform under them.
fn live_and_die(space: &Namespace, writers: &mut [Writer], milliseconds: u64) {
    let dead = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in writers {
            scope.spawn(move || {
                while !dead.load(Ordering::Relaxed) {
                    writer.write_batch()
                }
            });
        }
        // A moment of the platform's life, not a wait for anything.
        std::thread::sleep(Duration::from_millis(milliseconds));
        space.cluster().kill();
        dead.store(true, Ordering::Relaxed);
    });
}

/// The value of every ConfigMap of the writers, by name.
fn objects(space: &Namespace) -> BTreeMap<String, u64> {
    let list = space.kubectl(&["get", "--raw", "/api/v1/namespaces/crash/configmaps"]).json();
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let value = |item: &Value| {
        let name = item["metadata"]["name"].as_str()?.to_owned();
        Some((name, item["data"]["value"].as_str()?.parse().ok()?))
    };
    items.iter().filter_map(value).collect()
}

/// One client and what it knows.
struct Writer {
    random: Random,
    number: usize,
    url: String,
    identity: Vec<String>,
    script: PathBuf,
    /// What each object may be: absent (`None`) or a value. One possibility, or two when an answer is missing.
    model: Vec<Vec<Option<u64>>>,
    next_value: u64,
    acknowledged: u64,
    unclear: u64,
}

impl Writer {
    fn new(space: &Namespace, number: usize, random: Random) -> Self {
        Self {
            random,
            number,
            url: format!("{}/api/v1/namespaces/{}/configmaps", space.cluster().url(), space.name()),
            identity: space.cluster().curl_identity(),
            script: space.cluster().scratch().join(format!("writer-{number}")),
            model: vec![vec![None]; KEYS],
            next_value: 1,
            acknowledged: 0,
            unclear: 0,
        }
    }

    fn name(&self, key: usize) -> String {
        format!("w{}-{key}", self.number)
    }

    /// Writes to some objects, one after the other on one connection, and notes the answers.
    fn write_batch(&mut self) {
        let mut script = String::new();
        let mut writes: Vec<(usize, Option<u64>)> = Vec::new();
        for _ in 0..BATCH {
            let key = self.random.below(KEYS as u64) as usize;
            // An object whose state is not known, or that this batch writes already, has to wait.
            let &[before] = self.model[key].as_slice() else { continue };
            if writes.iter().any(|(written, _)| *written == key) {
                continue;
            }
            let after =
                if before.is_some() && self.random.below(4) == 0 { None } else { Some(self.next_value) };
            self.next_value += 1;
            if !writes.is_empty() {
                script.push_str("next\n");
            }
            self.request(&mut script, key, before, after);
            writes.push((key, after));
        }
        if writes.is_empty() {
            // Everything is unclear; the next restart clears it up.
            std::thread::yield_now();
            return;
        }
        std::fs::write(&self.script, script).expect("a file can be written");
        let output = command("curl", &["--config", &self.script.display().to_string()]).output();
        let output = output.expect("curl can be run");
        let codes = String::from_utf8_lossy(&output.stdout);
        let mut codes = codes.lines();
        for (key, after) in writes {
            match codes.next() {
                Some("200" | "201") => {
                    self.acknowledged += 1;
                    self.model[key] = vec![after];
                }
                // No answer: it may or may not have happened.
                None | Some("000") => {
                    self.unclear += 1;
                    self.model[key].push(after);
                }
                Some(code) => {
                    panic!("{}: answered {code}, but the model says {:?}", self.name(key), self.model[key])
                }
            }
        }
    }

    /// One request in the words of curl's configuration.
    fn request(&self, script: &mut String, key: usize, before: Option<u64>, after: Option<u64>) {
        let name = self.name(key);
        let (method, url) = match (before, after) {
            (None, _) => ("POST", self.url.clone()),
            (Some(_), Some(_)) => ("PUT", format!("{}/{name}", self.url)),
            (Some(_), None) => ("DELETE", format!("{}/{name}", self.url)),
        };
        let _ = writeln!(script, "silent\ninsecure\nmax-time = 20\nrequest = {method}\nurl = \"{url}\"");
        let _ = writeln!(script, "output = /dev/null\nwrite-out = \"%{{http_code}}\\n\"");
        for pair in self.identity.chunks(2) {
            let _ = writeln!(script, "{} = \"{}\"", pair[0].trim_start_matches('-'), pair[1]);
        }
        if let Some(value) = after {
            let metadata = json!({"name": name});
            let data = json!({"value": value.to_string()});
            let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data});
            let quoted = object.to_string().replace('"', "\\\"");
            let _ = writeln!(script, "header = \"Content-Type: application/json\"\ndata = \"{quoted}\"");
        }
    }

    /// Holds the model against what is there, and learns what became of the unclear writes.
    fn compare(&mut self, objects: &BTreeMap<String, u64>, round: u64) {
        for key in 0..KEYS {
            let name = self.name(key);
            let found = objects.get(&name).copied();
            let possible = &self.model[key];
            assert!(
                possible.contains(&found),
                "after crash {round}: {name} is {found:?}, but must be one of {possible:?}"
            );
            self.model[key] = vec![found];
        }
    }
}

/// The pods of the test.
struct Pods {
    /// Where every container writes one line per run.
    directory: PathBuf,
    sleep: String,
    steady: BTreeMap<u32, String>,
    /// Pods not yet seen to have ended, with their exit codes.
    open: BTreeMap<String, u64>,
    ended: u64,
}

impl Pods {
    fn start(space: &Namespace) -> Self {
        let directory = space.cluster().scratch().join("runs");
        std::fs::create_dir(&directory).expect("a directory can be made");
        let sleep = format!("sleep {}", 200_000_000 + u64::from(std::process::id()));
        let volume = volume(&directory);
        let script = format!("echo run >> /runs/$HOSTNAME; exec {sleep}");
        let mount = json!([{"name": "runs", "mountPath": "/runs"}]);
        let container = json!([{"name": "c", "image": sampan_tests::IMAGE, "args": ["-c", script], "volumeMounts": mount}]);
        let template = json!({"template": {"spec": {"containers": container, "volumes": volume}}});
        space.deployment("steady", STEADY, "", template);
        space.kubectl(&["rollout", "status", "deployment/steady", "--timeout=50s"]).ok();
        let steady = processes(&sleep);
        assert_eq!(steady.len(), STEADY as usize, "{steady:?}");
        Self { directory, sleep, steady, open: BTreeMap::new(), ended: 0 }
    }

    /// A pod that ends with a known code some time around the crash.
    fn start_one(&mut self, space: &Namespace, round: u64) {
        let (name, code) = (format!("short-{round}"), round % 100);
        let script = format!("echo run >> /runs/$HOSTNAME; sleep 0.{}; exit {code}", round % 10);
        let mount = json!({"volumeMounts": [{"name": "runs", "mountPath": "/runs"}]});
        let spec = json!({"restartPolicy": "Never", "volumes": volume(&self.directory)});
        space.pod_with(&name, &script, mount, spec);
        self.open.insert(name, code);
    }

    fn compare(&mut self, space: &Namespace, round: u64) {
        assert_eq!(processes(&self.sleep), self.steady, "after crash {round}: the same processes");
        for run in std::fs::read_dir(&self.directory).expect("the directory is there").flatten() {
            let lines = std::fs::read_to_string(run.path()).unwrap_or_default();
            assert_eq!(lines, "run\n", "after crash {round}: {} ran more than once", run.path().display());
        }
        self.take_ended(space, round);
    }

    /// Looks at the pods that have ended and deletes them.
    fn take_ended(&mut self, space: &Namespace, round: u64) {
        let pods = space.kubectl(&["get", "pods", "--output", "json"]).json();
        let mut gone = Vec::new();
        for pod in pods["items"].as_array().into_iter().flatten() {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let Some(code) = self.open.get(name) else { continue };
            if !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
                continue;
            }
            let found = &pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"];
            assert_eq!(
                found.as_u64(),
                Some(*code),
                "after crash {round}: {name} ended otherwise: {}",
                pod["status"]
            );
            assert!(
                self.directory.join(name).exists(),
                "after crash {round}: {name} ended without having run"
            );
            gone.push(name.to_owned());
        }
        if gone.is_empty() {
            return;
        }
        let mut delete = vec!["delete", "pods", "--wait=false"];
        delete.extend(gone.iter().map(String::as_str));
        space.kubectl(&delete).ok();
        for name in gone {
            self.open.remove(&name);
            self.ended += 1;
        }
    }

    /// Waits until the last short pod has ended.
    fn settle(&mut self, space: &Namespace) {
        eventually("every short pod ends", || {
            self.take_ended(space, u64::MAX);
            check(self.open.is_empty(), format!("{:?}", self.open))
        });
    }
}

fn volume(directory: &Path) -> Value {
    json!([{"name": "runs", "hostPath": {"path": directory}}])
}
