//! A loaded TorchScript module and its input buffer.

use std::fmt;
use std::fs::File;
use std::path::Path;

use tch::{CModule, Kind, Tensor};

use crate::{Device, TorchError, archive};

/// The shape of a batch of images, in values: `batch × height × width × channels`, all at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InputShape {
    /// Images.
    pub batch: usize,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// Values of a pixel.
    pub channels: usize,
}

impl InputShape {
    /// How many values that is; `None` when a side is 0 or the product is too large to allocate.
    pub fn values(&self) -> Option<usize> {
        let sides = [self.batch, self.height, self.width, self.channels];
        let product = sides.iter().try_fold(1_usize, |product, &side| product.checked_mul(side))?;
        (product > 0 && product <= isize::MAX as usize / size_of::<f32>()).then_some(product)
    }

    /// Sizes and strides of a view of `batch × height × width × channels` contiguous values. As NCHW the same
    /// memory is what libtorch calls `channels_last`, the layout its convolutions are fastest with.
    fn view(&self, layout: Layout) -> ([i64; 4], [i64; 4]) {
        // `values` has been checked, so no side or product exceeds an i64.
        let [n, h, w, c] = [self.batch, self.height, self.width, self.channels].map(|side| side as i64);
        match layout {
            Layout::Nchw => ([n, c, h, w], [h * w * c, 1, w * c, c]),
            Layout::Nhwc => ([n, h, w, c], [h * w * c, w * c, c, 1]),
        }
    }
}

impl fmt::Display for InputShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}×{}×{}×{} (NHWC)", self.batch, self.height, self.width, self.channels)
    }
}

/// The order of the sides that a module's `forward` expects. Values are handed over as NHWC either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// batch, channels, height, width: PyTorch's own.
    Nchw,
    /// batch, height, width, channels: TensorFlow's.
    Nhwc,
}

/// The shape of an answer: `rows × columns` values, row after row; a row is an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OutputShape {
    /// Images, the input's batch.
    pub rows: usize,
    /// Values for each image: scores, an embedding.
    pub columns: usize,
}

/// A TorchScript module on a device, owned by one thread at a time (`Send`, not `Sync`).
pub struct Model {
    module: CModule,
    device: Device,
    /// One-dimensional, f32, on the CPU, and as long as the largest batch so far.
    input: Tensor,
    capacity: usize,
}

impl Model {
    /// Loads a module saved by `torch.jit.save`, in evaluation mode.
    ///
    /// A module is code: load only files whose origin is known. (The format is checked; whoever means harm and
    /// can write the file is not held off.)
    ///
    /// # Errors
    ///
    /// [`TorchError::MissingFile`], [`TorchError::CorruptModule`], [`TorchError::DeviceUnavailable`].
    pub fn load(path: &Path, device: Device) -> Result<Self, TorchError> {
        device.check_available()?;
        let missing = |source| TorchError::MissingFile { path: path.to_owned(), source };
        let file = File::open(path).map_err(missing)?;
        if !file.metadata().map_err(missing)?.is_file() {
            return Err(missing(std::io::Error::other("it is not a regular file")));
        }
        archive::verify(file).map_err(|message| TorchError::CorruptModule {
            path: path.to_owned(),
            message,
            detail: String::new(),
        })?;
        let _no_grad = tch::no_grad_guard();
        let corrupt = |error| TorchError::from_load(path.to_owned(), error);
        let mut module = CModule::load_on_device(path, device.to_tch()).map_err(corrupt)?;
        module.f_set_eval().map_err(corrupt)?;
        let input = Tensor::f_zeros([0], (Kind::Float, tch::Device::Cpu)).map_err(corrupt)?;
        Ok(Self { module, device, input, capacity: 0 })
    }

    /// Where the module runs.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Runs the module over a batch. `input` is f32, NHWC without gaps, as normalised as the module wants it;
    /// it is copied once (0.02 ms for a 224×224 image). `output` is overwritten with the answer, row after row.
    ///
    /// # Errors
    ///
    /// [`TorchError::Input`] for a length that is not the shape's; else as [`Model::forward_with`].
    pub fn forward(
        &mut self,
        input: &[f32],
        shape: InputShape,
        layout: Layout,
        output: &mut Vec<f32>,
    ) -> Result<OutputShape, TorchError> {
        if shape.values() != Some(input.len()) {
            return Err(TorchError::Input { shape, got: input.len() });
        }
        self.forward_with(shape, layout, |buffer| buffer.copy_from_slice(input), output)
    }

