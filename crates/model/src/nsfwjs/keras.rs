//! Keras layer graphs, as tfjs stores them in `modelTopology`, turned into a [`Graph`].

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use super::ConvertError;
use super::weights::Weights;
use crate::graph::{Activation, Conv, Dense, Filter, Graph, NodeId, Op, Padding, Pool, Shape, same_padding};

#[derive(Debug, Deserialize)]
struct Model {
    class_name: String,
    config: ModelConfig,
}

#[derive(Debug, Deserialize)]
struct ModelConfig {
    layers: Vec<Layer>,
    output_layers: Vec<(String, usize, usize)>,
}

#[derive(Debug, Deserialize)]
struct Layer {
    name: String,
    class_name: String,
    config: Config,
    inbound_nodes: Vec<Vec<(String, usize, usize, Value)>>,
}

/// The settings that matter of every kind of layer.
#[derive(Debug, Deserialize)]
struct Config {
    batch_input_shape: Option<[Option<usize>; 4]>,
    strides: Option<[usize; 2]>,
    dilation_rate: Option<[usize; 2]>,
    pool_size: Option<[usize; 2]>,
    padding: Option<Value>,
    activation: Option<String>,
    data_format: Option<String>,
    axis: Option<i64>,
    epsilon: Option<f64>,
    max_value: Option<f64>,
    #[serde(default)]
    negative_slope: f64,
    #[serde(default)]
    threshold: f64,
    depth_multiplier: Option<usize>,
    #[serde(default = "yes")]
    use_bias: bool,
    #[serde(default = "yes")]
    scale: bool,
    #[serde(default = "yes")]
    center: bool,
}

fn yes() -> bool {
    true
}

/// Reads `model_config` with its weights.
pub(super) fn graph(model_config: &Value, weights: &Weights) -> Result<Graph, ConvertError> {
    let model = Model::deserialize(model_config).map_err(|e| ConvertError::Topology(e.to_string()))?;
    if !matches!(model.class_name.as_str(), "Model" | "Functional") {
        return Err(ConvertError::Topology(format!("`{}` models are not understood", model.class_name)));
    }
    let mut reader = Reader { weights, graph: None, placed: HashMap::new() };
    let mut waiting: Vec<&Layer> = model.config.layers.iter().collect();
    // Keras does not promise an order: place whatever has all it reads, until nothing changes.
    while !waiting.is_empty() {
        let before = waiting.len();
        let mut later = Vec::new();
        for layer in waiting {
            if layer.sources().all(|name| reader.placed.contains_key(name)) {
                reader.place(layer)?;
            } else {
                later.push(layer);
            }
        }
        if later.len() == before {
            return Err(later[0].fail("reads a layer that does not exist, or itself"));
        }
        waiting = later;
    }
    let [(output, ..)] = model.config.output_layers.as_slice() else {
        return Err(ConvertError::Topology("one output is expected".to_owned()));
    };
    let graph = reader.graph.ok_or_else(|| ConvertError::Topology("has no InputLayer".to_owned()))?;
    if reader.placed.get(output) != Some(&graph.output()) {
        return Err(ConvertError::Topology(format!("`{output}` is not the last layer")));
    }
    Ok(graph)
}

impl Layer {
    fn sources(&self) -> impl Iterator<Item = &str> {
        self.inbound_nodes.iter().flatten().map(|(name, ..)| name.as_str())
    }

    fn fail(&self, problem: &str) -> ConvertError {
        ConvertError::Layer {
            layer: self.name.clone(),
            kind: self.class_name.clone(),
            problem: problem.to_owned(),
        }
    }

    fn strides(&self) -> [usize; 2] {
        self.config.strides.or(self.config.pool_size).unwrap_or([1, 1])
    }

    /// Padding of a window over a map, from `valid` or `same`.
    fn window_padding(
        &self,
        from: Shape,
        kernel: [usize; 2],
        dilation: [usize; 2],
    ) -> Result<Padding, ConvertError> {
        let Shape::Map { height, width, .. } = from else { return Err(self.fail("reads no map")) };
        let [down, across] = self.strides();
        match self.config.padding.as_ref().and_then(Value::as_str) {
            Some("valid") | None => Ok(Padding::default()),
            Some("same") => {
                let (top, bottom) = same_padding(height, kernel[0], down, dilation[0]);
                let (left, right) = same_padding(width, kernel[1], across, dilation[1]);
                Ok(Padding { top, bottom, left, right })
            }
            Some(other) => Err(self.fail(&format!("has padding `{other}`"))),
        }
    }

