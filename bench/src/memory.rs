//! Memory of the server side: what a stored object costs, what comes back when objects are deleted,
//! and what the OpenAPI documents leave behind when a client has read them.

use std::time::{Duration, Instant};

use kube::Client;
use kube::api::DeleteParams;
use serde::Deserialize;
use tokio::time::sleep;

use crate::error::{Context, Result};
use crate::load::{FILLERS, PAYLOAD, apis, config_map_of, fill, name, run};
use crate::processes::ProcessGroup;
use crate::report::Measure;
use crate::samples::milliseconds;
use crate::target::{Target, Workspace};
use crate::wire::Wire;

/// How long after reading the OpenAPI documents memory is read again.
const AFTER_DOCUMENTS: Duration = Duration::from_secs(10);
/// What payloads are made of: as many letters as fit into six bits.
const LETTERS: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";

/// How much to store, and how long memory may settle.
#[derive(Clone, Debug)]
pub(crate) struct MemoryLoad {
    pub(crate) objects: usize,
    /// Between the end of an activity and the reading that follows it.
    pub(crate) settle: Duration,
    /// Between the deletion and the last reading, for a server that forgets old versions from time to
    /// time.
    pub(crate) compaction: Duration,
}

/// Measures one target. The namespace made is deleted again, also after a failure.
pub(crate) async fn measure(
    target: &Target,
    load: &MemoryLoad,
    group: &ProcessGroup,
) -> Result<Vec<Measure>> {
    let clients = target.connect_many(FILLERS).await?;
    let mut measures = documents(target, group).await?;
    let Some(client) = clients.first() else {
        return Ok(measures);
    };
    let stored = async |namespace: &str| objects(&clients, load, group, namespace).await;
    measures.extend(Workspace::within(client, stored).await?);
    Ok(measures)
}

/// Reads all OpenAPI documents, as a client does that knows none of them.
async fn documents(target: &Target, group: &ProcessGroup) -> Result<Vec<Measure>> {
    let mut connection = Wire::new(&target.config().await?).await?.connect().await?;
    // The first answer sets up more than the documents need.
    connection.read("/version").await?;
    let before = group.usage()?.pss_mib();

    let begun = Instant::now();
    let mut bytes = connection.read("/openapi/v2").await?.len();
    let second = begun.elapsed();
    let index = connection.read("/openapi/v3").await?;
    let paths = paths(&index).context(|| "could not read the index of /openapi/v3".to_string())?;
    for path in &paths {
        bytes += connection.read(path).await?.len();
    }
    let elapsed = begun.elapsed();
    let after = group.usage()?.pss_mib();
    sleep(AFTER_DOCUMENTS).await;
    let later = group.usage()?.pss_mib();
    Ok(vec![
        Measure::lower("memory before OpenAPI (PSS)", "MiB", before),
        Measure::lower("read /openapi/v2", "ms", milliseconds(second)),
        Measure::lower(
            format!("read all {} OpenAPI documents", paths.len() + 1),
            "ms",
            milliseconds(elapsed),
        ),
        Measure::lower("OpenAPI documents", "MiB", bytes as f64 / f64::from(1 << 20)),
        Measure::lower("memory added by OpenAPI (PSS)", "MiB", after - before),
        Measure::lower("memory added by OpenAPI (PSS), 10 s later", "MiB", later - before),
    ])
}

/// The addresses of the documents of version 3.
fn paths(index: &[u8]) -> serde_json::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Index {
        paths: std::collections::BTreeMap<String, Document>,
    }
    #[derive(Deserialize)]
    struct Document {
        #[serde(rename = "serverRelativeURL")]
        address: String,
    }
    let index: Index = serde_json::from_slice(index)?;
    Ok(index.paths.into_values().map(|document| document.address).collect())
}

async fn objects(
    clients: &[Client],
    load: &MemoryLoad,
    group: &ProcessGroup,
    namespace: &str,
) -> Result<Vec<Measure>> {
    let apis = apis(clients, namespace);
    // Connections are opened before the first reading.
    run(&apis, apis.len(), |api, _| async move { api.get_opt("none").await.map(drop) }).await?;
    let reading = async |after: Duration| {
        sleep(after).await;
        group.usage().map(|usage| usage.pss_mib())
    };
    let before = reading(load.settle).await?;
    fill(&apis, load.objects, |index| config_map_of(&name(index), payload(index), index)).await?;
    let full = reading(load.settle).await?;
    let delete = run(&apis, load.objects, |api, index| async move {
        api.delete(&name(index), &DeleteParams::default()).await.map(drop)
    });
    delete.await?;
    let deleted = reading(load.settle).await?;
    let compacted = reading(load.compaction).await?;

    let count = load.objects;
    let each = |mib: f64| mib * 1024.0 / count as f64;
    let back = |mib: f64| (full - mib) / (full - before) * 100.0;
    Ok(vec![
        Measure::lower(format!("memory before {count} objects (PSS)"), "MiB", before),
        Measure::lower(format!("memory with {count} objects (PSS)"), "MiB", full),
        Measure::lower("memory per object of 1 KB (PSS)", "KiB", each(full - before)),
        Measure::lower("kept per object after deletion (PSS)", "KiB", each(deleted - before)),
        Measure::lower("kept per object after compaction (PSS)", "KiB", each(compacted - before)),
        Measure::higher("memory that came back after deletion", "%", back(deleted)),
        Measure::higher("memory that came back after compaction", "%", back(compacted)),
    ])
}

/// Text that differs from object to object and does not compress well: a server may store equal or
/// repeated bytes cheaper than the bytes users have. The same for every run.
fn payload(index: usize) -> String {
    let mut state = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut letter = || {
        // Marsaglia's xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(LETTERS[(state >> 58) as usize])
    };
    (0..PAYLOAD).map(|_| letter()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_differ_and_are_the_same_again() {
        assert_eq!(payload(3), payload(3));
        assert_ne!(payload(3), payload(4));
        assert_eq!(payload(0).len(), PAYLOAD);
        let letters: std::collections::BTreeSet<char> = payload(0).chars().collect();
        assert!(letters.len() > 50, "{letters:?}");
    }

    #[test]
    fn addresses_out_of_the_index() {
        let index = br#"{"paths": {
            "apis/apps/v1": {"serverRelativeURL": "/openapi/v3/apis/apps/v1?hash=1"},
            "api/v1": {"serverRelativeURL": "/openapi/v3/api/v1?hash=2"}
        }}"#;
        let expected = ["/openapi/v3/api/v1?hash=2", "/openapi/v3/apis/apps/v1?hash=1"];
        assert_eq!(paths(index).ok(), Some(expected.map(str::to_string).to_vec()));
        assert!(paths(b"[]").is_err());
    }
}
