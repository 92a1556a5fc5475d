//! Container logs: from files in CRI format to what the container wrote.
//!
//! A log is the live file and the files rotated away from it (`0.log`, `0.log.20261123-210000`…). Following waits for
//! inotify on the directory, never for a clock, and ends when the container has ended and everything was sent.

mod follow;
mod line;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use jiff::Timestamp;
use sampan_runtime::{ContainerId, ContainerState, ContainerStatus};
use tokio::sync::mpsc;

use self::follow::Watch;
use self::line::{Line, Renderer};
use super::body::NodeBody;
use super::query::Query;
use super::target::{self, Address};
use super::{HttpError, respond};
use crate::context::Context;
use crate::time;

/// Pieces of output on their way to a slow client.
const PIECES: usize = 16;
/// Bytes gathered before a piece is sent.
const PIECE: usize = 32 * 1024;
/// How far from the end of a file the end of a log is looked for.
const TAIL_WINDOW: u64 = 256 * 1024;

/// What a client wants of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogOptions {
    follow: bool,
    previous: bool,
    timestamps: bool,
    /// Only the last so many lines.
    tail_lines: Option<u64>,
    /// Only lines from this moment on.
    since: Option<Timestamp>,
    /// At most so many bytes.
    limit_bytes: Option<u64>,
    /// `Stdout` or `Stderr` alone.
    stream: Option<line::Stream>,
}

impl LogOptions {
    /// Reads `PodLogOptions` as query parameters.
    ///
    /// # Errors
    /// 400 with a sentence when a number or time is none.
    fn parse(query: &Query, now: i64) -> Result<Self, HttpError> {
        let number = |name: &str| match query.get(name) {
            None | Some("") => Ok(None),
            Some(text) => text
                .parse::<u64>()
                .map(Some)
                .map_err(|_| HttpError::bad_request(format!("invalid value for {name}: {text:?}"))),
        };
        let since =
            match (number("sinceSeconds")?, query.get("sinceTime")) {
                (Some(seconds), _) => {
                    let seconds = time::seconds(i64::try_from(seconds).unwrap_or(i64::MAX));
                    Timestamp::from_nanosecond(i128::from(now.saturating_sub(seconds))).ok()
                }
                (None, Some(text)) if !text.is_empty() => {
                    let parsed: Result<Timestamp, _> = text.parse();
                    Some(parsed.map_err(|_| {
                        HttpError::bad_request(format!("invalid value for sinceTime: {text:?}"))
                    })?)
                }
                _ => None,
            };
        Ok(Self {
            follow: query.is_set(&["follow"]),
            previous: query.is_set(&["previous"]),
            timestamps: query.is_set(&["timestamps"]),
            tail_lines: number("tailLines")?,
            since,
            limit_bytes: number("limitBytes")?,
            stream: match query.get("stream") {
                Some("Stdout") => Some(line::Stream::Stdout),
                Some("Stderr") => Some(line::Stream::Stderr),
                _ => None,
            },
        })
    }
}

/// `/containerLogs/{namespace}/{pod}/{container}`.
pub(crate) async fn serve(
    context: Arc<Context>,
    address: Address,
    query: Option<&str>,
) -> Result<Response<NodeBody>, HttpError> {
    let options = LogOptions::parse(&Query::parse(query), time::now())?;
    // Before looking at the state: an end in between is not missed.
    let events = context.runtime.events();
    let run = choose(&context, &address, options.previous).await?;
    let is_running = run.state == ContainerState::Running;
    let watch = match options.follow && is_running {
        true => Some(
            Watch::new(&run.log_path, run.id.clone(), events).map_err(|error| HttpError::internal(&error))?,
        ),
        false => None,
    };
    let (sender, receiver) = mpsc::channel(PIECES);
    tokio::spawn(async move {
        // Ended by the client, or by an error of the disk: either way nothing more can be sent.
        let _ = send(&context, &run, options, watch, sender).await;
    });
    let mut response = respond(StatusCode::OK, "text/plain; charset=utf-8", Bytes::new());
    *response.body_mut() = NodeBody::Stream(receiver);
    Ok(response)
}

