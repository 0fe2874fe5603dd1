//! sightline-cli
