//! sightline-classifier
