//! Clients with nothing of ours installed: they know the protos, or ask the server for them, and talk to the real binary.
//!
//! - `python`: grpcio, with stubs generated on the spot (tests/python/client.py)
//! - `web`: connect-web, a web page's grpc-web, on Node.js (tests/web/client.mjs)
//! - `grpcurl`: the command line, by server reflection alone

#![allow(clippy::unwrap_used)] // a panic here is a failed test

mod grpcurl;
mod python;
mod support;
mod web;
