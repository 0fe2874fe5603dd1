//! `grpc.reflection`: what a port serves, and the messages it is described by.

use tonic::service::Routes;
use tonic_reflection::server::Builder;

use super::ServeError;

/// What every port serves besides its own services.
pub(super) const ON_EVERY_PORT: [&str; 3] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// What is known of the methods that every port serves.
const DESCRIPTORS: [&[u8]; 3] = [
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];

/// Those of every port and the server's own.
pub(super) fn all<'a>(own: &[&'a [u8]]) -> Vec<&'a [u8]> {
    own.iter().copied().chain(DESCRIPTORS).collect()
}

/// Lists `services`, and describes the messages of all descriptors, by both versions of the protocol.
pub(super) fn add(routes: Routes, services: &[&str], own: &[&[u8]]) -> Result<Routes, ServeError> {
    let builder = || {
        let builder =
            services.iter().fold(Builder::configure(), |builder, name| builder.with_service_name(*name));
        all(own).into_iter().fold(builder, Builder::register_encoded_file_descriptor_set)
    };
    let (v1, v1alpha) = (builder().build_v1()?, builder().build_v1alpha()?);
    Ok(routes.add_service(v1).add_service(v1alpha))
}
