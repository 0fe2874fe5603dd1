"""Makes the peer's model: the same layers and weights as PyTorch modules, traced.

    export.py GRAPH_FOLDER MODEL_FILE

The folder holds what the benchmark wrote: layers.json and weights.bin (f32). What comes out is what a team that trained
this network in PyTorch would deploy: nn.Conv2d, nn.BatchNorm2d and nn.ReLU6 one after the other, NCHW, torch.jit.trace.
"""

import json
import pathlib
import sys

import numpy
import torch
from torch import nn


class Network(nn.Module):
    def __init__(self, layers, weights):
        super().__init__()
        self.inputs = [layer["inputs"] for layer in layers]
        self.layers = nn.ModuleList(make(layer, weights) for layer in layers)

    def forward(self, image):
        values = [image]
        for inputs, layer in zip(self.inputs[1:], self.layers[1:]):
            values.append(layer(*(values[at] for at in inputs)))
        return values[-1]


class Add(nn.Module):
    def forward(self, a, b):
        return a + b


class Mean(nn.Module):
    def forward(self, x):
        return x.mean([2, 3])


class Flatten(nn.Module):
    """Row, then column, then channel, as Keras does it."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


def make(layer, weights):
    take = lambda name: weights[layer[name][0] : layer[name][1]]
    match layer["op"]:
        case "conv":
            rows, columns = layer["kernel"]
            conv = nn.Conv2d(
                layer["in_channels"],
                layer["out_channels"],
                (rows, columns),
                stride=layer["stride"],
                padding=layer["padding"],
                dilation=layer["dilation"],
                groups=layer["groups"],
                bias=layer["bias"] is not None,
            )
            values = take("weight").reshape(layer["out_channels"], rows, columns, -1)
            conv.weight.data = values.permute(0, 3, 1, 2).contiguous()
            if layer["bias"] is not None:
                conv.bias.data = take("bias").clone()
            return conv
        case "batch_norm":
            scale = take("scale")
            # Statistics are within scale and shift already: what is left of them is a division by 1.
            norm = nn.BatchNorm2d(len(scale), eps=1e-3)
            norm.running_var.fill_(1 - 1e-3)
            norm.weight.data = scale.clone()
            norm.bias.data = take("shift").clone()
            return norm
        case "dense":
            dense = nn.Linear(layer["in_features"], layer["out_features"])
            dense.weight.data = take("weight").reshape(layer["out_features"], -1).clone()
            dense.bias.data = take("bias").clone()
            return nn.Sequential(dense, nn.ReLU()) if layer["relu"] else dense
        case "pad":
            return nn.ZeroPad2d(layer["sides"])
        case "relu6":
            return nn.ReLU6()
        case "add":
            return Add()
        case "avg_pool":
            return nn.AvgPool2d(layer["window"], layer["stride"])
        case "flatten":
            return Flatten()
        case "mean":
            return Mean()
        case "softmax":
            return nn.Softmax(1)
        case "input":
            return nn.Identity()
    raise ValueError(f"no PyTorch module for {layer['op']}")


def main():
    folder, target = map(pathlib.Path, sys.argv[1:])
    layers = json.loads((folder / "layers.json").read_text())
    weights = torch.from_numpy(numpy.fromfile(folder / "weights.bin", dtype="<f4"))
    network = Network(layers, weights).eval()
    with torch.no_grad():
        torch.jit.trace(network, torch.rand(1, 3, 224, 224)).save(target)


main()
