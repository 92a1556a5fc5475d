//! Large answers go out compressed to clients that say they read gzip.
//!
//! Threshold and level are upstream's: below 128 KiB the time is worth more than the bytes, and level 1 costs a third of
//! the usual one for nearly the same size. Streams are never compressed; their bytes have to arrive as they are written.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::HeaderMap;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, HeaderValue, VARY};
use http_body::Body as _;
use http_body_util::BodyExt as _;

use super::{ApiResponse, full};
use crate::error::ApiError;

/// Smaller answers go out as they are.
const MIN_SIZE: u64 = 128 * 1024;
/// From here on compressing takes milliseconds, which other requests of the same thread should not wait for.
const BLOCKING_SIZE: usize = 1024 * 1024;

/// Whether a client reads gzip.
pub(crate) fn reads_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let refused = |parameter: &str| {
            parameter.strip_prefix("q=").is_some_and(|q| q.parse::<f32>().is_ok_and(|q| q == 0.0))
        };
        parts.next().is_some_and(|coding| coding.eq_ignore_ascii_case("gzip")) && !parts.any(refused)
    })
}

/// Compresses a finished answer if it is large; others and streams stay as they are.
pub(crate) async fn compressed(response: ApiResponse) -> Result<ApiResponse, ApiError> {
    let size = response.body().size_hint().exact().unwrap_or(0);
    if size < MIN_SIZE || response.headers().contains_key(CONTENT_ENCODING) {
        return Ok(response);
    }
    let (mut parts, body) = response.into_parts();
    let bytes = body.collect().await.map_err(|e| ApiError::internal(e.to_string()))?.to_bytes();
    let gzipped = if bytes.len() < BLOCKING_SIZE {
        gzip(&bytes)
    } else {
        let task = tokio::task::spawn_blocking(move || gzip(&bytes));
        task.await.map_err(|e| ApiError::internal(format!("cannot compress: {e}")))?
    };
    let gzipped = gzipped.map_err(|e| ApiError::internal(format!("cannot compress: {e}")))?;
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    Ok(http::Response::from_parts(parts, full(gzipped)))
}

fn gzip(bytes: &Bytes) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codings() {
        let rows = [
            ("gzip", true),
            ("deflate, GZIP;q=0.5", true),
            ("gzip;q=0", false),
            ("gzip; q=0.0, br", false),
            ("identity", false),
            ("*", false),
        ];
        for (value, expected) in rows {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, value.parse().expect("a header"));
            assert_eq!(reads_gzip(&headers), expected, "{value}");
        }
        assert!(!reads_gzip(&HeaderMap::new()));
    }
}
