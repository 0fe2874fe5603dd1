//! Lets the benchmark find libtorch when it is started outside cargo.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=DEP_SIGHTLINE_TORCH_LIBTORCH_LIB");
    if let Ok(lib) = std::env::var("DEP_SIGHTLINE_TORCH_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg-bins=-Wl,-rpath,{lib}");
    }
}
