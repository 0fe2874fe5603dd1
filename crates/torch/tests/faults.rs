//! Every way a file, a module or a call can be wrong ends in an error that says so.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::fs;
use std::ops::Range;
use std::path::Path;

use sightline_torch::{Device, Layout, Model, TorchError};
use support::{Modules, counting, shape};

fn load_error(path: &Path) -> TorchError {
    Model::load(path, Device::Cpu).unwrap_err()
}

/// Runs a module made of this TorchScript on one 2×2 image.
fn forward_error(name: &str, signature_and_body: &str) -> TorchError {
    let modules = Modules::new();
    let mut model = Model::load(&modules.scripted(name, signature_and_body), Device::Cpu).unwrap();
    let shape = shape(1, 2, 2, 3);
    model.forward(&counting(shape), shape, Layout::Nchw, &mut Vec::new()).unwrap_err()
}

fn assert_one_clean_line(error: &TorchError) {
    let text = error.to_string();
    assert!(text.len() < 500, "{} bytes: {text}", text.len());
    for noise in ["\n", "Exception raised from", "frame #", "Traceback"] {
        assert!(!text.contains(noise), "{noise:?} in {text}");
    }
}

#[test]
fn a_file_that_is_not_there_is_missing() {
    let error = load_error(Path::new("/nonexistent/model.pt"));
    assert!(matches!(error, TorchError::MissingFile { .. }), "{error}");
    assert_one_clean_line(&error);
}

#[test]
fn a_folder_is_not_a_model_file() {
    let error = load_error(Path::new("/tmp"));
    assert!(matches!(error, TorchError::MissingFile { .. }), "{error}");
}

#[test]
fn files_of_other_kinds_are_corrupt_modules() {
    let modules = Modules::new();
    for (name, content) in [
        ("empty", Vec::new()),
        ("text", b"this is not a model".to_vec()),
        ("zeros", vec![0; 100_000]),
        ("zip_start", b"PK\x03\x04".to_vec()),
        ("empty_zip", [b"PK\x05\x06".as_slice(), &[0; 18]].concat()),
    ] {
        let path = modules.path(name);
        fs::write(&path, content).unwrap();
        let error = load_error(&path);
        assert!(matches!(error, TorchError::CorruptModule { .. }), "{name}: {error}");
        assert!(error.to_string().contains(name), "{error}");
        assert_one_clean_line(&error);
    }
}

#[test]
fn a_module_cut_short_anywhere_is_corrupt() {
    let modules = Modules::new();
    let whole = fs::read(modules.channel_means()).unwrap();
    let path = modules.path("cut.pt");
    for part in 0..64 {
        fs::write(&path, &whole[..whole.len() * part / 64]).unwrap();
        let error = load_error(&path);
        assert!(matches!(error, TorchError::CorruptModule { .. }), "{part}/64: {error}");
        assert_one_clean_line(&error);
    }
}

#[test]
fn a_damaged_byte_in_the_data_of_any_member_is_found() {
    let modules = Modules::new();
    let whole = modules.channel_means();
    let data = data_of_members(&whole);
    let whole = fs::read(whole).unwrap();
    let path = modules.path("damaged.pt");
    let mut found = 0;
    for at in data.into_iter().flatten() {
        let error = load_damaged(&whole, at, &path).expect_err(&format!("byte {at} is damaged and loads"));
        assert!(matches!(error, TorchError::CorruptModule { .. }), "byte {at}: {error}");
        assert_one_clean_line(&error);
        found += 1;
    }
    assert!(found > 100, "only {found} of {} bytes are data", whole.len());
}

/// Padding, dates and names that nobody reads may be anything; what is read leads to one clean error.
#[test]
fn a_damaged_byte_between_the_members_is_harmless_or_found() {
    let modules = Modules::new();
    let whole = modules.channel_means();
    let data = data_of_members(&whole);
    let whole = fs::read(whole).unwrap();
    let path = modules.path("damaged.pt");
    let between = (0..whole.len()).filter(|at| !data.iter().any(|member| member.contains(at)));
    for at in between.step_by(step()) {
        if let Err(error) = load_damaged(&whole, at, &path) {
            assert!(matches!(error, TorchError::CorruptModule { .. }), "byte {at}: {error}");
            assert_one_clean_line(&error);
        }
    }
}

