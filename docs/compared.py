# ruff: noqa: E501  (its tables have one line a row)
"""What torch.nn, Flax NNX, Keras and ONNX call funcnet's operations: `python docs/compared.py` writes compared.md.

A row names what we have, and what the others call it; those whose operation this funcnet lacks are listed
apart. The tests hold the page against these tables, the tables against the classes of torch.nn and NNX where
they are installed, and ONNX's column against the nodes that `python -m benchmarks onnx_nodes` says.
"""

from pathlib import Path

import funcnet as fn

LIBRARIES = ("torch.nn", "Flax NNX", "Keras", "ONNX")

# ours, or how it is said | torch.nn | Flax NNX | Keras layers and losses | ONNX
HAS = """
fn.linear | Linear LazyLinear | Linear LinearGeneral Einsum | Dense EinsumDense | Gemm
fn.matmul | | | Dot | MatMul
fn.bilinear | Bilinear | | |
fn.moe | | | |
fn.embedding | Embedding | Embed | Embedding | Gather
fn.conv | Conv1d Conv2d Conv3d LazyConv1d LazyConv2d LazyConv3d | Conv | Conv1D Conv2D Conv3D | Conv CausalConvWithState
fn.conv: groups=c | Conv1d Conv2d | Conv | DepthwiseConv1D DepthwiseConv2D SeparableConv1D SeparableConv2D | Conv
fn.conv_transpose | ConvTranspose1d ConvTranspose2d ConvTranspose3d LazyConvTranspose1d LazyConvTranspose2d LazyConvTranspose3d | ConvTranspose | Conv1DTranspose Conv2DTranspose Conv3DTranspose | ConvTranspose
fn.max_pool | MaxPool1d MaxPool2d MaxPool3d | nnx.max_pool | MaxPooling1D MaxPooling2D MaxPooling3D | MaxPool
fn.avg_pool | AvgPool1d AvgPool2d AvgPool3d | nnx.avg_pool | AveragePooling1D AveragePooling2D AveragePooling3D | AveragePool
fn.lp_pool | LPPool1d LPPool2d LPPool3d | | | LpPool LpNormalization ReduceL1 ReduceL2
fn.avg_pool: over channels | LocalResponseNorm CrossMapLRN2d | | | LRN
fn.adaptive_avg_pool | AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d | | AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D |
fn.adaptive_max_pool | AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d | | AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D |
fn.adaptive_avg_pool: size=(1, 1) | | | GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D | GlobalAveragePool ReduceMean
fn.adaptive_max_pool: size=(1, 1) | | | GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D | GlobalMaxPool ReduceMax
fn.pad | ZeroPad1d ZeroPad2d ZeroPad3d ConstantPad1d ConstantPad2d ConstantPad3d ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d CircularPad1d CircularPad2d CircularPad3d | | ZeroPadding1D ZeroPadding2D ZeroPadding3D | Pad CenterCropPad
fn.resize | Upsample UpsamplingNearest2d UpsamplingBilinear2d | | Resizing UpSampling1D UpSampling2D UpSampling3D | Resize Upsample
fn.grid_sample | functional.grid_sample | | | GridSample AffineGrid
fn.pixel_shuffle | PixelShuffle | | | DepthToSpace
fn.pixel_unshuffle | PixelUnshuffle | | | SpaceToDepth
fn.patches | Unfold | | |
fn.fold | Fold | | | Col2Im
fn.layer_norm | LayerNorm | LayerNorm | LayerNormalization | LayerNormalization
fn.rms_norm | RMSNorm | RMSNorm | RMSNormalization | RMSNormalization
fn.group_norm | GroupNorm | GroupNorm | GroupNormalization | GroupNormalization
fn.instance_norm | InstanceNorm1d InstanceNorm2d InstanceNorm3d LazyInstanceNorm1d LazyInstanceNorm2d LazyInstanceNorm3d | InstanceNorm | GroupNormalization | InstanceNormalization
fn.batch_norm | BatchNorm1d BatchNorm2d BatchNorm3d LazyBatchNorm1d LazyBatchNorm2d LazyBatchNorm3d SyncBatchNorm | BatchNorm | BatchNormalization | BatchNormalization MeanVarianceNormalization
fn.l2_norm | functional.normalize | | UnitNormalization |
fn.weight_norm | utils.weight_norm | WeightNorm | |
fn.spectral_norm | utils.spectral_norm | SpectralNorm | SpectralNormalization |
fn.softmax | Softmax Softmax2d Softmin | nnx.softmax | Softmax | Softmax
fn.log_softmax | LogSoftmax | nnx.log_softmax | | LogSoftmax
fn.logsumexp | functional.logsumexp | nnx.logsumexp | | ReduceLogSumExp
fn.relu | ReLU | nnx.relu | ReLU | Relu
fn.relu6 | ReLU6 | nnx.relu6 | ReLU |
fn.leaky_relu | LeakyReLU | nnx.leaky_relu | LeakyReLU | LeakyRelu
fn.prelu | PReLU | PReLU | PReLU | PRelu
fn.threshold | Threshold | | | ThresholdedRelu
fn.elu | ELU | nnx.elu | ELU | Elu
fn.selu | SELU | nnx.selu | | Selu
fn.celu | CELU | nnx.celu | | Celu
fn.gelu | GELU | nnx.gelu | | Gelu
fn.quick_gelu | | | |
fn.silu | SiLU | nnx.silu | | Swish
fn.mish | Mish | | | Mish
fn.sigmoid | Sigmoid | nnx.sigmoid | | Sigmoid
fn.log_sigmoid | LogSigmoid | nnx.log_sigmoid | |
fn.hard_sigmoid | Hardsigmoid | nnx.hard_sigmoid | | HardSigmoid
fn.hard_silu | Hardswish | nnx.hard_silu | | HardSwish
fn.tanh | Tanh | nnx.tanh | | Tanh
fn.hard_tanh | Hardtanh | nnx.hard_tanh | |
fn.softplus | Softplus | nnx.softplus | | Softplus
fn.softsign | Softsign | nnx.soft_sign | | Softsign
fn.hard_shrink | Hardshrink | | | Shrink
fn.soft_shrink | Softshrink | | | Shrink
fn.tanh_shrink | Tanhshrink | | |
fn.glu | GLU | nnx.glu | |
fn.geglu | | | |
fn.swiglu | | | | SwiGLU
fn.dropout | Dropout | Dropout | Dropout | Dropout
fn.spatial_dropout | Dropout1d Dropout2d Dropout3d | Dropout: broadcast_dims | SpatialDropout1D SpatialDropout2D SpatialDropout3D |
fn.drop_path | | | |
fn.embedding_dropout | | | |
fn.attention | functional.scaled_dot_product_attention | nnx.dot_product_attention | Attention | Attention FlexAttention
fn.multihead | MultiheadAttention | MultiHeadAttention | MultiHeadAttention GroupQueryAttention |
fn.rope | | | | RotaryEmbedding
fn.alibi | | | |
fn.nets.transformer | Transformer TransformerDecoder TransformerDecoderLayer | | |
fn.nets.encoder | TransformerEncoder TransformerEncoderLayer | | |
fn.lstm | LSTM LSTMCell | LSTMCell OptimizedLSTMCell RNN | LSTM LSTMCell | LSTM
fn.gru | GRU GRUCell | GRUCell RNN | GRU GRUCell | GRU
fn.rnn | RNN RNNCell RNNBase RNNCellBase | SimpleCell RNN RNNCellBase | SimpleRNN SimpleRNNCell RNN | RNN
fn.nets.recurrent | LSTM GRU RNN | Bidirectional | Bidirectional StackedRNNCells |
fn.linear_recurrence | | | |
fn.linear_attention | | | | LinearAttention
fn.nets.mamba | | | |
fn.stft | | | STFTSpectrogram | STFT BlackmanWindow HammingWindow HannWindow
fn.log_mel | | | MelSpectrogram |
fn.mel | | | |
fn.mfcc | | | |
fn.istft | | | |
fn.magnitude | | | |
fn.power | | | |
fn.pre_emphasis | | | |
fn.lfilter | | | |
fn.deltas | | | |
fn.cross_entropy | CrossEntropyLoss | | CategoricalCrossentropy SparseCategoricalCrossentropy | SoftmaxCrossEntropyLoss
fn.linear_cross_entropy | LinearCrossEntropyLoss | | |
fn.binary_cross_entropy | BCEWithLogitsLoss MultiLabelSoftMarginLoss SoftMarginLoss | | BinaryCrossentropy |
fn.mse | MSELoss | | MeanSquaredError |
fn.nll | NLLLoss NLLLoss2d | | | NegativeLogLikelihoodLoss
fn.huber | HuberLoss | | Huber |
fn.smooth_l1 | SmoothL1Loss | | |
fn.kl_div | KLDivLoss | | KLDivergence |
fn.hinge | MultiMarginLoss | | Hinge CategoricalHinge SquaredHinge |
fn.focal | | | BinaryFocalCrossentropy CategoricalFocalCrossentropy |
fn.dice | | | Dice |
fn.cosine | CosineEmbeddingLoss CosineSimilarity | | CosineSimilarity |
fn.triplet | TripletMarginLoss TripletMarginWithDistanceLoss | | |
fn.contrastive | | | |
fn.ctc | CTCLoss | | CTC |
"""

