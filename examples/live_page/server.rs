// SPDX-License-Identifier: MPL-2.0
//! The page and its events over HTTP. Everything it serves is in the program.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::sse::{Event as Sent, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::feed::{Event, Feed, Viewer};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Those who may look on at once: each is a connection, and a process has only so many.
const VIEWERS_MAX: usize = 256;
/// How soon a browser asks again when its connection is gone.
const RETRY: Duration = Duration::from_secs(1);
/// Nothing but what comes from here. Words and names are anybody's text: should one of them ever become a script, it
/// would not run.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[derive(Clone)]
struct Shared {
    feed: Arc<Feed>,
    viewers: Arc<AtomicUsize>,
}

/// Serves `feed` until it is closed and all viewers have heard the rest. `hosts`: names under which browsers may know this
/// machine, beside its addresses and `localhost`.
pub async fn serve(
    listener: tokio::net::TcpListener,
    feed: Arc<Feed>,
    hosts: Vec<String>,
) -> std::io::Result<()> {
    let shared = Shared {
        feed: Arc::clone(&feed),
        viewers: Arc::default(),
    };
    let router = Router::new()
        .route("/", get(|| asset("text/html; charset=utf-8", PAGE)))
        .route("/page.css", get(|| asset("text/css; charset=utf-8", STYLE)))
        .route(
            "/page.js",
            get(|| asset("text/javascript; charset=utf-8", SCRIPT)),
        )
        .route("/events", get(events))
        .with_state(shared)
        .layer(from_fn(guarded))
        .layer(from_fn_with_state(Arc::new(hosts), known_host));
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { feed.closed().await })
        .await
}

async fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// One viewer's events: from the start of the history, or behind what it has already. A browser that comes back says so in a
/// header; a page that opens a connection anew can only say it in the address.
async fn events(
    State(shared): State<Shared>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let Some(seat) = Seat::take(&shared.viewers) else {
        let text = "Too many are looking on already.";
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    let in_header = headers.get("last-event-id").and_then(|v| v.to_str().ok());
    let in_query = query.as_deref().and_then(|q| q.strip_prefix("after="));
    let viewer = shared.feed.viewer(in_header.or(in_query));
    // The next event is asked for when the connection has taken the one before.
    let stream =
        futures_util::stream::unfold((viewer, seat), |(mut viewer, seat): (Viewer, Seat)| async {
            let event = viewer.next().await?;
            Some((Ok::<_, Infallible>(sent(event)), (viewer, seat)))
        });
    Sse::new(stream).into_response()
}

fn sent(event: Event) -> Sent {
    let mut out = Sent::default().event(event.name).data(event.data);
    if event.name == "hello" {
        out = out.retry(RETRY);
    }
    match event.id {
        Some(id) => out.id(id),
        None => out,
    }
}

/// A viewer's right to look on, given back when its connection ends.
struct Seat(Arc<AtomicUsize>);

impl Seat {
    fn take(viewers: &Arc<AtomicUsize>) -> Option<Self> {
        let seat = Self(Arc::clone(viewers));
        (viewers.fetch_add(1, Ordering::SeqCst) < VIEWERS_MAX).then_some(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A foreign page may give its own name this machine's address, and would then be of one origin with us and could read
/// along. So the name must be one that we know.
async fn known_host(
    State(hosts): State<Arc<Vec<String>>>,
    request: Request,
    next: Next,
) -> Response {
    let host = request.headers().get(header::HOST);
    let name = host.and_then(|h| h.to_str().ok()).map(without_port);
    let is_known = name.is_some_and(|name| {
        name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || hosts.iter().any(|known| name.eq_ignore_ascii_case(known))
    });
    if !is_known {
        let text = "This name is not known here: --host NAME lets browsers use it.";
        return (StatusCode::MISDIRECTED_REQUEST, text).into_response();
    }
    next.run(request).await
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

async fn guarded(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // Captions are of the moment, and a new program has a new page.
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