/// Where the contents of a module file's members lie.
fn data_of_members(path: &Path) -> Vec<Range<usize>> {
    let mut archive = zip::ZipArchive::new(fs::File::open(path).unwrap()).unwrap();
    (0..archive.len())
        .map(|index| {
            let member = archive.by_index(index).unwrap();
            let start = member.data_start().unwrap() as usize;
            start..start + member.compressed_size() as usize
        })
        .collect()
}

fn load_damaged(whole: &[u8], at: usize, path: &Path) -> Result<Model, TorchError> {
    let mut damaged = whole.to_vec();
    damaged[at] ^= 0x55;
    fs::write(path, &damaged).unwrap();
    Model::load(path, Device::Cpu)
}

/// Every byte with `SIGHTLINE_EVERY_BYTE` set (half a minute), else some hundreds of them.
fn step() -> usize {
    if std::env::var_os("SIGHTLINE_EVERY_BYTE").is_some() { 1 } else { 17 }
}

#[test]
fn source_that_does_not_compile_is_a_corrupt_module() {
    let modules = Modules::new();
    for (name, body) in
        [("unknown_operator", "-> Tensor:\n    return torch.no_such_thing(x)"), ("nonsense", "!! 1 +")]
    {
        let error = load_error(&modules.scripted(name, body));
        assert!(matches!(error, TorchError::CorruptModule { .. }), "{error}");
        assert_one_clean_line(&error);
    }
}

#[test]
fn a_module_that_raises_gives_its_message() {
    let error = forward_error(
        "raises",
        "-> Tensor:\n    ops.prim.RaiseException(\"no good today\", \"builtins.ValueError\")\n    return x",
    );
    assert!(matches!(&error, TorchError::Forward { .. }), "{error}");
    assert!(error.to_string().contains("no good today"), "{error}");
    assert!(error.detail().contains("Traceback"), "{}", error.detail());
    assert_one_clean_line(&error);
}

#[test]
fn an_operator_that_refuses_its_input_gives_its_reason() {
    let error = forward_error("mismatch", "-> Tensor:\n    return torch.matmul(x, torch.ones([5, 5]))");
    assert!(matches!(&error, TorchError::Forward { .. }), "{error}");
    assert!(error.to_string().contains("size") || error.to_string().contains("shape"), "{error}");
    assert_one_clean_line(&error);
}

#[test]
fn a_module_can_be_used_again_after_it_raised() {
    let modules = Modules::new();
    let path = modules.scripted(
        "sometimes",
        "-> Tensor:\n    if bool(torch.gt(torch.sum(x), 100.)):\n      \
         ops.prim.RaiseException(\"too bright\", \"builtins.ValueError\")\n    else:\n      pass\n    \
         return torch.reshape(x, [torch.size(x, 0), -1])",
    );
    let mut model = Model::load(&path, Device::Cpu).unwrap();
    let (shape, mut output) = (shape(1, 1, 2, 1), Vec::new());
    for _ in 0..5 {
        assert!(model.forward(&[99.0, 99.0], shape, Layout::Nchw, &mut output).is_err());
        model.forward(&[1.0, 2.0], shape, Layout::Nchw, &mut output).unwrap();
        assert_eq!(output, [1.0, 2.0]);
    }
}

#[test]
fn answers_that_are_not_one_tensor_are_refused() {
    for (name, body) in [
        ("tuple", "-> Tuple[Tensor, Tensor]:\n    return (x, x)"),
        ("list", "-> List[Tensor]:\n    return [x, x]"),
        ("number", "-> int:\n    return 7"),
        ("none", "-> NoneType:\n    return None"),
    ] {
        let error = forward_error(name, body);
        assert!(matches!(error, TorchError::NonTensorOutput), "{name}: {error}");
        assert_one_clean_line(&error);
    }
}