# why | torch.nn | Flax NNX | Keras | ONNX
LEFT_OUT = """
No class holds layers: models are functions, parameters dicts and lists. | Module ModuleDict ModuleList ParameterDict ParameterList Sequential Container DataParallel | Module Dict List Sequential | Layer Sequential TimeDistributed Wrapper |
One line of jnp: a reshape, a transposition, a sum. | Identity Flatten Unflatten ChannelShuffle PairwiseDistance L1Loss | | Flatten Reshape Permute RepeatVector Add Concatenate Cropping1D Cropping2D Cropping3D Masking | Einsum
Probabilities where logits say more: log(1 − p) loses every digit near 1. | BCELoss | | |
A margin or likelihood of a line, without a trap that an operation would take away. | GaussianNLLLoss PoissonNLLLoss HingeEmbeddingLoss MarginRankingLoss MultiLabelMarginLoss | | LogCosh Poisson Tversky Circle |
Noise whose use has gone. | AlphaDropout FeatureAlphaDropout RReLU | | AlphaDropout GaussianDropout GaussianNoise |
Sums of table rows: embedding and jax.ops.segment_sum. | EmbeddingBag | | |
Two-level softmax: linear_cross_entropy needs no memory for the logits of large vocabularies. | AdaptiveLogSoftmaxWithLoss | | |
Places of maxima as integers, and what is made of them. | MaxUnpool1d MaxUnpool2d MaxUnpool3d FractionalMaxPool2d FractionalMaxPool3d | | | MaxUnpool
Windows that are data: too irregular for what compiles once. | | | | DeformConv RoiAlign
Has no gradient. | | | | Hardmax
An optimizer: optax, fn.optim. | | | | Adagrad Adam Momentum
Adapters of a w, which is a dict that is added to params. | | LoRA LoRALinear | |
Integers: funcnet computes in floats. | | | Quantized layers | ConvInteger MatMulInteger QLinearConv QLinearMatMul
No layer of a network: jnp.fft, the write of a cache inside multihead.decode. | | | | DFT TensorScatter
Corners of its triangles are rounded to bins: log_mel, mel have Slaney's and HTK's. | | | | MelWeightMatrix
Recurrences inside convolutions. | | | ConvLSTM1D ConvLSTM2D ConvLSTM3D |
"""


