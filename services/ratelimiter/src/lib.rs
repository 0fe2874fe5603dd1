//! sightline-ratelimiter