    /// Like [`Model::forward`] without the copy: `fill` writes the batch into the model's own buffer of
    /// `shape.values()` floats, which holds anything when it begins.
    ///
    /// # Errors
    ///
    /// [`TorchError::Input`] for a side of 0 or a shape too large, [`TorchError::OutOfMemory`],
    /// [`TorchError::Forward`] when the module raises, and [`TorchError::NonTensorOutput`],
    /// [`TorchError::OutputKind`] or [`TorchError::OutputShape`] when it returns anything other than
    /// a floating-point tensor with a row for each image. `output` is unspecified after an error; the model can
    /// be used again.
    pub fn forward_with(
        &mut self,
        shape: InputShape,
        layout: Layout,
        fill: impl FnOnce(&mut [f32]),
        output: &mut Vec<f32>,
    ) -> Result<OutputShape, TorchError> {
        let _no_grad = tch::no_grad_guard();
        fill(self.buffer(shape)?);
        let answer = self.run(shape, layout).map_err(|error| TorchError::from_forward(&error))?;
        read(&answer, shape.batch, output)
    }

    /// The part of the input buffer that this shape takes, made longer first if need be.
    fn buffer(&mut self, shape: InputShape) -> Result<&mut [f32], TorchError> {
        let values = shape.values().ok_or(TorchError::Input { shape, got: 0 })?;
        if values > self.capacity {
            self.input = Tensor::f_zeros([values as i64], (Kind::Float, tch::Device::Cpu))
                .map_err(|error| TorchError::from_forward(&error))?;
            self.capacity = values;
        }
        let start = self.input.data_ptr().cast::<f32>();
        // SAFETY: `input` is a contiguous f32 tensor on the CPU with `capacity >= values` elements, all
        // initialised, which libtorch allocated with an alignment of 64 bytes; it stays while `self` is
        // borrowed. Other tensors over the same memory exist only where the module kept one, and a module runs
        // only inside `run`, which needs `&mut self`.
        Ok(unsafe { std::slice::from_raw_parts_mut(start, values) })
    }

    fn run(&self, shape: InputShape, layout: Layout) -> Result<Tensor, tch::TchError> {
        let (sizes, strides) = shape.view(layout);
        let view = self.input.f_as_strided(sizes, strides, 0)?;
        match self.device {
            Device::Cpu => self.module.forward_ts(&[view]),
            // Keeps the strides, and has read the buffer when it returns.
            Device::Cuda(_) => self.module.forward_ts(&[view.f_to_device(self.device.to_tch())?]),
        }
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("device", &self.device)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

/// Checks what a module returned and copies it, from whatever device, into `output`.
fn read(answer: &Tensor, batch: usize, output: &mut Vec<f32>) -> Result<OutputShape, TorchError> {
    let failed = |error| TorchError::from_forward(&error);
    if !answer.defined() {
        return Err(TorchError::NonTensorOutput);
    }
    let got = sizes(answer).map_err(failed)?;
    let shape = match *got.as_slice() {
        [rows, columns] if usize::try_from(rows) == Ok(batch) => {
            usize::try_from(columns).ok().filter(|&columns| columns > 0)
        }
        _ => None,
    };
    let Some(columns) = shape else {
        return Err(TorchError::OutputShape { expected: batch, got });
    };
    let values = batch.saturating_mul(columns);
    output.clear();
    output.resize(values, 0.0);
    match answer.f_kind().map_err(failed)? {
        Kind::Float => answer.f_copy_data(output, values),
        Kind::Half | Kind::BFloat16 | Kind::Double => {
            answer.f_to_kind(Kind::Float).and_then(|answer| answer.f_copy_data(output, values))
        }
        other => return Err(TorchError::OutputKind { got: format!("{other:?}") }),
    }
    .map_err(failed)?;
    Ok(OutputShape { rows: batch, columns })
}

/// [`Tensor::size`] without its panic on tensors that have no plain sizes (nested ones).
fn sizes(tensor: &Tensor) -> Result<Vec<i64>, tch::TchError> {
    let shape = tensor.f_internal_shape_as_tensor()?;
    let mut sizes = vec![0; tensor.dim()];
    shape.f_copy_data(&mut sizes, tensor.dim())?;
    Ok(sizes)
}
