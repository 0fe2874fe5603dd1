//! What stands before a service.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use tonic::{Code, Status, body::Body, server::NamedService, transport::server::TcpConnectInfo};
use tower::Service;

use super::{Claims, ForwardTrust, Verifier, forward};
use crate::{
    error::{RpcError, reason},
    server::PeerIdentity,
};

/// Lets a call in when its caller may make it, and hands on who that is: the [`Claims`] of a user in the request's
/// extensions.
#[derive(Debug, Clone)]
pub struct Guard {
    verifier: Option<Arc<Verifier>>,
    scope: &'static str,
    /// Set between services.
    inside: Option<ForwardTrust>,
}

impl Guard {
    /// For clients: a token with `scope`; without a verifier everybody passes. What a client says of forwarded claims is
    /// removed.
    pub fn new(verifier: Option<Arc<Verifier>>, scope: &'static str) -> Self {
        Self { verifier, scope, inside: None }
    }

    /// For services: a peer whose certificate proved who it is, or a token with `scope`; without a verifier everybody.
    /// Claims that a caller forwards are believed as `trust` says.
    pub fn inside(verifier: Option<Arc<Verifier>>, scope: &'static str, trust: ForwardTrust) -> Self {
        Self { verifier, scope, inside: Some(trust) }
    }

    /// Puts the guard before a service.
    pub fn protect<S>(self, service: S) -> Guarded<S> {
        Guarded { service, guard: Arc::new(self) }
    }

    async fn admit(&self, headers: &mut HeaderMap, peer: Peer) -> Result<Option<Claims>, RpcError> {
        let forwarded = forward::take(headers);
        let Some(trust) = self.inside else {
            if let Some(forwarded) = forwarded {
                forwarded.drop_from("edge");
            }
            return self.check_token(headers).await;
        };
        let own = if peer.is_proven { None } else { self.check_token(headers).await? };
        let Some(forwarded) = forwarded else { return Ok(own) };
        let believed = match trust {
            ForwardTrust::Mtls => peer.is_proven,
            ForwardTrust::Loopback => peer.is_proven || peer.is_local,
            ForwardTrust::Insecure => true,
        };
        if !believed {
            forwarded.drop_from("inside");
            return Ok(own);
        }
        let claims = forwarded.read()?;
        match own {
            // A service that acts for one tenant cannot speak for another.
            Some(own) if !own.tenant.is_empty() && own.tenant != claims.tenant => Err(RpcError::new(
                Code::PermissionDenied,
                reason::TOKEN_TENANT,
                "the forwarded claims name another tenant than the service's own token",
            )),
            _ => Ok(Some(claims)),
        }
    }

    async fn check_token(&self, headers: &HeaderMap) -> Result<Option<Claims>, RpcError> {
        let Some(verifier) = &self.verifier else { return Ok(None) };
        let missing = || {
            let message = "send the metadata `authorization: Bearer TOKEN`";
            RpcError::new(Code::Unauthenticated, reason::TOKEN_MISSING, message)
        };
        let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer);
        let claims = verifier.verify_fresh(token.ok_or_else(missing)?).await?;
        if !claims.has_scope(self.scope) {
            let message = format!("the token's `scope` lacks {:?}", self.scope);
            return Err(RpcError::new(Code::PermissionDenied, reason::TOKEN_SCOPE, message));
        }
        Ok(Some(claims))
    }
}

/// The token of `Bearer TOKEN` (RFC 6750 §2.1; schemes are compared without regard to case).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// What the connection says of its other end.
#[derive(Debug, Clone, Copy)]
struct Peer {
    is_proven: bool,
    is_local: bool,
}

impl Peer {
    fn of(extensions: &http::Extensions) -> Self {
        let address = extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
        Self {
            is_proven: extensions.get::<PeerIdentity>().is_some(),
            is_local: address.is_some_and(|address| address.ip().to_canonical().is_loopback()),
        }
    }
}

/// A service behind a [`Guard`].
#[derive(Debug, Clone)]
pub struct Guarded<S> {
    service: S,
    guard: Arc<Guard>,
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // The one that was polled ready takes the call; its clone stays.
        let clone = self.service.clone();
        let mut service = std::mem::replace(&mut self.service, clone);
        let guard = Arc::clone(&self.guard);
        Box::pin(async move {
            let peer = Peer::of(request.extensions());
            // Whatever was there before, only a guard may say who calls.
            request.extensions_mut().remove::<Claims>();
            match guard.admit(request.headers_mut(), peer).await {
                Ok(claims) => {
                    if let Some(claims) = claims {
                        request.extensions_mut().insert(claims);
                    }
                    service.call(request).await
                }
                Err(error) => Ok(Status::from(error).into_http()),
            }
        })
    }
}
