//! sightline-ingest
