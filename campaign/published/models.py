"""The models: each as one expression, with an example of what it takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Published:
    """A model of a package.

    Attributes:
        package: The package, as it is installed.
        imports: What stands in front of the expression.
        code: The expression that constructs the module.
        shape: Of an example, `(batch, timesteps, ...)`; time elsewhere with `time_axis`.
        time_axis: The axis of time.
        ids: How many ids there are, where it takes ids; 0: it takes numbers.
        length: The number of timesteps that it is declared for; None: any.
    """

    package: str
    imports: str
    code: str
    shape: tuple[int, ...] = (2, 20, 8)
    time_axis: int = 1
    ids: int = 0
    length: int | None = None


def _of(package: str, imports: str, *codes: str, shape: tuple[int, ...] = (2, 20, 8), **more: int) -> list[Published]:
    return [Published(package, imports, code, shape, **more) for code in codes]


MODELS = [
    *_of(
        "torch",
        "from torch import nn",
        "nn.LSTM(8, 16, batch_first=True)",
        "nn.GRU(8, 16, num_layers=2, batch_first=True)",
        "nn.RNN(8, 16, batch_first=True)",
        "nn.LSTM(8, 16, proj_size=4, batch_first=True)",
        "nn.LSTM(8, 16, bidirectional=True, batch_first=True)",
        "nn.TransformerEncoderLayer(8, 2, batch_first=True)",
    ),
    *_of(
        "ncps",
        "from ncps.torch import CfC, LTC\nfrom ncps.wirings import AutoNCP, FullyConnected",
        "CfC(8, 16)",
        "CfC(8, 16, proj_size=3)",
        "CfC(8, 16, backbone_layers=2, backbone_units=16)",
        "CfC(8, 16, mode='pure')",
        "CfC(8, 16, mode='no_gate')",
        "CfC(8, 16, mixed_memory=True)",
        "CfC(8, 16, return_sequences=False)",
        "CfC(8, AutoNCP(16, 4))",
        "LTC(8, 12)",
        "LTC(8, AutoNCP(12, 3))",
    ),
    *_of(
        "mambapy",
        "from mambapy.mamba import Mamba, MambaBlock, MambaConfig",
        "Mamba(MambaConfig(d_model=8, n_layers=1))",
        "Mamba(MambaConfig(d_model=8, n_layers=1, pscan=False))",
        "MambaBlock(MambaConfig(d_model=8, n_layers=1, pscan=False))",
        "MambaBlock(MambaConfig(d_model=8, n_layers=1, inner_layernorms=True))",
    ),
    *_of("s5-pytorch", "from s5 import S5, S5Block", "S5(8, 8)", "S5Block(8, 8, False)"),
    *_of(
        "minGRU-pytorch",
        "from minGRU_pytorch.minGRU import minGRU\nfrom minGRU_pytorch.minLSTM import minLSTM",
        "minGRU(8)",
        "minGRU(8, expansion_factor=1.5)",
        "minLSTM(8)",
        "minLSTM(8, expansion_factor=1.5)",
    ),
    *_of(
        "pytorch-tcn",
        "from pytorch_tcn import TCN",
        "TCN(8, [8, 8, 8], kernel_size=3, causal=True, input_shape='NLC')",
        "TCN(8, [8, 8], kernel_size=3, causal=True, input_shape='NLC', use_skip_connections=True)",
        "TCN(8, [8, 8], kernel_size=3, causal=True, input_shape='NLC', use_norm='layer_norm')",
        "TCN(8, [8, 8], kernel_size=3, causal=True, input_shape='NLC', use_norm='batch_norm', use_gate=True)",
        "TCN(8, [8, 8], kernel_size=3, causal=False, input_shape='NLC')",
    ),
    *_of(
        "gateloop-transformer",
        "from gateloop_transformer import SimpleGateLoopLayer",
        "SimpleGateLoopLayer(8)",
        "SimpleGateLoopLayer(8, prenorm=False)",
        "SimpleGateLoopLayer(8, use_heinsen=True)",
        "SimpleGateLoopLayer(8, reverse=True)",
    ),
    *_of(
        "yet-another-retnet",
        "from yet_another_retnet.retnet import RetNetDecoder, RetNetDecoderLayer",
        "RetNetDecoderLayer(16, 2, dim_feedforward=16)",
        "RetNetDecoder(RetNetDecoderLayer(16, 2, dim_feedforward=16), 2)",
        shape=(2, 20, 16),
    ),
    *_of(
        "local-attention",
        "from local_attention import LocalAttention\nfrom local_attention.transformer import LocalMHA",
        "LocalMHA(dim=8, window_size=4, heads=2, dim_head=4, causal=True)",
        "LocalMHA(dim=8, window_size=4, heads=2, dim_head=4, causal=False)",
        length=20,
    ),
    *_of(
        "x-transformers",
        "from x_transformers import ContinuousTransformerWrapper, Decoder, Encoder",
        "ContinuousTransformerWrapper(dim_in=8, dim_out=4, max_seq_len=20, "
        "attn_layers=Decoder(dim=16, depth=1, heads=2))",
        "ContinuousTransformerWrapper(dim_in=8, dim_out=4, max_seq_len=20, "
        "attn_layers=Encoder(dim=16, depth=1, heads=2))",
        length=20,
    ),
    *_of(
        "encodec",
        "import sys, types\nsys.modules['torchaudio'] = types.ModuleType('torchaudio')  # which reads files alone\n"
        "from encodec.modules import SConv1d, SLSTM\ndel sys.modules['torchaudio']",
        "SConv1d(8, 4, 3, causal=True, pad_mode='constant')",
        "SConv1d(8, 4, 3, dilation=2, causal=True, norm='none', pad_mode='constant')",
        "SConv1d(8, 4, 3, causal=False)",
        "SLSTM(8)",
        shape=(2, 8, 20),
        time_axis=2,
    ),
    *_of(
        "transformers",
        "from transformers import FalconMambaConfig, FalconMambaModel, Mamba2Config, Mamba2Model\n"
        "from transformers import MambaConfig, MambaModel, RwkvConfig, RwkvModel",
        "FalconMambaModel(FalconMambaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, use_cache=False))",
        "Mamba2Model(Mamba2Config(vocab_size=20, hidden_size=16, num_heads=4, head_dim=8, num_hidden_layers=1, "
        "n_groups=1, use_cache=False))",
        "MambaModel(MambaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, state_size=4, use_cache=False))",
        "RwkvModel(RwkvConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2, use_cache=False))",
        shape=(2, 20),
        ids=20,
    ),
    *_of(
        "transformers",
        "from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, GPTNeoXConfig, GPTNeoXModel\n"
        "from transformers import BloomConfig, BloomModel, GemmaConfig, GemmaModel, MistralConfig, MistralModel\n"
        "from transformers import LlamaConfig, LlamaModel, OPTConfig, OPTModel, PhiConfig, PhiModel\n"
        "from transformers import Qwen2Config, Qwen2Model, Starcoder2Config, Starcoder2Model\n"
        "size = {'vocab_size': 20, 'hidden_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 2}",
        "GPT2Model(GPT2Config(vocab_size=20, n_positions=20, n_embd=8, n_layer=1, n_head=2, use_cache=False))",
        "LlamaModel(LlamaConfig(**size, intermediate_size=16, use_cache=False))",
        "GPTNeoXModel(GPTNeoXConfig(**size, intermediate_size=16, use_cache=False))",
        "OPTModel(OPTConfig(**size, ffn_dim=16, max_position_embeddings=20, use_cache=False))",
        "BertModel(BertConfig(**size, intermediate_size=16))",
        "MistralModel(MistralConfig(**size, intermediate_size=16, num_key_value_heads=1, use_cache=False))",
        "Qwen2Model(Qwen2Config(**size, intermediate_size=16, num_key_value_heads=1, use_cache=False))",
        "PhiModel(PhiConfig(**size, intermediate_size=16, use_cache=False))",
        "GemmaModel(GemmaConfig(**size, intermediate_size=16, num_key_value_heads=1, head_dim=8, use_cache=False))",
        "BloomModel(BloomConfig(vocab_size=20, hidden_size=16, n_layer=1, n_head=2, use_cache=False))",
        "Starcoder2Model(Starcoder2Config(**size, intermediate_size=16, num_key_value_heads=1, use_cache=False))",
        shape=(2, 20),
        ids=20,
        length=20,
    ),
    *_of(
        "pytorch-forecasting",
        "from pytorch_forecasting.models.nn.rnn import GRU, LSTM",
        "LSTM(8, 16, batch_first=True)",
        "GRU(8, 16, batch_first=True)",
    ),
    *_of(
        "torchrl",
        "from torchrl.modules import GRU, LSTM",
        "LSTM(8, 16, batch_first=True)",
        "GRU(8, 16, batch_first=True)",
    ),
    *_of(
        "asteroid-filterbanks",
        "from asteroid_filterbanks.pcen import PCEN, ExponentialMovingAverage",
        "PCEN(n_channels=1)",
        shape=(2, 1, 8, 20),
        time_axis=3,
    ),
    *_of("sru", "from sru import SRU", "SRU(8, 16)", shape=(20, 2, 8), time_axis=0),
    *_of(
        "xlstm",
        "from xlstm import mLSTMLayer, mLSTMLayerConfig, sLSTMLayer, sLSTMLayerConfig",
        "sLSTMLayer(sLSTMLayerConfig(embedding_dim=8, num_heads=2, backend='vanilla', conv1d_kernel_size=4))",
        "mLSTMLayer(mLSTMLayerConfig(embedding_dim=8, num_heads=2, context_length=20))",
        length=20,
    ),
    *_of(
        "linear-attention-transformer",
        "from linear_attention_transformer import LinearAttentionTransformer",
        "LinearAttentionTransformer(dim=8, depth=1, heads=2, max_seq_len=20, causal=True)",
        length=20,
    ),
    *_of(
        "nnAudio", "from nnAudio.features import STFT", "STFT(n_fft=64, hop_length=16, verbose=False)", shape=(2, 640)
    ),
    *_of("julius", "from julius import LowPassFilter", "LowPassFilter(0.1)", shape=(2, 200)),
    *_of(
        "titans-pytorch",
        "from titans_pytorch import MemoryAsContextTransformer",
        "MemoryAsContextTransformer(num_tokens=20, dim=8, depth=1, segment_len=4)",
        shape=(2, 20),
        ids=20,
    ),
    *_of(
        "assoc-scan",
        "from torch import nn\nfrom assoc_scan import AssocScan\n\n"
        "class Mean(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.scan = AssocScan()\n"
        "        self.keep = nn.Linear(8, 8)\n\n    def forward(self, x):\n"
        "        return self.scan(self.keep(x).sigmoid(), x)\n",
        "Mean()",
    ),
]