/// The attempt whose log is meant.
async fn choose(context: &Context, address: &Address, previous: bool) -> Result<ContainerStatus, HttpError> {
    let Address { namespace, pod: pod_name, container } = address;
    let Some(pod) = context.pods.get(namespace, pod_name) else {
        return Err(HttpError::not_found(format!("pod \"{pod_name}\" not found")));
    };
    let spec = pod.spec.as_ref();
    let names = spec.into_iter().flat_map(|spec| {
        let inits = spec.init_containers.iter().flatten().map(|container| &container.name);
        let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| &container.name);
        inits.chain(spec.containers.iter().map(|container| &container.name)).chain(ephemeral)
    });
    if !names.into_iter().any(|name| name == container) {
        return Err(HttpError::bad_request(format!("container {container} is not valid for pod {pod_name}")));
    }
    let mut runs = target::runs(context, address).await?;
    runs.retain(|run| run.state != ContainerState::Created || run.started_at != 0);
    let status = pod.status.as_ref().and_then(|status| {
        let all = status.container_statuses.iter().chain(&status.init_container_statuses);
        all.chain(&status.ephemeral_container_statuses).flatten().find(|status| status.name == *container)
    });
    if previous {
        let last_state = status.and_then(|status| status.last_state.as_ref()?.terminated.as_ref());
        let id = last_state
            .and_then(|state| state.container_id.as_deref()?.rsplit("//").next().map(str::to_string));
        let before = runs.len().checked_sub(2).and_then(|index| runs.get(index).cloned());
        let by_id = id.map(ContainerId).and_then(|id| runs.iter().find(|run| run.id == id).cloned());
        return by_id.or(before).ok_or_else(|| {
            HttpError::bad_request(format!(
                "previous terminated container \"{container}\" in pod \"{pod_name}\" not found"
            ))
        });
    }
    runs.pop().ok_or_else(|| {
        let waiting = status.and_then(|status| status.state.as_ref()?.waiting.as_ref());
        let reason = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or("ContainerCreating");
        let why = match reason {
            "ErrImagePull" | "ErrImageNeverPull" | "InvalidImageName" => "image can't be pulled",
            "ImagePullBackOff" => "trying and failing to pull image",
            other => other,
        };
        HttpError::bad_request(format!(
            "container \"{container}\" in pod \"{pod_name}\" is waiting to start: {why}"
        ))
    })
}

/// Sends a log until its end.
async fn send(
    context: &Context,
    run: &ContainerStatus,
    options: LogOptions,
    mut watch: Option<Watch>,
    sender: mpsc::Sender<Bytes>,
) -> std::io::Result<()> {
    let mut reader = LogReader::open(&run.log_path, options.tail_lines)?;
    let mut renderer = Renderer::new(options.timestamps, options.since, options.stream, options.limit_bytes);
    let mut ended = watch.is_none();
    loop {
        let mut piece = Vec::new();
        while let Some(line) = reader.next_line()? {
            renderer.render(&Line::parse(&line), &mut piece);
            if renderer.is_full() {
                let _ = sender.send(piece.into()).await;
                return Ok(());
            }
            if piece.len() >= PIECE && sender.send(std::mem::take(&mut piece).into()).await.is_err() {
                return Ok(());
            }
        }
        if !piece.is_empty() && sender.send(piece.into()).await.is_err() {
            return Ok(());
        }
        match &mut watch {
            Some(watch) if !ended => {
                tokio::select! {
                    exited = watch.wait(context) => ended = exited,
                    () = sender.closed() => return Ok(()),
                }
            }
            _ => return Ok(()),
        }
    }
}

/// Reads the lines of a log across its files, in order, and goes on where it stopped.
struct LogReader {
    live: PathBuf,
    /// Files still to be read after the one that is open, oldest first.
    waiting: Vec<PathBuf>,
    file: Option<BufReader<File>>,
    /// A line whose end has not been written yet.
    partial: Vec<u8>,
}

