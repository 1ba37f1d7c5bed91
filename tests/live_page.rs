// SPDX-License-Identifier: MPL-2.0
//! `examples/live_page`: what a viewer hears, over sockets, and what Chromium shows of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "it says where pictures are")]

#[path = "common/browser.rs"]
mod browser;
mod common;
#[path = "../examples/live_page/feed.rs"]
mod feed;
#[path = "live_page/pictures.rs"]
mod pictures;
#[path = "live_page/served.rs"]
mod served;
#[path = "../examples/live_page/server.rs"]
mod server;
#[path = "../examples/live_page/updates.rs"]
mod updates;

#[path = "live_page/events.rs"]
mod events;
#[path = "live_page/page.rs"]
mod page;
#[path = "live_page/program.rs"]
mod program;
#[path = "live_page/sockets.rs"]
mod sockets;
