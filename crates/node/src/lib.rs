//! sightline-node
