use super::*;

#[test]
fn a_header_states_the_version() {
    let text =
        "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 11\n\n#define TORCH_VERSION_PATCH 0\n";
    assert_eq!(header_version(text).as_deref(), Some("2.11.0"));
    assert_eq!(header_version("#define TORCH_VERSION_MAJOR 2\n"), None);
}

#[test]
fn cpu_and_cuda_builds_of_python_are_taken_and_others_are_not() {
    for (line, usable) in [
        ("__version__ = '2.11.0'", true),
        ("__version__ = '2.11.0+cpu'", true),
        ("__version__ = '2.11.0+cu130'", true),
        ("__version__ = '2.11.0+rocm7.0'", false),
        ("git_version = '70d99e99'", false),
    ] {
        assert_eq!(is_usual_build(&format!("from typing import Optional\n{line}\n")), usable, "{line}");
    }
}

/// A folder that looks like a libtorch of this version, removed at the end.
struct FakeRoot(PathBuf);

impl FakeRoot {
    fn new(name: &str, version: &str) -> Self {
        let root = env::temp_dir().join(format!("sightline-xtask-{}-{name}", std::process::id()));
        fs::create_dir_all(root.join("lib")).unwrap();
        fs::write(root.join("build-version"), format!("{version}\n")).unwrap();
        fs::write(root.join("lib/libtorch_cpu.so"), "").unwrap();
        fs::write(root.join("lib/libtorch.so"), "").unwrap();
        Self(root)
    }
}

impl Drop for FakeRoot {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_matching_folder_is_used_as_it_is() {
    let fake = FakeRoot::new("matching", "2.11.0+cu130");
    let found = LibTorch::inspect(&fake.0, Origin::LibtorchEnv).unwrap();
    assert_eq!(found.lib, fake.0.join("lib"));
    assert_eq!(found.env, [("LIBTORCH".to_owned(), fake.0.display().to_string())]);
}

#[test]
fn a_patch_release_turns_off_the_exact_check_of_torch_sys() {
    let fake = FakeRoot::new("patch", "2.11.3");
    let found = LibTorch::inspect(&fake.0, Origin::LibtorchEnv).unwrap();
    assert!(found.env.iter().any(|(name, _)| name == "LIBTORCH_BYPASS_VERSION_CHECK"));
}

#[test]
fn another_version_is_refused_with_both_versions_named() {
    for other in ["2.10.0", "2.1.1", "2.110.0", "3.2.11"] {
        let fake = FakeRoot::new(other, other);
        let error = LibTorch::inspect(&fake.0, Origin::LibtorchEnv).unwrap_err().to_string();
        assert!(error.contains(other) && error.contains(VERSION), "{error}");
    }
}

#[test]
fn a_folder_without_libraries_is_refused() {
    let fake = FakeRoot::new("bare", "2.11.0");
    fs::remove_file(fake.0.join("lib/libtorch.so")).unwrap();
    let error = LibTorch::inspect(&fake.0, Origin::LibtorchEnv).unwrap_err().to_string();
    assert!(error.contains("libtorch.so"), "{error}");
}

#[test]
fn each_way_pip_fails_has_its_own_advice() {
    for (log, advice) in [
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "hash differs"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "disk is full"),
        (
            "WARNING: Retrying after NewConnectionError\nERROR: No matching distribution found",
            "check the network",
        ),
        ("ERROR: No matching distribution found for torch==2.11.0", "PIP_INDEX_URL"),
        ("Traceback: something new", "LIBTORCH"),
    ] {
        let error = format!("{:#}", wheels::explain(log));
        assert!(error.contains(advice), "{error}");
        assert!(error.contains(log.lines().last().unwrap()), "{error}");
    }
}

#[test]
fn only_headers_libraries_and_licences_are_kept() {
    let torch = &wheels::WHEELS[0];
    let kept = |member| unpack::destination(torch, member);
    assert_eq!(kept("torch/lib/libtorch_cpu.so"), Some("lib/libtorch_cpu.so".into()));
    assert_eq!(kept("torch/include/ATen/Tensor.h"), Some("include/ATen/Tensor.h".into()));
    assert_eq!(kept("torch-2.11.0.dist-info/licenses/LICENSE"), Some("licenses/torch-2.11.0/LICENSE".into()));
    for unwanted in [
        "torch/lib/libtorch_cuda.so",
        "torch/lib/libtorch.so",
        "torch/include/",
        "torch/include/../../escape.h",
        "/torch/include/absolute.h",
        "torch-2.11.0.dist-info/METADATA",
    ] {
        assert_eq!(kept(unwanted), None, "{unwanted}");
    }
}
