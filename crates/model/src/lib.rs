//! Models as files: what they are, where they come from and the form libtorch loads, all without libtorch.
//!
//! | module | does |
//! |---|---|
//! | [`manifest`] | `model.toml`: input, classes and digests of a model; read, checked, written |
//! | [`graph`] | layers of image classifiers, rewrites that make them cheaper, small made-up ones for tests |
//! | [`nsfwjs`] | reads the npm package nsfwjs and imports its models into a folder |
//! | [`torchscript`] | writes a graph as a TorchScript archive, portable or for a CPU library |
//!
//! Nothing here runs a model or opens a socket; whoever loads an archive checks it with
//! [`manifest::Manifest::verify`] first.

pub mod graph;
pub mod manifest;
pub mod nsfwjs;
pub mod torchscript;
