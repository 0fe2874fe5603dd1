//! The server seen by real clients: tonic's, one that speaks HTTP/2 by the frame, and one that speaks HTTP/1.1.

#![allow(clippy::unwrap_used)] // a panic here is a failed test

mod age;
mod bytes;
mod drain;
mod limits;
mod metrics;
mod peers;
mod raw;
mod support;
mod web;
