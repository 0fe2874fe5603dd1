//! sightline-stats
