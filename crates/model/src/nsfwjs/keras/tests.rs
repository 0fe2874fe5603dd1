use serde_json::json;

use super::*;
use crate::graph::reference::run;

fn layer(name: &str, class: &str, config: &Value, from: &[&str]) -> Value {
    let inbound: Vec<Value> = from.iter().map(|f| json!([f, 0, 0, {}])).collect();
    let nodes = if inbound.is_empty() { json!([]) } else { json!([inbound]) };
    json!({"name": name, "class_name": class, "config": config, "inbound_nodes": nodes})
}

fn model(layers: &[Value], output: &str) -> Value {
    json!({"class_name": "Model", "config": {"layers": layers, "output_layers": [[output, 0, 0]]}})
}

fn input() -> Value {
    layer("in", "InputLayer", &json!({"batch_input_shape": [null, 4, 4, 2]}), &[])
}

#[test]
fn a_small_layer_graph_gives_the_numbers_worked_out_by_hand() {
    let mut weights = Weights::default();
    // 1x1: out0 = in0 + 2 in1, out1 = 3 in0 + 4 in1, in TensorFlow's [row, column, in, out].
    weights.insert("c/kernel", &[1, 1, 2, 2], vec![1.0, 3.0, 2.0, 4.0]);
    weights.insert("c/bias", &[2], vec![0.5, -0.5]);
    // 1x1 depthwise: channel 0 times 10, channel 1 times 100.
    weights.insert("d/depthwise_kernel", &[1, 1, 2, 1], vec![10.0, 100.0]);
    for (part, values) in [
        ("gamma", [2.0, 1.0]),
        ("beta", [0.0, 1.0]),
        ("moving_mean", [5.0, 0.0]),
        ("moving_variance", [4.0, 1.0]),
    ] {
        weights.insert(&format!("b/{part}"), &[2], values.to_vec());
    }
    weights.insert("f/kernel", &[2, 2], vec![1.0, 0.0, 0.0, 1e-2]);
    weights.insert("f/bias", &[2], vec![0.0, 0.0]);
    let layers = [
        // Out of order, as Keras allows.
        layer("f", "Dense", &json!({"activation": "softmax"}), &["drop"]),
        input(),
        layer(
            "c",
            "Conv2D",
            &json!({"strides": [1, 1], "padding": "same", "activation": "linear", "data_format": "channels_last"}),
            &["in"],
        ),
        layer(
            "d",
            "DepthwiseConv2D",
            &json!({"strides": [1, 1], "padding": "valid", "use_bias": false, "depth_multiplier": 1}),
            &["c"],
        ),
        layer("b", "BatchNormalization", &json!({"axis": -1, "epsilon": 0.0}), &["d"]),
        layer("r", "ReLU", &json!({"max_value": null, "negative_slope": 0, "threshold": 0}), &["b"]),
        layer(
            "g",
            "AveragePooling2D",
            &json!({"pool_size": [4, 4], "strides": [4, 4], "padding": "valid"}),
            &["r"],
        ),
        layer("flat", "Flatten", &json!({}), &["g"]),
        layer("drop", "Dropout", &json!({"rate": 0.5}), &["flat"]),
    ];
    let graph = graph(&model(&layers, "f"), &weights).unwrap();
    let picture: Vec<f32> = (0..16).flat_map(|_| [1.0, 0.5]).collect();
    // c = (2.5, 4.5); d = (25, 450); b = (2 * (25 - 5) / 2, 450 + 1) = (20, 451); f = (20, 4.51).
    let e = (4.51_f32 - 20.0).exp();
    let result = run(&graph, &picture);
    assert!(
        (result[0] - 1.0 / (1.0 + e)).abs() < 1e-6 && (result[1] - e / (1.0 + e)).abs() < 1e-6,
        "{result:?}"
    );
}

#[test]
fn same_padding_with_stride_two_goes_below_and_right() {
    let mut weights = Weights::default();
    weights.insert("c/kernel", &[3, 3, 2, 1], vec![1.0; 18]);
    let layers = [
        input(),
        layer("c", "Conv2D", &json!({"strides": [2, 2], "padding": "same", "use_bias": false}), &["in"]),
    ];
    let graph = graph(&model(&layers, "c"), &weights).unwrap();
    let Op::Conv(conv) = &graph.nodes()[1].op else { panic!("not a convolution") };
    assert_eq!(conv.padding, Padding { bottom: 1, right: 1, ..Padding::default() });
}

#[test]
fn trouble_names_the_layer() {
    let weights = Weights::default();
    let table = [
        (layer("x", "LSTM", &json!({}), &["in"]), "`x` (LSTM)"),
        (layer("x", "Conv2D", &json!({"strides": [1, 1]}), &["in"]), "`x/kernel`: is missing"),
        (layer("x", "ReLU", &json!({"max_value": 5.0}), &["in"]), "`x` (ReLU): is cut at 5"),
        (layer("x", "Activation", &json!({"activation": "swish"}), &["in"]), "has activation `swish`"),
        (layer("x", "Add", &json!({}), &["in", "nowhere"]), "reads a layer that does not exist"),
        (layer("x", "Concatenate", &json!({"axis": 1}), &["in", "in"]), "`x` (Concatenate)"),
        (
            layer("x", "Dense", &json!({"data_format": "channels_first"}), &["in"]),
            "does not have channels last",
        ),
        (layer("x", "MaxPooling2D", &json!({"pool_size": [9, 9]}), &["in"]), "does not fit a 4x4 map"),
    ];
    for (bad, message) in table {
        let error = graph(&model(&[input(), bad], "x"), &weights).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let sequential = json!({"class_name": "Sequential", "config": {"layers": [], "output_layers": []}});
    assert!(graph(&sequential, &weights).unwrap_err().to_string().contains("`Sequential`"));
}
