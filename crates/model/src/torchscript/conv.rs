//! Prints convolutions, the one layer that the flavours say differently.

use std::fmt::Write as _;

use super::source::{Printer, even, in_place};
use super::{ArchiveError, Flavour};
use crate::graph::{Activation, Conv, Node, NodeId, Shape};

/// The words that every flavour puts together in its own order.
struct Words {
    /// What it reads.
    from: String,
    /// What is added before the activation.
    residual: Option<String>,
    weight: String,
    bias: String,
    padding: String,
    stride: String,
    dilation: String,
    groups: usize,
}

impl Printer<'_> {
    /// An expression for a convolution.
    pub fn conv(&mut self, id: NodeId, node: &Node, conv: &Conv) -> Result<String, ArchiveError> {
        let f = &conv.filter;
        let sizes = [f.outputs, f.inputs, f.rows, f.columns];
        let strides = [f.rows * f.columns * f.inputs, 1, f.columns * f.inputs, f.inputs];
        let words = Words {
            from: format!("v{}", node.inputs[0].0),
            residual: node.inputs.get(1).map(|other| format!("v{}", other.0)),
            weight: self.constant(&sizes, &strides, &f.values),
            bias: self.vector(&conv.bias),
            padding: format!("{:?}", even(node, conv.padding)?),
            stride: format!("{:?}", conv.stride),
            dilation: format!("{:?}", conv.dilation),
            groups: conv.groups,
        };
        Ok(match self.flavour {
            Flavour::Portable => portable(&words, conv.activation),
            Flavour::OneDnn => self.onednn(id, node, &words, conv),
            Flavour::Xnnpack => self.xnnpack(id, &words, conv.activation),
        })
    }

    /// Makes an attribute of `type_name` in `__setstate__` and names it.
    fn prepared(&mut self, id: NodeId, type_name: &str, value: &str) -> String {
        let _ = writeln!(self.attributes, "  w{} : {type_name}", id.0);
        let _ = writeln!(self.load, "    self.w{} = {value}", id.0);
        format!("self.w{}", id.0)
    }

    /// `mkldnn::_convolution_pointwise` and its `.binary` overloads, which torch.compile uses for frozen CPU models.
    fn onednn(&mut self, id: NodeId, node: &Node, words: &Words, conv: &Conv) -> String {
        let Words { from, residual, weight, bias, padding, stride, dilation, groups } = words;
        // The input's size makes the reorder choose the layout for channels_last; batch 1 serves for all.
        let size = match self.graph.shape(node.inputs[0]) {
            Shape::Map { height, width, channels } => [1, channels, height, width],
            Shape::Flat(features) => [1, features, 1, 1],
        };
        let reordered = format!(
            "ops.mkldnn._reorder_convolution_weight({weight}, {padding}, {stride}, {dilation}, {groups}, {size:?})"
        );
        let weight = self.prepared(id, "Tensor", &reordered);
        let shape = format!("{weight}, {bias}, {padding}, {stride}, {dilation}, {groups}");
        let none = "annotate(List[Optional[number]], [])";
        let unary = match conv.activation {
            Activation::None => format!("\"none\", {none}"),
            Activation::Relu => format!("\"relu\", {none}"),
            Activation::Relu6 => "\"hardtanh\", annotate(List[Optional[number]], [0., 6.])".to_owned(),
        };
        let Some(other) = residual else {
            return format!("ops.mkldnn._convolution_pointwise({from}, {shape}, {unary}, \"\")");
        };
        // After a sum oneDNN only fuses relu; and only a sum that nobody else reads may take its summand's place.
        let fused = if conv.activation == Activation::Relu { "\"relu\"" } else { "None" };
        let dies = node
            .inputs
            .get(1)
            .is_some_and(|o| o.0 != 0 && *o != node.inputs[0] && self.last_reads[o.0] == Some(id));
        let binary = format!("{shape}, \"add\", None, {fused}, {none}, \"\"");
        let value = if dies {
            format!("ops.mkldnn._convolution_pointwise_({other}, {from}, {binary})")
        } else {
            format!("ops.mkldnn._convolution_pointwise({from}, {other}, {binary})")
        };
        if conv.activation == Activation::Relu6 { in_place(Activation::Relu6, value) } else { value }
    }

    /// `prepacked::conv2d_clamp_run`, which torch's mobile optimiser uses.
    fn xnnpack(&mut self, id: NodeId, words: &Words, activation: Activation) -> String {
        let Words { from, residual, weight, bias, padding, stride, dilation, groups } = words;
        // The clamp would come before a residual.
        let clamp = if residual.is_some() { Activation::None } else { activation };
        let (low, high) = match clamp {
            Activation::None => ("None", "None"),
            Activation::Relu => ("0.", "None"),
            Activation::Relu6 => ("0.", "6."),
        };
        let packed = format!(
            "ops.prepacked.conv2d_clamp_prepack({weight}, {bias}, {stride}, {padding}, {dilation}, {groups}, {low}, {high})"
        );
        let context = self.prepared(id, "__torch__.torch.classes.xnnpack.Conv2dOpContext", &packed);
        let value = format!("ops.prepacked.conv2d_clamp_run({from}, {context})");
        match residual {
            Some(other) => in_place(activation, format!("torch.add_({value}, {other})")),
            None => value,
        }
    }
}

fn portable(words: &Words, activation: Activation) -> String {
    let Words { from, residual, weight, bias, padding, stride, dilation, groups } = words;
    let value = format!("torch.conv2d({from}, {weight}, {bias}, {stride}, {padding}, {dilation}, {groups})");
    let value = match residual {
        Some(other) => format!("torch.add_({value}, {other})"),
        None => value,
    };
    in_place(activation, value)
}
