//! The demo application: a web server that says who answered.
//!
//! Static and without files of its own, so that an image of it is this one program. It handles SIGTERM because the
//! first process of a container is not ended by signals it has no handler for, and every stop would take the whole
//! grace period.

#![forbid(unsafe_code)]

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

/// Where the server listens when `PORT` does not say otherwise.
const DEFAULT_PORT: u16 = 8080;
/// Requests in flight; more wait in the kernel's queue.
const MAX_REQUESTS: u32 = 256;
/// Longest request head; nothing here needs more.
const MAX_HEAD: usize = 8 * 1024;
/// How long a client may take for a request, and the program to end.
const PATIENCE: Duration = Duration::from_secs(5);

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(DEFAULT_PORT);
    let mut terminate = signal(SignalKind::terminate())?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    let page: Arc<str> = page().into();
    let slots = Arc::new(Semaphore::new(MAX_REQUESTS as usize));
    println!("listening on port {port}");
    tokio::select! {
        () = accept(&listener, &page, &slots) => {}
        _ = terminate.recv() => {}
    }
    drop(listener);
    println!("ending");
    // All slots free means that every request has been answered.
    let _ = tokio::time::timeout(PATIENCE, slots.acquire_many(MAX_REQUESTS)).await;
    Ok(())
}

async fn accept(listener: &TcpListener, page: &Arc<str>, slots: &Arc<Semaphore>) {
    // The semaphore is never closed, so this loop ends only with the program.
    while let Ok(slot) = Arc::clone(slots).acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let page = Arc::clone(page);
        tokio::spawn(async move {
            // A client that goes away is its own business.
            let _ = tokio::time::timeout(PATIENCE, answer(stream, &page)).await;
            drop(slot);
        });
    }
}

/// Reads one request, sends one answer, closes.
async fn answer(mut stream: TcpStream, page: &str) -> io::Result<()> {
    let head = read_head(&mut stream).await?;
    stream.write_all(response(&head, page).as_bytes()).await?;
    stream.shutdown().await
}

/// Everything up to the empty line, or as much as fits.
async fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while head.len() < MAX_HEAD && !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut part).await? {
            0 => break,
            count => head.extend_from_slice(&part[..count]),
        }
    }
    Ok(head)
}

fn response(head: &[u8], page: &str) -> String {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    let (status, body) = match (words.next(), words.next()) {
        (Some("GET" | "HEAD"), Some("/healthz")) => ("200 OK", "ok\n"),
        (Some("GET" | "HEAD"), Some("/")) => ("200 OK", page),
        (Some("GET" | "HEAD"), Some(_)) => ("404 Not Found", "not found\n"),
        _ => ("400 Bad Request", "bad request\n"),
    };
    let length = body.len();
    let body = if line.starts_with("HEAD ") { "" } else { body };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

/// What every visitor sees; nothing in it changes while the program runs.
fn page() -> String {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| "unknown".to_owned());
    let message = std::env::var("MESSAGE").unwrap_or_else(|_| "Hello.".to_owned());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    format!("{message}\nhost {host}\naddress {}\nnode {}\n", variable("POD_IP"), variable("NODE_NAME"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_get_their_answers() {
        for (request, start, body) in [
            ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 200", "page"),
            ("GET /healthz HTTP/1.1\r\n\r\n", "HTTP/1.1 200", "ok\n"),
            ("HEAD / HTTP/1.1\r\n\r\n", "HTTP/1.1 200", ""),
            ("GET /x HTTP/1.1\r\n\r\n", "HTTP/1.1 404", "not found\n"),
            ("\u{16}\u{3}", "HTTP/1.1 400", "bad request\n"),
        ] {
            let response = response(request.as_bytes(), "page");
            assert!(response.starts_with(start), "{request:?}: {response:?}");
            assert_eq!(response.split_once("\r\n\r\n").map(|(_, body)| body), Some(body), "{request:?}");
        }
    }
}
