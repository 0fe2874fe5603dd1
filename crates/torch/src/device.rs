//! Where a model runs, and which libtorch runs it.

use std::ffi::{CStr, CString, OsStr, c_char, c_void};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;

use crate::TorchError;

/// Where a model's weights lie and its operators run. Written `cpu`, `cuda` (the first GPU) or `cuda:1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Device {
    /// The processor.
    Cpu,
    /// The NVIDIA GPU with this index, counted as `CUDA_VISIBLE_DEVICES` leaves them.
    Cuda(usize),
}

impl Device {
    /// Whether models can be loaded here now.
    ///
    /// # Errors
    ///
    /// [`TorchError::DeviceUnavailable`] with the reason: no CUDA build of libtorch, no such GPU.
    pub fn check_available(self) -> Result<(), TorchError> {
        let cuda = cuda();
        match self {
            Self::Cpu => Ok(()),
            Self::Cuda(index) if index < cuda.devices => Ok(()),
            Self::Cuda(_) => {
                let reason = match (&cuda.load_error, cuda.devices) {
                    (Some(error), _) => error.clone(),
                    (None, 0) => "libtorch sees no GPU; check the driver and CUDA_VISIBLE_DEVICES".to_owned(),
                    (None, devices) => format!("libtorch sees {devices} GPU(s), counted from 0"),
                };
                Err(TorchError::DeviceUnavailable { device: self, reason })
            }
        }
    }

    pub(crate) fn to_tch(self) -> tch::Device {
        match self {
            Self::Cpu => tch::Device::Cpu,
            Self::Cuda(index) => tch::Device::Cuda(index),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// A device name that is neither `cpu`, `cuda` nor `cuda:N` with N from 0 to 127.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown device {0:?}: write cpu, cuda or cuda:N")]
pub struct ParseDeviceError(String);

impl FromStr for Device {
    type Err = ParseDeviceError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        // libtorch keeps a device's index in a signed byte.
        const MOST: usize = i8::MAX as usize;
        let error = || ParseDeviceError(name.to_owned());
        match name {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let digits = name.strip_prefix("cuda:").ok_or_else(error)?;
                let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
                let index = digits.parse().ok().filter(|&index| plain && index <= MOST);
                index.map(Self::Cuda).ok_or_else(error)
            }
        }
    }
}

/// How many GPUs models can run on: 0 with a CPU build of libtorch, or without a GPU or its driver.
///
/// The program is linked with the CPU library only. The first call (of this, or of anything that loads a
/// model) looks for `libtorch_cuda.so` beside the `libtorch_cpu.so` that is in use and loads it, so that one
/// binary serves on both kinds of machine.
pub fn cuda_device_count() -> usize {
    cuda().devices
}

/// The version of the libtorch in use, such as `2.11.0`; it can differ from the one compiled against.
pub fn libtorch_version() -> String {
    // SAFETY: takes nothing and returns a constant.
    let abi = unsafe { aoti_torch_abi_version() };
    let [major, minor, patch, ..] = abi.to_be_bytes();
    format!("{major}.{minor}.{patch}")
}

unsafe extern "C" {
    /// `TORCH_ABI_VERSION` of `torch/headeronly/version.h`: a byte each of major, minor and patch, from the top.
    fn aoti_torch_abi_version() -> u64;
}

struct CudaState {
    devices: usize,
    /// Why the library that is there, or should be, was not loaded.
    load_error: Option<String>,
}

/// Must run before anything asks libtorch about CUDA: it looks for the GPU library's hooks once, and then
/// remembers that there are none.
fn cuda() -> &'static CudaState {
    static STATE: OnceLock<CudaState> = OnceLock::new();
    STATE.get_or_init(|| match load_cuda_library() {
        Ok(()) => {
            CudaState { devices: usize::try_from(tch::Cuda::device_count()).unwrap_or(0), load_error: None }
        }
        Err(error) => CudaState { devices: 0, load_error: Some(error) },
    })
}

fn load_cuda_library() -> Result<(), String> {
    let Some(folder) = libtorch_folder() else {
        return Err("the folder of libtorch_cpu.so is not known".to_owned());
    };
    let path = folder.join("libtorch_cuda.so");
    if !path.exists() {
        return Err(format!("this is a CPU build of libtorch: {} has no libtorch_cuda.so", folder.display()));
    }
    dlopen_forever(&path)
}

/// Where the `libtorch_cpu.so` of this process was loaded from.
fn libtorch_folder() -> Option<PathBuf> {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    let inside = aoti_torch_abi_version as unsafe extern "C" fn() -> u64 as *const c_void;
    // SAFETY: `info` is a valid place for the answer; any address may be asked about.
    let found = unsafe { libc::dladdr(inside, &raw mut info) } != 0;
    if !found || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr set it to a string that lives as long as the library, which is never unloaded.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    let folder = Path::new(OsStr::from_bytes(name.to_bytes())).parent()?;
    Some(folder.to_owned())
}

/// Loads a library whose constructors register it with libtorch; it stays until the process ends.
fn dlopen_forever(path: &Path) -> Result<(), String> {
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| format!("{} cannot be loaded: its path holds a zero byte", path.display()))?;
    // SAFETY: `name` is a C string. The library is the part of this same libtorch that PyTorch loads the same
    // way, so its constructors may run at any time before the first use of CUDA, which `cuda` sees to.
    let handle =
        unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL | libc::RTLD_NODELETE) };
    if !handle.is_null() {
        return Ok(());
    }
    // SAFETY: no argument; the answer is null or a string valid until this thread's next call of the family.
    let message: *const c_char = unsafe { libc::dlerror() };
    if message.is_null() {
        return Err(format!("{} cannot be loaded", path.display()));
    }
    // SAFETY: not null, hence a C string by the contract of dlerror, and copied before any other call.
    let message = unsafe { CStr::from_ptr(message) };
    Err(message.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_reads_back_as_it_is_written() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(7)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
    }

    #[test]
    fn other_names_are_refused() {
        for name in [
            "",
            "CPU",
            "gpu",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:1 ",
            "cuda:128",
            "cuda:99999999999999999999",
        ] {
            assert!(name.parse::<Device>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_library_in_use_is_the_release_that_tch_is_made_for() {
        assert!(libtorch_version().starts_with("2.11."), "{}", libtorch_version());
    }

    #[test]
    fn the_folder_of_the_library_in_use_is_found() {
        let folder = libtorch_folder().unwrap();
        assert!(folder.join("libtorch_cpu.so").exists(), "{}", folder.display());
    }

    #[test]
    fn a_gpu_that_is_not_there_is_refused_with_a_reason() {
        let error = Device::Cuda(127).check_available().unwrap_err();
        assert!(
            matches!(&error, TorchError::DeviceUnavailable { reason, .. } if !reason.is_empty()),
            "{error}"
        );
    }
}
