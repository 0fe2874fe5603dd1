//! `sightline token mint`.

use std::{fs, process::ExitCode};

use anyhow::{Context, Result, anyhow};
use sightline_mesh::auth::{Claims, SigningKey, mint};

use crate::{
    args::{Settings, Token},
    output, settings,
};

pub(crate) fn run(layers: &Settings, command: Token) -> Result<ExitCode> {
    let Token::Mint { key_file, secret_file, user, tenant, scope, lifetime } = command;
    let auth = settings::read(layers)?.auth;
    let path = key_file.as_ref().or(secret_file.as_ref()).context("--key-file or --secret-file is needed")?;
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let key = if key_file.is_some() { SigningKey::Pem(&bytes) } else { SigningKey::Secret(&bytes) };
    let claims = Claims { sub: user, tenant, scope };
    let token = mint(&key, &claims, &auth.audience, auth.issuer.as_deref(), lifetime.into())
        .map_err(|problem| anyhow!("{}: {problem}", path.display()))?;
    output::line(&token)?;
    Ok(ExitCode::SUCCESS)
}