impl LogReader {
    /// Opens the log at its beginning, or where its last lines begin.
    fn open(live: &Path, tail_lines: Option<u64>) -> std::io::Result<Self> {
        let files = files(live);
        let (index, offset) = match tail_lines {
            Some(lines) => start_of_tail(&files, lines)?,
            None => (0, 0),
        };
        let mut waiting: Vec<PathBuf> = files.into_iter().skip(index).collect();
        let mut reader =
            Self { live: live.to_path_buf(), file: None, partial: Vec::new(), waiting: Vec::new() };
        if !waiting.is_empty() {
            let mut file = File::open(waiting.remove(0))?;
            file.seek(SeekFrom::Start(offset))?;
            reader.file = Some(BufReader::new(file));
        }
        reader.waiting = waiting;
        Ok(reader)
    }

    /// The next whole line; `None` when there is none now.
    fn next_line(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        loop {
            let Some(file) = &mut self.file else {
                if !self.open_next()? {
                    return Ok(None);
                }
                continue;
            };
            let read = file.read_until(b'\n', &mut self.partial)?;
            if self.partial.last() == Some(&b'\n') {
                return Ok(Some(std::mem::take(&mut self.partial)));
            }
            if read > 0 {
                continue;
            }
            if self.waiting.is_empty() && !self.was_rotated()? {
                return Ok(None);
            }
            // What was written between the last read and the rotation.
            if let Some(file) = &mut self.file
                && file.read_until(b'\n', &mut self.partial)? > 0
            {
                if self.partial.last() == Some(&b'\n') {
                    return Ok(Some(std::mem::take(&mut self.partial)));
                }
                continue;
            }
            if !self.open_next()? {
                return Ok(None);
            }
        }
    }

