//! Lets the binary find libtorch when it is started outside cargo: first beside itself (`bin/` next to `lib/`,
//! the container image), then where it was built against.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=DEP_SIGHTLINE_TORCH_LIBTORCH_LIB");
    println!("cargo::rustc-link-arg-bins=-Wl,-rpath,$ORIGIN/../lib");
    if let Ok(lib) = std::env::var("DEP_SIGHTLINE_TORCH_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg-bins=-Wl,-rpath,{lib}");
    }
}