def rows(text: str) -> list[list[str]]:
    """The cells of a table, row by row."""
    return [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]


def name(ours: str) -> str:
    """The operation that a first cell names, without the options that it is used with."""
    return ours.partition(":")[0].removeprefix("fn.")


def exists(ours: str) -> bool:
    """Whether this funcnet has what a first cell names."""
    found = fn
    for part in name(ours).split("."):
        if found is fn and part not in fn.__all__:
            return False
        found = getattr(found, part, None)
    return found is not None


def page() -> str:
    """compared.md."""
    head = "| funcnet | " + " | ".join(LIBRARIES) + " |\n|" + "---|" * (1 + len(LIBRARIES))
    code = lambda cell: " ".join(f"`{word}`" for word in cell.split()) if ":" not in cell else f"`{cell}`"
    line = lambda first, cells: "| " + " | ".join([first, *map(code, cells)]) + " |"
    ours = lambda cell: f"`{name(cell)}`" + (f" {cell.partition(': ')[2]}" if ": " in cell else "")
    has = [line(ours(first), cells) for first, *cells in rows(HAS) if exists(first)]
    lacks = [line(ours(first), cells) for first, *cells in rows(HAS) if not exists(first)]
    without = [line(why, cells) for why, *cells in rows(LEFT_OUT)]
    parts = [
        "# Compared with other libraries",
        "What torch.nn, Flax NNX, Keras and ONNX have, under which name funcnet has it, and what it leaves out and why. Made by "
        "`python docs/compared.py`; ONNX's own tests of these nodes are run by `python -m benchmarks onnx_nodes`.",
        "## Has",
        "\n".join([head, *has]),
    ]
    if lacks:
        parts += ["## Not yet", "\n".join([head, *lacks])]
    parts += ["## Left out", "\n".join([head.replace("funcnet", "why"), *without])]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "compared.md").write_text(page(), encoding="utf-8")
