//! Browsers: which pages may call, and what they may see of an answer.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowOrigin, CorsLayer};

/// Web pages that may call by grpc-web.
#[derive(Debug, Clone, Default)]
pub struct WebOptions {
    /// Origins such as `https://app.example.com`; `*` for all. Empty: no web page may.
    pub allowed_origins: Vec<String>,
}

pub(super) fn cors(web: &WebOptions) -> CorsLayer {
    let origins: Vec<HeaderValue> =
        web.allowed_origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect();
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins)
    };
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::POST])
        .allow_headers(
            ["authorization", "content-type", "grpc-timeout", "traceparent", "x-grpc-web", "x-user-agent"]
                .map(HeaderName::from_static),
        )
        // Without these a browser hides from the page how a call ended.
        .expose_headers(
            ["grpc-message", "grpc-status", "grpc-status-details-bin"].map(HeaderName::from_static),
        )
        .max_age(Duration::from_secs(3600))
}