    /// Goes on to the next file, if there is one.
    fn open_next(&mut self) -> std::io::Result<bool> {
        if self.waiting.is_empty() && !self.was_rotated()? {
            return Ok(false);
        }
        let next = match self.waiting.is_empty() {
            true => self.live.clone(),
            false => self.waiting.remove(0),
        };
        self.partial.clear();
        match File::open(&next) {
            Ok(file) => self.file = Some(BufReader::new(file)),
            // Rotated away between listing and opening.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// Whether the live file is another one than the open one.
    fn was_rotated(&self) -> std::io::Result<bool> {
        use std::os::unix::fs::MetadataExt;
        let live = match std::fs::metadata(&self.live) {
            Ok(live) => live,
            Err(_) => return Ok(false),
        };
        match &self.file {
            None => Ok(true),
            Some(open) => {
                let open = open.get_ref().metadata()?;
                Ok((open.dev(), open.ino()) != (live.dev(), live.ino()))
            }
        }
    }
}

/// The files of a log, oldest first.
fn files(live: &Path) -> Vec<PathBuf> {
    let name = live.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let prefix = format!("{name}.");
    let entries = live.parent().and_then(|directory| std::fs::read_dir(directory).ok());
    let mut files: Vec<PathBuf> = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
        .collect();
    // The time of rotation is in the name.
    files.sort();
    if live.exists() {
        files.push(live.to_path_buf());
    }
    files
}

/// File and offset where the last `lines` lines begin.
fn start_of_tail(files: &[PathBuf], lines: u64) -> std::io::Result<(usize, u64)> {
    let mut missing = lines;
    for (index, path) in files.iter().enumerate().rev() {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        if missing == 0 {
            return Ok((index, length));
        }
        let mut end = length;
        // The newline that ends the last line begins none.
        let mut newlines_wanted = missing + 1;
        while end > 0 {
            let begin = end.saturating_sub(TAIL_WINDOW);
            let mut window = vec![0; usize::try_from(end - begin).unwrap_or(0)];
            file.seek(SeekFrom::Start(begin))?;
            file.read_exact(&mut window)?;
            if end == length && window.last() != Some(&b'\n') {
                newlines_wanted -= 1;
            }
            for (position, _) in window.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
                newlines_wanted -= 1;
                if newlines_wanted == 0 {
                    return Ok((index, begin + position as u64 + 1));
                }
            }
            end = begin;
        }
        if length > 0 {
            // All lines of this file are wanted.
            missing = newlines_wanted.saturating_sub(1);
            if missing == 0 {
                return Ok((index, 0));
            }
        }
    }
    Ok((0, 0))
}

/// What the end of a log says, without timestamps: at most so many lines and bytes. Empty when it cannot be read.
pub(crate) fn tail(live: &Path, lines: usize, bytes: usize) -> Vec<u8> {
    let Ok(mut reader) = LogReader::open(live, Some(lines as u64)) else { return Vec::new() };
    let mut renderer = Renderer::new(false, None, None, None);
    let mut text = Vec::new();
    while let Ok(Some(line)) = reader.next_line() {
        renderer.render(&Line::parse(&line), &mut text);
    }
    let surplus = text.len().saturating_sub(bytes);
    text.split_off(surplus)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(directory: &Path, name: &str, lines: std::ops::Range<u32>) {
        let text: String =
            lines.map(|n| format!("2026-11-23T21:00:00.{n:09}Z stdout F line {n}\n")).collect();
        std::fs::write(directory.join(name), text).expect("write");
    }

    fn read(live: &Path, tail: Option<u64>) -> Vec<String> {
        let mut reader = LogReader::open(live, tail).expect("open");
        let mut lines = Vec::new();
        while let Some(line) = reader.next_line().expect("read") {
            lines.push(
                String::from_utf8_lossy(&line).trim_end().rsplit(' ').next().unwrap_or_default().to_string(),
            );
        }
        lines
    }

    #[test]
    fn rotated_files_are_one_log() {
        let directory = tempfile::tempdir().expect("tempdir");
        log(directory.path(), "0.log.20261123-200000", 0..3);
        log(directory.path(), "0.log.20261123-210000", 3..5);
        log(directory.path(), "0.log", 5..7);
        log(directory.path(), "00.log", 90..99);
        let live = directory.path().join("0.log");
        assert_eq!(read(&live, None), ["0", "1", "2", "3", "4", "5", "6"]);
        for (tail, expected) in [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (100, 7)] {
            let lines = read(&live, Some(tail));
            assert_eq!(lines.len(), expected, "tail {tail}");
            assert!(expected == 0 || lines.last().is_some_and(|last| last == "6"));
        }
    }

    #[test]
    fn reading_goes_on_after_rotation() {
        let directory = tempfile::tempdir().expect("tempdir");
        let live = directory.path().join("0.log");
        log(directory.path(), "0.log", 0..2);
        let mut reader = LogReader::open(&live, None).expect("open");
        while reader.next_line().expect("read").is_some() {}
        std::fs::rename(&live, directory.path().join("0.log.20261123-210000")).expect("rename");
        log(directory.path(), "0.log", 2..3);
        assert!(reader.next_line().expect("read").is_some_and(|line| line.ends_with(b"line 2\n")));
        assert!(reader.next_line().expect("read").is_none());
    }

    #[test]
    fn the_end_of_a_log() {
        let directory = tempfile::tempdir().expect("tempdir");
        log(directory.path(), "0.log", 0..100);
        let live = directory.path().join("0.log");
        assert_eq!(tail(&live, 2, 2048), b"line 98\nline 99\n");
        assert_eq!(tail(&live, 2, 4), b" 99\n");
        assert_eq!(tail(&directory.path().join("none"), 2, 4), b"");
    }

    #[test]
    fn options() {
        let parse = |text: &str| LogOptions::parse(&Query::parse(Some(text)), 100 * time::SECOND);
        let options =
            parse("follow=true&tailLines=5&sinceSeconds=10&limitBytes=9&timestamps=true").unwrap_or_default();
        assert!(options.follow && options.timestamps && !options.previous);
        assert_eq!((options.tail_lines, options.limit_bytes), (Some(5), Some(9)));
        assert_eq!(options.since.map(Timestamp::as_second), Some(90));
        assert!(parse("tailLines=-1").is_err() && parse("sinceTime=yesterday").is_err());
    }
}