    fn activation(&self) -> Result<Tail, ConvertError> {
        match self.config.activation.as_deref() {
            None | Some("linear") => Ok(Tail::Fused(Activation::None)),
            Some("relu") => Ok(Tail::Fused(Activation::Relu)),
            Some("relu6") => Ok(Tail::Fused(Activation::Relu6)),
            Some("softmax") => Ok(Tail::Softmax),
            Some(other) => Err(self.fail(&format!("has activation `{other}`"))),
        }
    }
}

/// How a layer ends.
enum Tail {
    Fused(Activation),
    Softmax,
}

struct Reader<'a> {
    weights: &'a Weights,
    graph: Option<Graph>,
    placed: HashMap<String, NodeId>,
}

impl Reader<'_> {
    fn place(&mut self, layer: &Layer) -> Result<(), ConvertError> {
        let id = if layer.class_name == "InputLayer" { self.input(layer)? } else { self.layer(layer)? };
        self.placed.insert(layer.name.clone(), id);
        Ok(())
    }

    fn input(&mut self, layer: &Layer) -> Result<NodeId, ConvertError> {
        match (layer.config.batch_input_shape, &self.graph) {
            (Some([_, Some(height), Some(width), Some(channels)]), None) => {
                self.graph = Some(Graph::new(&layer.name, height, width, channels));
                Ok(NodeId(0))
            }
            (_, Some(_)) => Err(layer.fail("is a second input")),
            (_, None) => Err(layer.fail("has no fixed height, width and channels")),
        }
    }

    fn layer(&mut self, layer: &Layer) -> Result<NodeId, ConvertError> {
        if layer.config.data_format.as_deref().is_some_and(|format| format != "channels_last") {
            return Err(layer.fail("does not have channels last"));
        }
        let inputs: Vec<NodeId> = layer.sources().map(|name| self.placed[name]).collect();
        let Some(graph) = &self.graph else { return Err(layer.fail("comes before the input")) };
        let Some(&first) = inputs.first() else { return Err(layer.fail("reads nothing")) };
        let from = graph.shape(first);
        let mut softmax = false;
        let op = match layer.class_name.as_str() {
            "Dropout" | "SpatialDropout2D" => return Ok(first),
            "Conv2D" | "DepthwiseConv2D" => self.conv(layer, from)?,
            "BatchNormalization" => self.normalisation(layer, from)?,
            "Dense" => {
                let (op, tail) = self.dense(layer)?;
                softmax = tail;
                op
            }
            "ReLU" => Op::Activation(relu(layer)?),
            "Activation" => match layer.activation()? {
                Tail::Fused(activation) => Op::Activation(activation),
                Tail::Softmax => Op::Softmax,
            },
            "Softmax" => Op::Softmax,
            "ZeroPadding2D" => Op::Pad(zeros(layer)?),
            "Add" => Op::Add,
            "Concatenate" if matches!(layer.config.axis, None | Some(3 | -1)) => Op::Concat,
            "MaxPooling2D" => Op::MaxPool(pool(layer, from)?),
            "AveragePooling2D" => Op::AvgPool(pool(layer, from)?),
            "GlobalAveragePooling2D" => Op::GlobalAvgPool,
            "Flatten" => Op::Flatten,
            _ => return Err(layer.fail("is a kind of layer, or a setting of one, that is not understood")),
        };
        self.push(layer, op, &inputs, softmax)
    }

    fn push(
        &mut self,
        layer: &Layer,
        op: Op,
        inputs: &[NodeId],
        softmax: bool,
    ) -> Result<NodeId, ConvertError> {
        let Some(graph) = &mut self.graph else { return Err(layer.fail("comes before the input")) };
        let id = graph.push(&layer.name, op, inputs)?;
        if softmax { Ok(graph.push(&format!("{}_softmax", layer.name), Op::Softmax, &[id])?) } else { Ok(id) }
    }

    fn conv(&self, layer: &Layer, from: Shape) -> Result<Op, ConvertError> {
        let Shape::Map { channels, .. } = from else { return Err(layer.fail("reads no map")) };
        let depthwise = layer.class_name == "DepthwiseConv2D";
        let suffix = if depthwise { "depthwise_kernel" } else { "kernel" };
        let kernel = self.weights.get(&format!("{}/{suffix}", layer.name), 4)?;
        let (rows, columns, inner, outer) =
            (kernel.shape[0], kernel.shape[1], kernel.shape[2], kernel.shape[3]);
        if inner != channels || (depthwise && layer.config.depth_multiplier.unwrap_or(1) != outer) {
            return Err(layer.fail(&format!("weight {:?} does not fit {channels} channels", kernel.shape)));
        }
        let (outputs, inputs, groups) =
            if depthwise { (inner * outer, 1, channels) } else { (outer, inner, 1) };
        // TensorFlow's [row, column, in, out] becomes [out, row, column, in]; depthwise [.., in, multiplier] has in·multiplier outputs.
        let mut values = Vec::with_capacity(kernel.values.len());
        for output in 0..outputs {
            for cell in 0..rows * columns {
                let at = cell * inner * outer;
                if depthwise {
                    values.push(kernel.values[at + output]);
                } else {
                    values.extend((0..inner).map(|input| kernel.values[at + input * outer + output]));
                }
            }
        }
        let Tail::Fused(activation) = layer.activation()? else { return Err(layer.fail("ends in softmax")) };
        let dilation = layer.config.dilation_rate.unwrap_or([1, 1]);
        Ok(Op::Conv(Conv {
            filter: Filter { outputs, rows, columns, inputs, values },
            bias: self.bias(layer, outputs)?,
            stride: layer.strides(),
            dilation,
            padding: layer.window_padding(from, [rows, columns], dilation)?,
            groups,
            activation,
        }))
    }

    fn bias(&self, layer: &Layer, outputs: usize) -> Result<Vec<f32>, ConvertError> {
        if !layer.config.use_bias {
            return Ok(vec![0.0; outputs]);
        }
        Ok(self.weights.vector(&format!("{}/bias", layer.name), outputs)?.to_vec())
    }

    /// `gamma * (x - mean) / sqrt(variance + epsilon) + beta`, as one factor and one summand per channel.
    fn normalisation(&self, layer: &Layer, from: Shape) -> Result<Op, ConvertError> {
        let Shape::Map { channels, .. } = from else { return Err(layer.fail("reads no map")) };
        if !matches!(layer.config.axis, None | Some(3 | -1)) {
            return Err(layer.fail("does not normalise channels"));
        }
        let vector = |part: &str| self.weights.vector(&format!("{}/{part}", layer.name), channels);
        let (mean, variance) = (vector("moving_mean")?, vector("moving_variance")?);
        let gamma = if layer.config.scale { Some(vector("gamma")?) } else { None };
        let beta = if layer.config.center { Some(vector("beta")?) } else { None };
        let epsilon = layer.config.epsilon.unwrap_or(1e-3);
        let (mut scale, mut shift) = (Vec::with_capacity(channels), Vec::with_capacity(channels));
        for c in 0..channels {
            let factor = gamma.map_or(1.0, |g| f64::from(g[c])) / (f64::from(variance[c]) + epsilon).sqrt();
            scale.push(factor as f32);
            shift.push((beta.map_or(0.0, |b| f64::from(b[c])) - f64::from(mean[c]) * factor) as f32);
        }
        Ok(Op::Affine { scale, shift })
    }

    fn dense(&self, layer: &Layer) -> Result<(Op, bool), ConvertError> {
        let kernel = self.weights.get(&format!("{}/kernel", layer.name), 2)?;
        let (inputs, outputs) = (kernel.shape[0], kernel.shape[1]);
        let mut weight = Vec::with_capacity(inputs * outputs);
        for output in 0..outputs {
            weight.extend((0..inputs).map(|input| kernel.values[input * outputs + output]));
        }
        let bias = self.bias(layer, outputs)?;
        let (activation, softmax) = match layer.activation()? {
            Tail::Fused(activation) => (activation, false),
            Tail::Softmax => (Activation::None, true),
        };
        Ok((Op::Dense(Dense { outputs, inputs, weight, bias, activation }), softmax))
    }
}

fn relu(layer: &Layer) -> Result<Activation, ConvertError> {
    let config = &layer.config;
    match config.max_value {
        _ if config.negative_slope != 0.0 || config.threshold != 0.0 => {
            Err(layer.fail("is leaky or shifted"))
        }
        None => Ok(Activation::Relu),
        Some(6.0) => Ok(Activation::Relu6),
        Some(other) => Err(layer.fail(&format!("is cut at {other}; 6 is understood"))),
    }
}

fn zeros(layer: &Layer) -> Result<Padding, ConvertError> {
    let value = layer.config.padding.clone().unwrap_or(Value::Null);
    let sides: [[usize; 2]; 2] =
        serde_json::from_value(value).map_err(|e| layer.fail(&format!("padding: {e}")))?;
    let [[top, bottom], [left, right]] = sides;
    Ok(Padding { top, bottom, left, right })
}

fn pool(layer: &Layer, from: Shape) -> Result<Pool, ConvertError> {
    let window = layer.config.pool_size.ok_or_else(|| layer.fail("has no pool_size"))?;
    Ok(Pool { window, stride: layer.strides(), padding: layer.window_padding(from, window, [1, 1])? })
}

#[cfg(test)]
mod tests;
