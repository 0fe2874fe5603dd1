//! sightline-telemetry
