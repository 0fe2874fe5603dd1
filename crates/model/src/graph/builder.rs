//! Small classifiers with made-up weights, for tests and benches that must not need a download.

use super::{Activation, Conv, Dense, Filter, Graph, GraphError, NodeId, Op, Padding};

/// Builds small graphs with deterministic weights: the same calls always give the same values.
#[derive(Debug)]
pub struct GraphBuilder {
    graph: Graph,
    at: NodeId,
    channels: usize,
    seed: u64,
}

/// A graph and what it was asked to be.
#[derive(Debug, Clone, PartialEq)]
pub struct BuiltClassifier {
    /// The layers, already optimised.
    pub graph: Graph,
    /// Outputs.
    pub classes: usize,
}

impl GraphBuilder {
    /// Starts with a picture of the given size and three channels. Another `seed` gives other weights.
    pub fn new(height: usize, width: usize, seed: u64) -> Self {
        let graph = Graph::new("input", height, width, 3);
        Self { graph, at: NodeId(0), channels: 3, seed: seed ^ 0x9e37_79b9_7f4a_7c15 }
    }

    /// A classifier of one 3x3 convolution with stride 2, global mean, dense layer and softmax.
    ///
    /// # Errors
    /// [`GraphError`] when the picture is smaller than the kernel or there are no classes.
    pub fn classifier(
        height: usize,
        width: usize,
        classes: usize,
        seed: u64,
    ) -> Result<BuiltClassifier, GraphError> {
        let graph = Self::new(height, width, seed).conv(8, 3, 2, Activation::Relu6)?.head(classes)?;
        Ok(BuiltClassifier { graph, classes })
    }

    /// Appends a square convolution with `kernel / 2` zeros around.
    ///
    /// # Errors
    /// [`GraphError`] when it does not fit.
    pub fn conv(
        self,
        outputs: usize,
        kernel: usize,
        stride: usize,
        end: Activation,
    ) -> Result<Self, GraphError> {
        let inputs = self.channels;
        self.grouped(outputs, inputs, 1, kernel, stride, end)
    }

    /// Appends a depthwise convolution with `kernel / 2` zeros around.
    ///
    /// # Errors
    /// [`GraphError`] when it does not fit.
    pub fn depthwise(self, kernel: usize, stride: usize, end: Activation) -> Result<Self, GraphError> {
        let channels = self.channels;
        self.grouped(channels, 1, channels, kernel, stride, end)
    }

    /// Appends a 1x1 convolution of the channels onto themselves, plus what it read.
    ///
    /// # Errors
    /// [`GraphError`] when it does not fit.
    pub fn residual(mut self) -> Result<Self, GraphError> {
        let before = self.at;
        self = {
            let channels = self.channels;
            self.conv(channels, 1, 1, Activation::None)?
        };
        self.at = self.graph.push("residual", Op::Add, &[before, self.at])?;
        Ok(self)
    }

    /// Ends the graph with a global mean, a dense layer and softmax, and optimises it.
    ///
    /// # Errors
    /// [`GraphError`] when there are no classes.
    pub fn head(mut self, classes: usize) -> Result<Graph, GraphError> {
        if classes == 0 {
            return Err(GraphError::Layer {
                layer: "dense".to_owned(),
                problem: "has no outputs".to_owned(),
            });
        }
        let inputs = self.channels;
        let mean = self.graph.push("mean", Op::GlobalAvgPool, &[self.at])?;
        let weight = self.values(classes * inputs, 4.0);
        let bias = self.values(classes, 0.5);
        let dense = Dense { outputs: classes, inputs, weight, bias, activation: Activation::None };
        let dense = self.graph.push("dense", Op::Dense(dense), &[mean])?;
        self.graph.push("softmax", Op::Softmax, &[dense])?;
        super::optimise(&self.graph, super::PaddingStyle::default())
    }

    fn grouped(
        mut self,
        outputs: usize,
        inputs: usize,
        groups: usize,
        kernel: usize,
        stride: usize,
        activation: Activation,
    ) -> Result<Self, GraphError> {
        let fan = (kernel * kernel * inputs).max(1) as f32;
        let values = self.values(outputs * kernel * kernel * inputs, (3.0 / fan).sqrt());
        let bias = self.values(outputs, 0.1);
        let pad = kernel / 2;
        let conv = Conv {
            filter: Filter { outputs, rows: kernel, columns: kernel, inputs, values },
            bias,
            stride: [stride, stride],
            dilation: [1, 1],
            padding: Padding { top: pad, bottom: pad, left: pad, right: pad },
            groups,
            activation,
        };
        let name = format!("conv_{}", self.graph.nodes().len());
        self.at = self.graph.push(&name, Op::Conv(conv), &[self.at])?;
        self.channels = outputs;
        Ok(self)
    }

    /// `count` values in `[-reach, reach)` from a xorshift generator.
    fn values(&mut self, count: usize, reach: f32) -> Vec<f32> {
        let mut next = || {
            self.seed ^= self.seed << 13;
            self.seed ^= self.seed >> 7;
            self.seed ^= self.seed << 17;
            (self.seed >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next() * reach).collect()
    }
}
