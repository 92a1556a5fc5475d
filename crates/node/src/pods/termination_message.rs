//! The last words of a container: what it wrote to its termination log, or the end of its output.

use std::path::PathBuf;

use super::model::{Planned, PodModel};
use super::observed::Run;
use crate::config::NodeConfig;
use crate::error::NodeError;
use crate::server::logs::tail;

/// Upstream's limits: 4 KiB of the file, 2 KiB or 80 lines of the log.
const FILE_LIMIT: usize = 4096;
const LOG_LIMIT: usize = 2048;
const LOG_LINES: usize = 80;

/// Where the container sees the file.
pub(crate) fn container_path(planned: &Planned) -> &str {
    planned
        .spec
        .termination_message_path
        .as_deref()
        .filter(|path| !path.is_empty())
        .unwrap_or("/dev/termination-log")
}

fn file(config: &NodeConfig, uid: &str, container: &str, attempt: u32) -> PathBuf {
    config.pod_dir(uid).join("containers").join(container).join(attempt.to_string())
}

/// Makes the empty file of an attempt. Anybody in the container may write it.
pub(crate) async fn prepare(
    config: &NodeConfig,
    uid: &str,
    container: &str,
    attempt: u32,
) -> Result<PathBuf, NodeError> {
    let path = file(config, uid, container, attempt);
    let directory = path.parent().map(PathBuf::from).unwrap_or_default();
    tokio::fs::create_dir_all(&directory).await.map_err(NodeError::file("create", &directory))?;
    tokio::fs::write(&path, b"").await.map_err(NodeError::file("create", &path))?;
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::chmod(&path, mode).map_err(NodeError::errno("set the mode of", &path))?;
    Ok(path)
}

/// What an ended attempt left to say; empty when nothing.
pub(crate) async fn read(config: &NodeConfig, model: &PodModel, planned: &Planned, run: &Run) -> String {
    let path = file(config, model.uid(), planned.name(), run.attempt);
    let written = read_limited(path).await;
    if !written.is_empty() {
        return written;
    }
    let falls_back = planned.spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    if !falls_back || run.exit_code == 0 {
        return String::new();
    }
    let log = config
        .log_dir(model.namespace(), model.name(), model.uid())
        .join(planned.name())
        .join(format!("{}.log", run.attempt));
    let bytes =
        tokio::task::spawn_blocking(move || tail(&log, LOG_LINES, LOG_LIMIT)).await.unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The container owns the content: a link it put there is not followed, and no more than the limit is read.
async fn read_limited(path: PathBuf) -> String {
    let read = move || -> std::io::Result<Vec<u8>> {
        use std::io::Read;
        let flags = rustix::fs::OFlags::RDONLY
            | rustix::fs::OFlags::CLOEXEC
            | rustix::fs::OFlags::NOFOLLOW
            | rustix::fs::OFlags::NONBLOCK;
        let file = std::fs::File::from(rustix::fs::open(&path, flags, rustix::fs::Mode::empty())?);
        let mut bytes = Vec::new();
        file.take(FILE_LIMIT as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = tokio::task::spawn_blocking(read).await.ok().and_then(Result::ok).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