#[test]
fn answers_without_a_row_for_each_image_are_refused_with_their_shape() {
    for (name, body, expected) in [
        ("rank_4", "-> Tensor:\n    return x", vec![1, 3, 2, 2]),
        ("rank_1", "-> Tensor:\n    return torch.reshape(x, [-1])", vec![12]),
        ("rank_0", "-> Tensor:\n    return torch.sum(x)", vec![]),
        ("other_rows", "-> Tensor:\n    return torch.reshape(x, [4, 3])", vec![4, 3]),
        ("no_columns", "-> Tensor:\n    return torch.ones([1, 0])", vec![1, 0]),
    ] {
        let error = forward_error(name, body);
        assert!(
            matches!(&error, TorchError::OutputShape { expected: 1, got } if *got == expected),
            "{name}: {error}"
        );
        assert_one_clean_line(&error);
    }
}

#[test]
fn whole_numbers_complex_ones_and_sparse_tensors_are_refused() {
    let integers = forward_error("integers", "-> Tensor:\n    return torch.to(torch.reshape(x, [1, -1]), 4)");
    assert!(matches!(integers, TorchError::OutputKind { .. }), "{integers}");
    let complex = forward_error("complex", "-> Tensor:\n    return torch.to(torch.reshape(x, [1, -1]), 9)");
    assert!(matches!(complex, TorchError::OutputKind { .. }), "{complex}");
    let sparse = forward_error("sparse", "-> Tensor:\n    return torch.to_sparse(torch.reshape(x, [1, -1]))");
    assert!(matches!(sparse, TorchError::Forward { .. }), "{sparse}");
    for error in [integers, complex, sparse] {
        assert_one_clean_line(&error);
    }
}

#[test]
fn a_nested_tensor_without_sizes_is_refused() {
    let error = forward_error(
        "nested",
        "-> Tensor:\n    m = torch.to(torch.ones([1, 2]), 11)\n    \
         return torch._nested_tensor_from_mask(torch.ones([1, 2, 3]), m)",
    );
    assert!(matches!(error, TorchError::Forward { .. }), "{error}");
    assert_one_clean_line(&error);
}

#[test]
fn a_batch_that_no_memory_holds_is_refused() {
    let error = forward_error("huge", "-> Tensor:\n    return torch.zeros([1, 1000000000000000])");
    assert!(matches!(error, TorchError::OutOfMemory { .. }), "{error}");
    assert_one_clean_line(&error);
}

#[test]
fn a_length_other_than_the_shapes_is_refused_before_the_module_runs() {
    let modules = Modules::new();
    let mut model = Model::load(&modules.channel_means(), Device::Cpu).unwrap();
    for (shape, values) in [
        (shape(1, 2, 2, 3), 11),
        (shape(1, 2, 2, 3), 13),
        (shape(0, 2, 2, 3), 0),
        (shape(1, usize::MAX, 2, 3), 6),
        (shape(1 << 20, 1 << 20, 1 << 20, 3), 6),
    ] {
        let error = model.forward(&vec![0.0; values], shape, Layout::Nchw, &mut Vec::new()).unwrap_err();
        assert!(matches!(error, TorchError::Input { .. }), "{error}");
        assert_one_clean_line(&error);
    }
}

#[test]
fn a_shape_that_counts_but_does_not_fit_is_out_of_memory() {
    let modules = Modules::new();
    let mut model = Model::load(&modules.channel_means(), Device::Cpu).unwrap();
    let shape = shape(1 << 20, 1 << 15, 1 << 15, 3);
    let error = model.forward_with(shape, Layout::Nchw, |_| {}, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, TorchError::OutOfMemory { .. }), "{error}");
}

#[test]
fn a_gpu_that_is_not_there_is_unavailable() {
    let modules = Modules::new();
    let error = Model::load(&modules.channel_means(), Device::Cuda(99)).unwrap_err();
    assert!(matches!(error, TorchError::DeviceUnavailable { .. }), "{error}");
    assert_one_clean_line(&error);
}
